"""Tests of the HTTP/2 wire against hypercorn, and against a server that does what it is told to, frame by frame."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from time import monotonic
from types import SimpleNamespace

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import trustme
from hypercorn.asyncio import serve
from hypercorn.config import Config

from fastapi_mesh.core.events import TrailersDropped
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.message import Outcome, Request
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import (
    ClientDisconnectedError,
    ConfigurationError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.h2 import connection as connection_module
from fastapi_mesh.wire.h2.goaway import Goaway, GoawayFilter
from fastapi_mesh.wire.h2.wire import Http2Wire
from tests.wire.asgi_support import new_context, until

pytestmark = pytest.mark.anyio


def make_request(
    port, target=b"/", *, method=b"GET", headers=(), body=b"", scheme="h2c", timeout=5.0, hold=False, **policy
):
    metadata = {"server_name": "orders.mesh"} if scheme == "h2" else {}
    instance = Instance("orders", "orders-1", "127.0.0.1", port, scheme=scheme, metadata=metadata)
    context = new_context(instance, **policy)
    context.attempt_deadline = None if timeout is None else monotonic() + timeout
    context.hold = hold
    return Request(method, "orders", target, list(headers), body, context)


@asynccontextmanager
async def http2_wire(**options):
    wire = Http2Wire(**options)
    try:
        yield wire
    finally:
        await wire.aclose()
        assert wire.statistics() == {"open": 0, "in_use": 0, "waiting": 0}


# hypercorn


@asynccontextmanager
async def hypercorn(app):
    """Serves `app` over h2c in this loop, and yields the port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 1
    stop = asyncio.Event()
    supervisor = Supervisor()
    serving = supervisor.start(serve(app, config, shutdown_trigger=stop.wait), name="hypercorn")
    try:
        yield listening.getsockname()[1]
    finally:
        stop.set()
        await serving
        listening.detach()
        await supervisor.aclose()


