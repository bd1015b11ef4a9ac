"""Tests of the wire into applications of this process: requests and responses."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fastapi_mesh.core.context import Inbound, current_inbound
from fastapi_mesh.core.message import Outcome
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import (
    ClientDisconnectedError,
    ConfigurationError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.wire.asgi import AsgiWire
from fastapi_mesh.wire.asgi_exchange import MOST_CHUNKS
from tests.wire.asgi_support import asgi_wire, request_to, until

pytestmark = pytest.mark.anyio


async def send_all(send, *parts, status=200, headers=(), more=False):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if not more:
        await send({"type": "http.response.body"})


async def read_body(receive):
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body, False
        body += message["body"]
        if not message["more_body"]:
            return body, True


class Recorder:
    """An application that keeps its scope and body, and answers 204."""

    async def __call__(self, scope, receive, send):
        self.scope = scope
        self.body, self.complete = await read_body(receive)
        await send_all(send, status=204)


@pytest.mark.spec("X-11")
async def test_a_fastapi_application_answers_without_a_socket():
    app = FastAPI()

    @app.post("/items/{name}")
    async def create(name: str, request: Request, size: int = 0):
        return {"name": name, "size": size, "body": (await request.json())["a"], "host": request.headers["host"]}

    async with asgi_wire() as wire:
        headers = [(b"Content-Type", b"application/json")]
        response = await wire(
            request_to(app, b"/items/a%20b?size=3", method=b"POST", headers=headers, body=b'{"a": 1}')
        )

        assert response.status == 200
        assert await response.read_all() == b'{"name":"a b","size":3,"body":1,"host":"orders"}'
        assert response.header(b"content-type") == b"application/json"


async def test_the_scope_has_the_raw_bytes_and_lower_case_names():
    app = Recorder()
    headers = [(b"X-A", b"1"), (b"x-a", b"2"), (b"HOST", b"shop.example"), (b"Connection", b"close, X-Hop")]
    headers += [(b"x-hop", b"1"), (b"TE", b"trailers"), (b"Expect", b"100-continue")]
    async with asgi_wire() as wire:
        await wire(request_to(app, b"/a%2Fb/%C3%A4?x=%20&y", headers=headers, base_path=b"/v1"))

    scope = app.scope
    assert scope["type"] == "http"
    assert scope["method"] == "GET"
    assert scope["path"] == "/v1/a/b/ä"
    assert scope["raw_path"] == b"/v1/a%2Fb/%C3%A4"
    assert scope["query_string"] == b"x=%20&y"
    assert scope["headers"] == [(b"host", b"shop.example"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert scope["root_path"] == ""
    assert scope["client"] == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("method", "stated", "body", "expected"),
    [
        (b"GET", [], b"", []),
        (b"POST", [], b"", [(b"content-length", b"0")]),
        (
            b"POST",
            [(b"content-length", b"99"), (b"transfer-encoding", b"chunked")],
            b"abc",
            [(b"content-length", b"3")],
        ),
    ],
)
async def test_the_framing_headers_fit_the_body(method, stated, body, expected):
    app = Recorder()
    async with asgi_wire() as wire:
        await wire(request_to(app, method=method, headers=stated, body=body))

    assert [field for field in app.scope["headers"] if field[0] != b"host"] == expected
    assert app.body == body


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"nowhere", []),
        (b"/", [(b"x", b"a\r\nb: c")]),
        (b"/", [(b"host", b"a"), (b"Host", b"b")]),
        (b"/", [(b"content-length", b"1"), (b"content-length", b"2")]),
    ],
)
async def test_what_no_server_would_let_through_is_refused(target, headers):
    app = Recorder()
    async with asgi_wire() as wire:
        with pytest.raises(InvalidRequestError):
            await wire(request_to(app, target, headers=headers))
    assert not hasattr(app, "scope")


async def test_response_headers_keep_order_and_duplicates_and_lose_those_of_the_hop():
    async def app(scope, receive, send):
        fields = [
            [b"Set-Cookie", b"a=1"],
            (b"X", b"2"),
            (b"set-cookie", b"b=2"),
            (b"Connection", b"x"),
            (b"keep-alive", b"1"),
        ]
        await send_all(send, headers=fields)

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
    assert response.headers == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.spec("X-11", "X-23")
async def test_a_streamed_request_is_read_only_when_the_application_asks():
    asked = asyncio.Event()
    produced = []

    async def parts():
        for number in range(3):
            produced.append(number)
            yield b"part%d" % number

    async def app(scope, receive, send):
        await asked.wait()
        app.scope = scope
        app.body, app.complete = await read_body(receive)
        await send_all(send, status=204)

    async with asgi_wire() as wire:
        supervisor = Supervisor()
        call = supervisor.start(wire(request_to(app, method=b"POST", body=parts())), name="call")
        await until(lambda: wire.statistics()["running"] == 1)
        assert produced == []
        asked.set()
        assert (await call).status == 204
        assert (app.body, app.complete) == (b"part0part1part2", True)
        assert (b"transfer-encoding", b"chunked") in app.scope["headers"]
        await supervisor.aclose()


@pytest.mark.parametrize(("stated", "reason"), [(b"2", "longer"), (b"9", "shorter")])
async def test_a_streamed_request_of_another_length_than_stated_is_the_caller_s_fault(stated, reason):
    async def parts():
        yield b"abc"
        yield b"def"

    app = Recorder()
    async with asgi_wire() as wire:
        request = request_to(app, method=b"POST", headers=[(b"content-length", stated)], body=parts())
        with pytest.raises(InvalidRequestError, match=reason):
            await wire(request)
        await until(lambda: hasattr(app, "complete"))
    assert app.complete is False


async def test_an_error_of_the_request_s_body_passes_unchanged_and_the_application_sees_a_disconnect():
    error = ClientDisconnectedError("gone")

    async def parts():
        yield b"abc"
        raise error

    app = Recorder()
    async with asgi_wire() as wire:
        with pytest.raises(ClientDisconnectedError) as caught:
            await wire(request_to(app, method=b"POST", body=parts()))
        assert caught.value is error
        await until(lambda: hasattr(app, "complete"))
    assert app.body == b"abc"
    assert app.complete is False


async def test_a_request_body_that_is_not_read_to_its_end_is_closed():
    closed = []

    async def parts():
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    async def app(scope, receive, send):
        await receive()
        await send_all(send, b"enough")

    async with asgi_wire() as wire:
        response = await wire(request_to(app, method=b"POST", body=parts()))
        assert await response.read_all() == b"enough"
        await until(lambda: closed)


@pytest.mark.spec("X-23")
async def test_events_arrive_one_by_one_and_closing_ends_the_generator():
    ended = []
    app = FastAPI()

    @app.get("/events")
    async def events():
        async def generate():
            number = 0
            try:
                while True:
                    yield f"data: {number}\n\n"
                    number += 1
                    await asyncio.sleep(0)
            finally:
                ended.append(number)

        return StreamingResponse(generate(), media_type="text/event-stream")

    async with asgi_wire() as wire:
        response = await wire(request_to(app, b"/events"))
        outcomes = []
        response.on_close(lambda argument, outcome, error: outcomes.append((outcome, error)), None)
        assert [await response.read(), await response.read()] == [b"data: 0\n\n", b"data: 1\n\n"]
        await response.aclose()
        await until(lambda: wire.statistics()["running"] == 0)

        assert ended
        assert outcomes == [(Outcome.ABANDONED, None)]
        with pytest.raises(UpstreamConnectionError, match="closed"):
            await response.read()


@pytest.mark.spec("X-23")
async def test_a_slow_reader_bounds_the_producer():
    produced = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(100):
            produced.append(number)
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await send({"type": "http.response.body"})

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(produced) == 1
        await response.read()
        await until(lambda: len(produced) == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(produced) == 2
        assert len(await response.read_all()) == 99 * 65_536


async def test_small_parts_are_bounded_by_number():
    produced = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            produced.append(1)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(produced) == MOST_CHUNKS
        await response.aclose()


async def test_a_plain_response_is_at_its_end_with_its_last_part():
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        assert response.at_end is False
        assert await response.read() == b"hello"
        assert response.at_end is True
        assert await response.read() == b""


@pytest.mark.spec("X-22")
@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_answers_without_content_never_deliver_a_body(method, status):
    async def app(scope, receive, send):
        await send_all(send, b"surprise", status=status, headers=[(b"content-length", b"8"), (b"etag", b'"1"')])

    async with asgi_wire() as wire:
        response = await wire(request_to(app, method=method))
        assert response.at_end is True
        assert await response.read_all() == b""
        assert response.header(b"content-length") == b"8"


async def test_an_endless_answer_to_head_ends_when_it_is_closed():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        supervisor = Supervisor()
        call = supervisor.start(wire(request_to(app, method=b"HEAD")), name="call")
        await clock.advance(0.06)
        response = await call
        assert await response.read_all() == b""
        await response.aclose()
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()


@pytest.mark.parametrize(
    ("parts", "what"),
    [([b"abc", b"def"], "longer than its content-length"), ([b"ab"], "shorter than its content-length")],
)
async def test_a_body_of_another_length_than_stated_fails(parts, what):
    async def app(scope, receive, send):
        await send_all(send, *parts, headers=[(b"content-length", b"5")])

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        with pytest.raises(UpstreamProtocolError, match=what) as caught:
            await response.read_all()
    assert caught.value.response_started is True


@pytest.mark.parametrize(
    "headers", [[(b"content-length", b"x")], [(b"content-length", b"1"), (b"content-length", b"2")], [(b"x", b"a\nb")]]
)
async def test_an_invalid_response_head_is_a_protocol_error(headers):
    async def app(scope, receive, send):
        await send_all(send, headers=headers)

    async with asgi_wire() as wire:
        with pytest.raises(UpstreamProtocolError, match="not valid"):
            await wire(request_to(app))


async def test_an_exception_before_the_head_is_a_failed_connection_with_its_cause():
    class Bug(Exception):
        pass

    async def app(scope, receive, send):
        raise Bug("no")

    async with asgi_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match="raised Bug: no") as caught:
            await wire(request_to(app))
    assert isinstance(caught.value.__cause__, Bug)
    assert caught.value.request_sent is True
    assert caught.value.response_started is False
    assert caught.value.service == "orders"


async def test_even_a_group_of_base_exceptions_reaches_the_caller():
    async def app(scope, receive, send):
        raise BaseExceptionGroup("several", [asyncio.CancelledError(), KeyError("x")])

    async with asgi_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match="several"):
            await wire(request_to(app))


async def test_an_exception_after_the_head_fails_the_body():
    async def app(scope, receive, send):
        await send_all(send, b"half", more=True)
        raise KeyError("gone")

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        outcomes = []
        response.on_close(lambda argument, outcome, error: outcomes.append(outcome), None)
        assert await response.read() == b"half"
        with pytest.raises(UpstreamConnectionError, match="KeyError") as caught:
            await response.read()
    assert caught.value.response_started is True
    assert outcomes == [Outcome.FAILED]


async def test_an_unhandled_error_in_fastapi_is_its_own_500(caplog):
    app = FastAPI()

    @app.get("/")
    async def fail():
        raise RuntimeError("secret")

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        assert (response.status, await response.read_all()) == (500, b"Internal Server Error")
        await until(lambda: wire.statistics()["running"] == 0)
    assert "failed after its response was complete" in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(("begin", "what"), [(False, "a response"), (True, "the whole body")])
async def test_an_application_that_returns_too_early_breaks_the_protocol(begin, what):
    async def app(scope, receive, send):
        if begin:
            await send_all(send, b"half", more=True)

    async with asgi_wire() as wire:

        async def call() -> bytes:
            return await (await wire(request_to(app))).read_all()

        with pytest.raises(UpstreamProtocolError, match=f"without sending {what}"):
            await call()


async def test_messages_out_of_place_are_refused():
    refused = []

    async def app(scope, receive, send):
        for message in ({"type": "http.response.body"}, {"type": "websocket.accept"}):
            with pytest.raises(RuntimeError, match="no place"):
                await send(message)
            refused.append(message["type"])
        await send_all(send, b"ok")
        with pytest.raises(RuntimeError, match="no place"):
            await send({"type": "http.response.body", "body": b"more"})
        refused.append("late")

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        assert await response.read_all() == b"ok"
        await until(lambda: len(refused) == 3)


@pytest.mark.spec("X-06")
async def test_a_cancelled_caller_cancels_the_application():
    events = []

    async def app(scope, receive, send):
        events.append("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async with asgi_wire() as wire:
        supervisor = Supervisor()
        call = supervisor.start(wire(request_to(app)), name="call")
        await until(lambda: events)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()
    assert events == ["started", "cancelled"]


async def test_an_application_that_waits_for_the_disconnect_gets_it_and_may_end_by_itself():
    events = []

    async def app(scope, receive, send):
        await read_body(receive)
        events.append((await receive())["type"])
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="gone"):
            await send({"type": "http.response.start", "status": 200})
        events.append("ended by itself")

    async with asgi_wire() as wire:
        supervisor = Supervisor()
        call = supervisor.start(wire(request_to(app)), name="call")
        await until(lambda: wire.statistics()["running"] == 1)
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        await until(lambda: len(events) == 2)
        await supervisor.aclose()
    assert events == ["http.disconnect", "ended by itself"]


async def test_an_application_that_ignores_the_disconnect_is_cancelled_after_a_moment():
    cancelled = asyncio.Event()

    async def app(scope, receive, send):
        await read_body(receive)
        try:
            while True:
                await receive()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with asgi_wire() as wire:
        supervisor = Supervisor()
        call = supervisor.start(wire(request_to(app)), name="call")
        for _ in range(10):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert not cancelled.is_set()
        await cancelled.wait()
        await supervisor.aclose()


async def test_cancelling_a_read_ends_the_application():
    async def app(scope, receive, send):
        await send_all(send, b"first", more=True)
        await asyncio.Event().wait()

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        assert await response.read() == b"first"
        supervisor = Supervisor()
        reading = supervisor.start(response.read(), name="read")
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()


async def test_background_tasks_go_on_after_the_response_is_closed():
    released, done = asyncio.Event(), []
    app = FastAPI()

    async def later():
        await released.wait()
        done.append(True)

    @app.get("/")
    async def read(tasks: BackgroundTasks):
        tasks.add_task(later)
        return {"ok": True}

    async with asgi_wire() as wire:
        response = await wire(request_to(app))
        assert await response.read_all() == b'{"ok":true}'
        await response.aclose()
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.statistics()["running"] == 1
        released.set()
        await until(lambda: done)


async def test_starlette_s_handlers_see_the_disconnect_of_a_request_body():
    seen = []

    async def upload(request):
        try:
            await request.body()
        except ClientDisconnect:
            seen.append("disconnect")
            raise
        return Response()

    async def parts():
        yield b"abc"
        raise ClientDisconnectedError("gone")

    app = Starlette(routes=[Route("/", upload, methods=["POST"])])
    async with asgi_wire() as wire:
        with pytest.raises(ClientDisconnectedError):
            await wire(request_to(app, method=b"POST", body=parts()))
        await until(lambda: seen)


@pytest.mark.spec("X-06")
async def test_the_attempt_s_deadline_ends_the_wait_for_the_head():
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        request = request_to(app)
        request.context.attempt_deadline = clock.now() + 2
        supervisor = Supervisor()
        call = supervisor.start(wire(request), name="call")
        await clock.advance(1.9)
        assert not call.done()
        await clock.advance(0.2)
        with pytest.raises(UpstreamTimeoutError) as caught:
            await call
        assert (caught.value.phase, caught.value.request_sent) == ("headers", True)
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()


async def test_a_deadline_that_has_passed_never_reaches_the_application():
    app = Recorder()
    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        request = request_to(app)
        request.context.attempt_deadline = clock.now()
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(request)
    assert caught.value.request_sent is False
    assert not hasattr(app, "scope")


async def test_the_deadline_does_not_bound_the_body_but_the_idle_timeout_does():
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        await send_all(send, b"first", more=True)
        await go_on.wait()
        go_on.clear()
        await send({"type": "http.response.body", "body": b"second", "more_body": True})
        await go_on.wait()

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        request = request_to(app, idle_timeout=10.0)
        request.context.attempt_deadline = clock.now() + 1
        response = await wire(request)
        assert await response.read() == b"first"
        supervisor = Supervisor()
        reading = supervisor.start(response.read(), name="read")
        await clock.advance(9)
        go_on.set()
        assert await reading == b"second"
        reading = supervisor.start(response.read(), name="read")
        await clock.advance(11)
        with pytest.raises(UpstreamTimeoutError) as caught:
            await reading
        assert caught.value.phase == "read"
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()


async def test_a_stream_lasts_no_longer_than_it_may():
    async def app(scope, receive, send):
        await send_all(send, b"first", more=True)
        await asyncio.Event().wait()

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        response = await wire(request_to(app, max_stream_duration=5.0))
        assert await response.read() == b"first"
        supervisor = Supervisor()
        reading = supervisor.start(response.read(), name="read")
        await clock.advance(4.9)
        assert not reading.done()
        await clock.advance(0.2)
        with pytest.raises(UpstreamTimeoutError, match="longer than 5 s"):
            await reading
        await until(lambda: wire.statistics()["running"] == 0)
        await supervisor.aclose()


async def test_a_held_short_answer_that_dies_raises_before_anybody_saw_it():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            await asyncio.sleep(0)
        raise RuntimeError("died")

    async with asgi_wire() as wire:
        request = request_to(app)
        request.context.hold = True
        with pytest.raises(UpstreamConnectionError, match="died") as caught:
            await wire(request)
    assert caught.value.response_started is True


async def test_a_held_answer_that_takes_too_long_is_delivered_as_it_comes():
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"cd"})

    clock = FakeClock()
    async with asgi_wire(clock) as wire:
        request = request_to(app)
        request.context.hold = True
        supervisor = Supervisor()
        call = supervisor.start(wire(request), name="call")
        await clock.advance(0.04)
        assert not call.done()
        await clock.advance(0.02)
        response = await call
        go_on.set()
        assert await response.read_all() == b"abcd"
        await supervisor.aclose()


async def test_the_application_does_not_see_the_caller_s_inbound_request():
    seen = []

    async def app(scope, receive, send):
        seen.append(current_inbound.get())
        await send_all(send)

    inbound = Inbound(object())
    token = current_inbound.set(inbound)
    try:
        async with asgi_wire() as wire:
            await wire(request_to(app))
        assert current_inbound.get() is inbound
    finally:
        current_inbound.reset(token)
    assert seen == [None]


async def test_a_closed_supervisor_is_a_connection_that_was_never_made():
    supervisor = Supervisor()
    wire = AsgiWire(supervisor)
    await supervisor.aclose()
    with pytest.raises(UpstreamConnectionError) as caught:
        await wire(request_to(Recorder()))
    assert caught.value.request_sent is False


async def test_closing_the_wire_disconnects_what_still_runs():
    async def app(scope, receive, send):
        await send_all(send, b"first", more=True)
        await asyncio.Event().wait()

    supervisor = Supervisor()
    wire = AsgiWire(supervisor)
    response = await wire(request_to(app))
    await wire.aclose()
    await until(lambda: wire.statistics()["running"] == 0)
    with pytest.raises(UpstreamConnectionError):
        await response.read_all()


async def test_the_end_of_the_supervisor_fails_the_call_instead_of_hanging_it():
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    supervisor, own = Supervisor(), Supervisor()
    wire = AsgiWire(supervisor)
    call = own.start(wire(request_to(app)), name="call")
    await asyncio.sleep(0)
    await supervisor.aclose()
    with pytest.raises(UpstreamConnectionError, match="was cancelled"):
        await call


async def test_an_instance_without_its_application_is_a_mistake_in_the_settings():
    request = request_to(Recorder())
    state = request.context.instance
    state.instance = replace(state.instance, app=None)
    async with asgi_wire() as wire:
        with pytest.raises(ConfigurationError, match="without an `app`"):
            await wire(request)


async def test_many_calls_at_once_keep_their_answers_apart():
    app = FastAPI()

    @app.get("/{number}")
    async def read(number: int):
        await asyncio.sleep(0)
        return JSONResponse(number)

    async with asgi_wire() as wire:

        async def call(number: int) -> bool:
            response = await wire(request_to(app, b"/%d" % number))
            return await response.read_all() == b"%d" % number

        assert all(await asyncio.gather(*(call(number) for number in range(200))))
        await until(lambda: wire.statistics()["running"] == 0)
    gc.collect()