async def echo(scope, receive, send):
    """Answers with what it got; /endless never ends."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    fields = [
        (b"x-path", scope["raw_path"]),
        (b"x-query", scope["query_string"]),
        (b"x-method", scope["method"].encode()),
    ]
    fields += [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    fields += [(b"x-sent-" + name, value) for name, value in scope["headers"]]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    while scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": b"x" * 16_384, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body"})


async def test_a_request_and_its_answer_pass_byte_for_byte():
    async with hypercorn(echo) as port, http2_wire() as wire:
        headers = [(b"X-A", b"1"), (b"x-a", b"2"), (b"Connection", b"x-hop"), (b"x-hop", b"1"), (b"TE", b"trailers")]
        response = await wire(make_request(port, b"/a%2Fb?x=%20", method=b"POST", headers=headers, body=b"hello"))
        assert response.status == 200
        assert await response.read_all() == b"hello"
        fields = response.headers
        assert [value for name, value in fields if name == b"set-cookie"] == [b"a=1", b"b=2"]
        assert [value for name, value in fields if name == b"x-sent-x-a"] == [b"1", b"2"]
        assert response.header(b"x-path") == b"/a%2Fb"
        assert response.header(b"x-query") == b"x=%20"
        assert response.header(b"x-sent-host") == b"127.0.0.1:%d" % port
        assert response.header(b"x-sent-content-length") == b"5"
        assert response.header(b"x-sent-x-hop") is None


async def test_calls_at_once_share_one_connection_and_keep_their_answers_apart():
    async with hypercorn(echo) as port, http2_wire() as wire:

        async def call(number: int) -> bool:
            response = await wire(make_request(port, b"/", method=b"POST", body=b"%d" % number))
            return await response.read_all() == b"%d" % number

        assert all(await asyncio.gather(*(call(number) for number in range(80))))
        assert wire.statistics() == {"open": 1, "in_use": 0, "waiting": 0}


@pytest.mark.spec("X-23")
async def test_bodies_stream_both_ways_at_once():
    go_on = asyncio.Event()

    async def parts():
        yield b"first"
        await go_on.wait()
        yield b"second"

    async with hypercorn(echo) as port, http2_wire() as wire:
        response = await wire(make_request(port, method=b"POST", body=parts()))
        assert await response.read() == b"first"
        go_on.set()
        assert await response.read_all() == b"second"


async def test_a_body_larger_than_every_window_arrives_whole():
    content = bytes(range(256)) * 8192
    async with hypercorn(echo) as port, http2_wire() as wire:
        response = await wire(make_request(port, method=b"POST", body=content))
        assert await response.read_all() == content


async def test_abandoned_endless_answers_do_not_hold_up_the_connection():
    """httpcore2 2.16 never resets such a stream, and its connection stalls after a few of them."""
    async with hypercorn(echo) as port, http2_wire() as wire:
        for _ in range(8):
            response = await wire(make_request(port, b"/endless"))
            outcomes = []
            response.on_close(lambda argument, outcome, error: outcomes.append(outcome), None)  # noqa: B023
            assert len(await response.read()) >= 1
            await response.aclose()
            assert outcomes == [Outcome.ABANDONED]
        response = await wire(make_request(port, method=b"POST", body=b"x" * 300_000))
        assert len(await response.read_all()) == 300_000
        assert wire.statistics()["open"] == 1


async def test_a_slow_reader_bounds_what_waits_for_it():
    async with hypercorn(echo) as port, http2_wire() as wire:
        response = await wire(make_request(port, b"/endless"))
        await response.read()
        other = await wire(make_request(port, method=b"POST", body=b"other"))
        assert await other.read_all() == b"other"
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(await response.read()) <= connection_module.STREAM_WINDOW
        await response.aclose()


async def test_head_has_no_body():
    async with hypercorn(echo) as port, http2_wire() as wire:
        response = await wire(make_request(port, method=b"HEAD"))
        assert response.header(b"x-method") == b"HEAD"
        assert await response.read_all() == b""


# a scripted server


class Script(asyncio.Protocol):
    """The server's end: `on_event(server, event)` decides; settings are sent at once."""

    def __init__(self, on_event, settings, made):
        self.on_event = on_event
        self.settings = settings
        self.made = made
        self.events = []
        config = h2.config.H2Configuration(
            client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
        )
        self.h2 = h2.connection.H2Connection(config)

    def connection_made(self, transport):
        self.made.append(self)
        self.transport = transport
        if self.settings is None:
            return
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=self.settings)
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            self.events.append(event)
            self.on_event(self, event)
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def answer(self, stream, content=b"", headers=(), *, status=b"200", end=True):
        self.h2.send_headers(stream, [(b":status", status), *headers])
        self.h2.send_data(stream, content, end_stream=end)
        self.flush()

    def goaway(self, last, code=0):
        payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + b"bye"
        self.transport.write(len(payload).to_bytes(3, "big") + b"\x07\x00\x00\x00\x00\x00" + payload)

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def script(on_event, *, settings=(), tls=None):
    """Yields port and the list of connections."""
    made = []
    values = None if settings is None else dict(settings)
    listening = await asyncio.get_running_loop().create_server(
        lambda: Script(on_event, values, made), "127.0.0.1", 0, ssl=tls
    )
    try:
        yield SimpleNamespace(port=listening.sockets[0].getsockname()[1], made=made)
    finally:
        for server in made:
            server.transport.abort()
        listening.close()
        await listening.wait_closed()


def ignore(server, event):
    """A server that never answers."""


def answering(content=b"ok", headers=(), **options):
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            server.answer(event.stream_id, content, headers, **options)

    return on_event


async def start(supervisor, wire, request):
    return supervisor.start(wire(request), name="call")


async def test_a_server_that_names_no_limit_gets_calls_at_once():
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded) and len(server.seen(h2.events.StreamEnded)) == 3:
            for ended in server.seen(h2.events.StreamEnded):
                server.answer(ended.stream_id)

    settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2**31}
    async with script(on_event, settings=settings) as server, http2_wire() as wire:
        answers = await asyncio.gather(*(wire(make_request(server.port)) for _ in range(3)))
        assert [response.status for response in answers] == [200] * 3
        assert len(server.made) == 1


async def test_more_calls_than_the_instance_allows_on_a_connection_open_another():
    settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2}
    async with script(ignore, settings=settings) as server, http2_wire() as wire:
        supervisor = Supervisor()
        calls = [await start(supervisor, wire, make_request(server.port)) for _ in range(5)]
        await until_slowly(lambda: wire.statistics()["in_use"] == 5)
        assert wire.statistics() == {"open": 3, "in_use": 5, "waiting": 0}
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert wire.statistics()["in_use"] == 0
        await supervisor.aclose()


async def until_slowly(condition):
    """Wait for what needs the network's turns too."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 # the condition is on the other side of a socket
            await asyncio.sleep(0.001)


async def test_an_instance_that_allows_no_streams_is_an_error_and_no_loop():
    settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 0}
    async with script(ignore, settings=settings) as server, http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match="no streams") as caught:
            await wire(make_request(server.port))
        assert caught.value.request_sent is False
        assert len(server.made) == 1


async def test_a_cancelled_call_resets_its_stream():
    async with script(ignore) as server, http2_wire() as wire:
        supervisor = Supervisor()
        call = await start(supervisor, wire, make_request(server.port))
        await until_slowly(lambda: server.made and server.made[0].seen(h2.events.RequestReceived))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_slowly(lambda: server.made[0].seen(h2.events.StreamReset))
        [reset] = server.made[0].seen(h2.events.StreamReset)
        assert reset.error_code == h2.errors.ErrorCodes.CANCEL
        assert wire.statistics() == {"open": 1, "in_use": 0, "waiting": 0}
        await supervisor.aclose()


async def test_no_answer_in_time_is_a_timeout_and_the_connection_is_probed(monkeypatch):
    monkeypatch.setattr(connection_module, "PROBE_TIMEOUT", 0.05)
    async with script(ignore) as server, http2_wire() as wire:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(make_request(server.port, timeout=0.05))
        assert (caught.value.phase, caught.value.request_sent) == ("headers", True)
        await until_slowly(lambda: server.made[0].seen(h2.events.PingReceived))
        await asyncio.sleep(0.1)
        assert wire.statistics()["open"] == 1, "the ping was answered, so the connection lives"


async def test_a_connection_whose_peer_is_silent_even_to_a_ping_is_dropped(monkeypatch):
    monkeypatch.setattr(connection_module, "PROBE_TIMEOUT", 0.02)

    def on_event(server, event):
        if isinstance(event, h2.events.RequestReceived):
            server.transport.pause_reading()

    async with script(on_event) as server, http2_wire() as wire:
        with pytest.raises(UpstreamTimeoutError):
            await wire(make_request(server.port, timeout=0.05))
        await until_slowly(lambda: wire.statistics()["open"] == 0)


async def test_the_idle_timeout_bounds_the_pauses_of_a_body():
    on_event = answering(b"first", end=False)
    async with script(on_event) as server, http2_wire() as wire:
        response = await wire(make_request(server.port, idle_timeout=0.05))
        assert await response.read() == b"first"
        with pytest.raises(UpstreamTimeoutError) as caught:
            await response.read()
        assert caught.value.phase == "read"


async def test_a_body_that_is_not_taken_is_a_timeout():
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10}
    async with script(ignore, settings=settings) as server, http2_wire() as wire:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(make_request(server.port, method=b"POST", body=b"x" * 100, idle_timeout=0.05))
        assert caught.value.phase == "write"


async def test_a_full_socket_holds_up_the_body_until_the_peer_reads_again():
    resumed = []

    def on_event(server, event):
        if isinstance(event, h2.events.RequestReceived):
            server.h2.increment_flow_control_window(2**30)
            server.flush()
            server.transport.pause_reading()

            def resume():
                resumed.append(True)
                server.transport.resume_reading()

            asyncio.get_running_loop().call_later(0.1, resume)
        elif isinstance(event, h2.events.StreamEnded):
            server.answer(event.stream_id, b"%d" % sum(len(part.data) for part in server.seen(h2.events.DataReceived)))

    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**30}
    async with script(on_event, settings=settings) as server, http2_wire() as wire:
        response = await wire(make_request(server.port, method=b"POST", body=b"x" * 12_000_000))
        assert await response.read_all() == b"12000000"
        assert resumed == [True]


async def test_a_connection_that_has_no_ids_left_is_replaced():
    async with script(answering()) as server, http2_wire() as wire:
        await (await wire(make_request(server.port))).read_all()
        [pool] = wire._pools.values()
        pool.connections[0]._h2.highest_outbound_stream_id = 2**31 - 1
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(make_request(server.port))
        assert (caught.value.request_sent, caught.value.service) == (False, "orders")
        assert (await wire(make_request(server.port))).status == 200
        assert len(server.made) == 2


async def test_a_stream_lasts_no_longer_than_it_may():
    async with script(answering(b"first", end=False)) as server, http2_wire() as wire:
        response = await wire(make_request(server.port, max_stream_duration=0.05))
        assert await response.read() == b"first"
        with pytest.raises(UpstreamTimeoutError, match="too long"):
            await response.read()


async def test_goaway_lets_the_calls_in_flight_end_and_takes_no_new_ones():
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded) and event.stream_id == 3:
            server.goaway(1)

    async with script(on_event) as server, http2_wire() as wire:
        supervisor = Supervisor()
        first = await start(supervisor, wire, make_request(server.port))
        await until_slowly(lambda: wire.statistics()["in_use"] == 1)
        second = await start(supervisor, wire, make_request(server.port, method=b"POST", body=b"x"))
        with pytest.raises(UpstreamConnectionError, match="going away") as caught:
            await second
        assert caught.value.request_sent is False
        third = await start(supervisor, wire, make_request(server.port))
        await until_slowly(lambda: len(server.made) == 2)
        server.made[0].answer(1, b"late but whole")
        assert await (await first).read_all() == b"late but whole"
        await until_slowly(server.made[0].transport.is_closing)
        server.made[1].answer(1)
        assert (await third).status == 200
        await supervisor.aclose()


@pytest.mark.parametrize(("code", "sent"), [("REFUSED_STREAM", False), ("INTERNAL_ERROR", True)])
async def test_a_reset_says_whether_the_request_was_processed(code, sent):
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            server.h2.reset_stream(event.stream_id, h2.errors.ErrorCodes[code])

    async with script(on_event) as server, http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match=code) as caught:
            await wire(make_request(server.port))
        assert caught.value.request_sent is sent


@pytest.mark.parametrize("when", ["before the head", "in the body"])
async def test_a_lost_connection_fails_every_call_on_it(when):
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            if when == "in the body":
                server.answer(event.stream_id, b"half", end=False)
            server.transport.close()

    async def call(wire, port):
        return await (await wire(make_request(port))).read_all()

    async with script(on_event) as server, http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError) as caught:
            await call(wire, server.port)
        assert caught.value.request_sent is True
        assert caught.value.response_started is (when == "in the body")
        assert caught.value.service == "orders"


async def test_a_held_short_answer_that_dies_raises_before_anybody_saw_it():
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            server.answer(event.stream_id, b"half", [(b"content-length", b"9")], end=False)
            server.transport.close()

    async with script(on_event) as server, http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(make_request(server.port, hold=True))
        assert caught.value.response_started is True


async def test_a_held_answer_that_takes_too_long_is_delivered_as_it_comes():
    on_event = answering(b"half", [(b"content-length", b"9")], end=False)
    async with script(on_event) as server, http2_wire() as wire:
        response = await wire(make_request(server.port, hold=True))
        assert await response.read() == b"half"
        server.made[0].h2.send_data(1, b" full", end_stream=True)
        server.made[0].flush()
        assert await response.read_all() == b" full"


@pytest.mark.parametrize(
    "head",
    [
        [(b"x", b"1")],
        [(b":status", b"2x")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b"X-Upper", b"1")],
        [(b":status", b"200"), (b"x", b"a\r\nb: c")],
        [(b":status", b"200"), (b"bad name", b"1")],
    ],
)
async def test_a_malformed_head_fails_its_own_call_only(head):
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            if event.stream_id == 1:
                server.h2.send_headers(1, head, end_stream=True)
            else:
                server.answer(event.stream_id)

    async with script(on_event) as server, http2_wire() as wire:
        with pytest.raises(UpstreamProtocolError):
            await wire(make_request(server.port))
        assert (await wire(make_request(server.port))).status == 200
        assert len(server.made) == 1


async def test_an_instance_that_speaks_http_1_is_found_out_before_anything_is_sent():
    async def serve_http1(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve_http1, "127.0.0.1", 0)
    async with http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(make_request(listening.sockets[0].getsockname()[1]))
        assert caught.value.request_sent is False
    listening.close()
    await listening.wait_closed()


async def test_a_refused_connection_was_never_sent_and_leaves_nothing_behind():
    async with script(ignore) as server:
        port = server.port
    async with http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(make_request(port))
        assert caught.value.request_sent is False
        assert wire._pools == {}


@pytest.mark.parametrize(("connect_timeout", "timeout"), [(0.05, 5.0), (5.0, 0.05)])
async def test_a_server_that_never_sends_its_settings_is_a_connect_timeout(connect_timeout, timeout):
    async with script(ignore, settings=None) as server, http2_wire() as wire:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(make_request(server.port, connect_timeout=connect_timeout, timeout=timeout))
        assert (caught.value.phase, caught.value.request_sent) == ("connect", False)


async def test_no_time_left_is_never_sent():
    async with script(answering()) as server, http2_wire() as wire:
        await wire(make_request(server.port))
        with pytest.raises(UpstreamTimeoutError) as caught:
            await wire(make_request(server.port, timeout=0.0))
        assert caught.value.request_sent is False


async def test_an_error_of_the_request_s_body_passes_unchanged_and_resets_the_stream():
    error = ClientDisconnectedError("gone")

    async def parts():
        yield b"abc"
        raise error

    async with script(ignore) as server, http2_wire() as wire:
        with pytest.raises(ClientDisconnectedError) as caught:
            await wire(make_request(server.port, method=b"POST", body=parts()))
        assert caught.value is error
        await until_slowly(lambda: server.made[0].seen(h2.events.StreamReset))


@pytest.mark.parametrize(("stated", "reason"), [(b"2", "longer"), (b"9", "shorter")])
async def test_a_streamed_request_of_another_length_than_stated_is_the_caller_s_fault(stated, reason):
    closed = []

    async def parts():
        try:
            yield b"abc"
            yield b"def"
        finally:
            closed.append(True)

    async with script(ignore) as server, http2_wire() as wire:
        headers = [(b"content-length", stated)]
        with pytest.raises(InvalidRequestError, match=reason):
            await wire(make_request(server.port, method=b"POST", headers=headers, body=parts()))
    assert closed == [True]


async def test_an_answer_that_is_complete_before_the_request_stops_the_request():
    closed = asyncio.Event()

    async def parts():
        try:
            yield b"abc"
            await asyncio.Event().wait()
        finally:
            closed.set()

    def on_event(server, event):
        if isinstance(event, h2.events.DataReceived):
            server.answer(event.stream_id, b"enough", status=b"413")

    async with script(on_event) as server, http2_wire() as wire:
        response = await wire(make_request(server.port, method=b"POST", body=parts()))
        assert (response.status, await response.read_all()) == (413, b"enough")
        await closed.wait()
        await until_slowly(lambda: server.made[0].seen(h2.events.StreamReset))
        assert wire.statistics()["in_use"] == 0


async def test_what_could_be_read_as_something_else_is_refused():
    async with http2_wire() as wire:
        for change in (
            {"headers": [(b"x", b"a\r\nb: c")]},
            {"headers": [(b"a b", b"c")]},
            {"headers": [(b":path", b"/other")]},
            {"headers": [(b"host", b"a"), (b"Host", b"b")]},
            {"headers": [(b"content-length", b"x")]},
            {"target": b"/a b"},
            {"target": b"no-slash"},
            {"method": b"G T"},
        ):
            with pytest.raises(InvalidRequestError):
                await wire(make_request(1, **change))


async def test_websockets_are_refused_with_the_reason():
    async with http2_wire() as wire:
        with pytest.raises(ConfigurationError, match=r"WebSockets need HTTP/1\.1"):
            await wire(make_request(1, headers=[(b"Upgrade", b"websocket")]))


async def test_interim_answers_are_skipped_and_trailers_counted_and_dropped():
    def on_event(server, event):
        if isinstance(event, h2.events.StreamEnded):
            server.h2.send_headers(event.stream_id, [(b":status", b"103"), (b"link", b"x")])
            server.h2.send_headers(event.stream_id, [(b":status", b"200")])
            server.h2.send_data(event.stream_id, b"body")
            server.h2.send_headers(event.stream_id, [(b"grpc-status", b"0")], end_stream=True)

    seen = []
    async with script(on_event) as server, http2_wire(observer=seen.append) as wire:
        response = await wire(make_request(server.port))
        assert (response.status, await response.read_all()) == (200, b"body")
    assert seen == [TrailersDropped("orders")]


@pytest.mark.parametrize("status", [b"204", b"304"])
async def test_answers_without_content_never_deliver_a_body(status):
    async with script(answering(b"surprise", status=status)) as server, http2_wire() as wire:
        response = await wire(make_request(server.port))
        assert await response.read_all() == b""


async def test_a_body_of_another_length_than_stated_breaks_the_protocol():
    async def call(wire, port):
        return await (await wire(make_request(port))).read_all()

    async with script(answering(b"abcdef", [(b"content-length", b"5")])) as server, http2_wire() as wire:
        with pytest.raises(UpstreamProtocolError, match="Expected 5 bytes"):
            await call(wire, server.port)


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not():
    async with script(answering()) as server, http2_wire(keepalive_expiry=0.05) as wire:
        await (await wire(make_request(server.port))).read_all()
        assert wire.statistics()["open"] == 1
        await until_slowly(lambda: wire.statistics()["open"] == 0)
        assert wire._pools == {}
        assert (await wire(make_request(server.port))).status == 200
        assert len(server.made) == 2


async def test_closing_the_wire_fails_what_is_in_flight_and_what_comes_after():
    async with script(ignore) as server:
        supervisor = Supervisor()
        wire = Http2Wire()
        call = await start(supervisor, wire, make_request(server.port))
        await until_slowly(lambda: wire.statistics()["in_use"] == 1)
        await wire.aclose()
        with pytest.raises(UpstreamConnectionError, match="closed"):
            await call
        with pytest.raises(UpstreamConnectionError, match="closed") as caught:
            await wire(make_request(server.port))
        assert caught.value.request_sent is False
        await supervisor.aclose()


def tls_pair(*protocols):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("orders.mesh").configure_cert(server)
    if protocols:
        server.set_alpn_protocols(list(protocols))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_tls_offers_http_2_and_verifies_the_server_s_name():
    server_tls, client_tls = tls_pair("h2", "http/1.1")
    async with script(answering(), tls=server_tls) as server, http2_wire(ssl_context=client_tls) as wire:
        response = await wire(make_request(server.port, scheme="h2"))
        assert await response.read_all() == b"ok"
        [received] = server.made[0].seen(h2.events.RequestReceived)
        assert (b":scheme", b"https") in received.headers


async def test_tls_without_http_2_or_with_a_wrong_certificate_is_never_sent():
    server_tls, client_tls = tls_pair("http/1.1")
    async with script(answering(), tls=server_tls) as server, http2_wire(ssl_context=client_tls) as wire:
        with pytest.raises(UpstreamConnectionError, match="ALPN") as caught:
            await wire(make_request(server.port, scheme="h2"))
        assert caught.value.request_sent is False
    server_tls, _ = tls_pair("h2")
    async with script(answering(), tls=server_tls) as server, http2_wire() as wire:
        with pytest.raises(UpstreamConnectionError, match="certificate") as caught:
            await wire(make_request(server.port, scheme="h2"))
        assert caught.value.request_sent is False


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi_mesh.wire.h2.connection", None)
    with pytest.raises(ConfigurationError):
        Http2Wire()
    monkeypatch.delitem(sys.modules, "fastapi_mesh.wire.h2.connection")
    monkeypatch.setitem(sys.modules, "h2.config", None)
    with pytest.raises(ConfigurationError, match=r"fastapi-mesh\[http2\]"):
        Http2Wire()


# the filter of GOAWAY frames


def frame(kind, payload=b"", stream=0):
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + payload


GOAWAY = frame(7, (5).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"debug")
OTHERS = [frame(0, b"x" * 300, 1), frame(6, b"12345678"), frame(4)]


@pytest.mark.parametrize("step", [1, 2, 8, 9, 10, 17, 1000])
def test_goaway_is_taken_out_however_the_bytes_are_cut(step):
    data = OTHERS[0] + GOAWAY + OTHERS[1] + OTHERS[2] + GOAWAY
    goaways = GoawayFilter()
    passed, found = b"", []
    for position in range(0, len(data), step):
        part, more = goaways.feed(data[position : position + step])
        passed += part
        found += more
    assert passed == b"".join(OTHERS)
    assert found == [Goaway(5, 2), Goaway(5, 2)]


@pytest.mark.parametrize("broken", [frame(7, b"short"), frame(7, b"x" * 20_000), frame(7, b"12345678", stream=3)])
def test_a_malformed_goaway_is_left_to_the_protocol(broken):
    assert GoawayFilter().feed(broken) == (broken, [])


class FloodedTransport:
    """A transport whose peer reads nothing."""

    unsent = 0
    aborted = False

    def get_extra_info(self, name):
        return None

    def write(self, data):
        self.unsent += len(data)

    def get_write_buffer_size(self):
        return self.unsent

    def abort(self):
        self.aborted = True


async def test_a_flood_of_questions_by_an_instance_that_reads_no_answers_ends_the_connection(monkeypatch):
    monkeypatch.setattr(connection_module, "MOST_UNSENT", 1000)
    connection = connection_module.H2Connection(lambda each: None, lambda each: None, None)
    transport = FloodedTransport()
    connection.connection_made(transport)
    connection.data_received(frame(4))
    for _ in range(20):
        connection.data_received(frame(6, b"12345678"))
        assert not transport.aborted
    for _ in range(40):
        connection.data_received(frame(6, b"12345678"))
    assert transport.aborted


async def test_calls_that_wait_for_a_connection_share_its_failure_but_not_its_error():
    async with script(ignore, settings=None) as server, http2_wire() as wire:
        calls = [wire(make_request(server.port, connect_timeout=0.05)) for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [UpstreamTimeoutError] * 3
        assert len({id(error) for error in errors}) == 3
        await until(lambda: wire._pools == {})
