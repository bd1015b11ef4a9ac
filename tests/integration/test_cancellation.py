"""What becomes of a handler whose deadline has passed, or whose client is gone: in virtual time, and behind uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: TID251 - users have it

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.core.events import HandlerAbandoned, HandlerCancelled
from fastapi_mesh.exceptions import ClientDisconnectedError, DeadlineExceededError
from fastapi_mesh.integration import ServiceMeshMiddleware
from fastapi_mesh.integration.exchange import GRACE, LOOK_AFTER
from fastapi_mesh.integration.node import Node
from fastapi_mesh.service_mesh import ServiceMesh
from fastapi_mesh.testing.clock import FakeClock
from tests.api_gateway.gateway_support import request, serving, talk
from tests.support.leaks import leaked_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-06")]

BODY = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}
TIMEOUT = (b"x-mesh-timeout-ms", b"1000")
HEAD_ONLY = (b"x-mesh-timeout-covers", b"head")


class Call:
    """One request at a node around `app`, in virtual time. `receive` gives the body, then waits for `leave`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        method: str = "GET",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        messages: tuple[Message, ...] = (BODY,),
        cancel_on_disconnect: bool = False,
    ) -> None:
        self.clock = FakeClock()
        self.events: list[object] = []
        self.mesh = ServiceMesh(
            "orders",
            discovery_backend="memory",
            enable_metrics=False,
            clock=self.clock,
            observers=[self.events.append],
        )
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        self._messages = list(messages)
        self._readers = 0
        node = Node(app, self.mesh, trust_request_id=True, cancel_on_disconnect=cancel_on_disconnect)
        scope = {
            "type": "http",
            "method": method,
            "path": "/",
            "headers": list(headers),
            "query_string": b"",
            "http_version": "1.1",
        }
        self.task = asyncio.get_running_loop().create_task(node(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        self._readers += 1
        assert self._readers == 1, "there is a second reader"
        try:
            if self._messages:
                return self._messages.pop(0)
            await self.left.wait()
            return GONE
        finally:
            self._readers -= 1

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        """The client goes away after the handler has worked for a while."""
        await self.settle()
        await self.clock.advance(LOOK_AFTER)
        self.left.set()
        await self.settle()

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    @property
    def status(self) -> int | None:
        return next((each["status"] for each in self.sent if each["type"] == "http.response.start"), None)


class Database:
    """Something that a handler waits for without an end."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.cleaned = 0

    async def query(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await asyncio.sleep(0)  # giving a connection back may take a turn, and must not be cancelled again
            self.cleaned += 1


async def respond(send: Send, *, last: bool = True) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok", "more_body": not last})


# Deadlines


async def test_a_passed_deadline_cancels_what_the_handler_awaits_and_is_answered_504() -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await database.query()

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(0.99)
    assert (call.sent, database.cancelled) == ([], 0)
    await call.clock.advance(0.02)
    await call.task
    assert (database.cancelled, database.cleaned) == (1, 1)
    assert call.status == 504
    assert json.loads(call.sent[1]["body"])["reason"] == "deadline-exceeded"
    assert dict(call.sent[0]["headers"])[b"x-mesh-reason"] == b"deadline-exceeded"
    assert call.events[-1:] == [HandlerCancelled("deadline")]
    assert call.task.cancelling() == 0


@pytest.mark.parametrize("header", [(b"x-envoy-expected-rq-timeout-ms", b"1000"), (b"grpc-timeout", b"1S"), TIMEOUT])
async def test_whatever_said_it_the_answer_is_cut_off_until_its_last_byte(header: tuple[bytes, bytes]) -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, last=False)
        await database.query()

    call = Call(app, headers=(header,))
    await call.settle()
    await call.clock.advance(1.01)
    await call.task
    assert database.cancelled == 1
    assert len(call.sent) == 2  # no end: the server closes the connection, and the client sees a broken transfer
    assert call.status == 200


async def test_a_deadline_that_ends_with_the_head_leaves_a_long_body_alone() -> None:
    going_on = asyncio.Event()
    seen: list[float | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, last=False)
        await going_on.wait()
        seen.append(current_inbound.get().deadline)
        await send({"type": "http.response.body", "body": b"end"})

    call = Call(app, headers=(TIMEOUT, HEAD_ONLY))
    await call.settle()
    await call.clock.advance(5)
    going_on.set()
    await call.task
    assert call.sent[-1]["body"] == b"end"
    assert seen == [None]


async def test_it_cuts_off_a_handler_that_has_sent_no_head_all_the_same() -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await database.query()

    call = Call(app, headers=(TIMEOUT, HEAD_ONLY))
    await call.settle()
    await call.clock.advance(1.01)
    await call.task
    assert (call.status, database.cancelled) == (504, 1)


async def test_nothing_is_cancelled_after_the_last_byte_and_its_calls_have_time() -> None:
    done = []
    going_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)
        await going_on.wait()
        done.append(current_inbound.get().deadline)

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(5)
    call.left.set()
    await call.settle()
    going_on.set()
    await call.task
    assert done == [None]
    assert call.events == []


async def test_a_handler_that_does_not_heed_is_counted_and_what_it_sends_is_dropped() -> None:
    going_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not going_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await going_on.wait()
        await respond(send)

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(1.01)
    assert call.status == 504
    await call.clock.advance(GRACE)
    assert call.events == [HandlerCancelled("deadline"), HandlerAbandoned("deadline")]
    going_on.set()
    await call.task
    assert [each["type"] for each in call.sent] == ["http.response.start", "http.response.body"]
    assert call.task.cancelling() == 0


async def test_an_error_while_it_is_cancelled_is_told_once_the_answer_is_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(1.01)
    with pytest.raises(ZeroDivisionError):
        await call.task
    assert call.status == 504


async def test_a_call_that_fails_by_the_same_deadline_is_answered_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise DeadlineExceededError("too late") from None

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(1.01)
    await call.task
    assert [each["type"] for each in call.sent] == ["http.response.start", "http.response.body"]


async def test_a_server_that_cancels_at_the_same_time_is_heard() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    call.mesh.observers.add(lambda event: call.task.cancel())  # in the same turn
    await call.clock.advance(1.01)
    with pytest.raises(asyncio.CancelledError):
        await call.task


async def test_task_groups_and_timeouts_of_the_handler_pass_it_on() -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(database.query())
            group.create_task(database.query())

    call = Call(app, headers=(TIMEOUT,))
    await call.settle()
    await call.clock.advance(1.01)
    await call.task
    assert (call.status, database.cleaned) == (504, 2)


# Clients that are gone


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_method_is_cancelled_when_its_client_goes(method: str) -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await database.query()

    call = Call(app, method=method)
    await call.leave()
    await call.task
    assert (database.cancelled, database.cleaned, call.sent) == (1, 1, [])
    assert call.events == [HandlerCancelled("disconnect")]


async def test_an_order_is_carried_out_though_its_client_goes() -> None:
    going_on = asyncio.Event()
    done = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await going_on.wait()
        done.append(current_inbound.get().gone)
        await respond(send)

    call = Call(app, method="POST")
    await call.leave()
    going_on.set()
    await call.task
    assert done == [False]


@pytest.mark.parametrize("reads", [False, True])
async def test_an_order_is_cancelled_where_you_ask_for_it(reads: bool) -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if reads:
            await receive()
        await database.query()

    call = Call(app, method="POST", cancel_on_disconnect=True)
    await call.leave()
    await call.task
    assert database.cancelled == 1


async def test_a_body_is_read_ahead_by_one_part_and_reaches_the_handler_whole() -> None:
    parts = [{"type": "http.request", "body": b"%d" % n, "more_body": n < 4} for n in range(5)]
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await ready.wait()
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await respond(send)

    ready = asyncio.Event()
    call = Call(app, method="POST", messages=tuple(parts), cancel_on_disconnect=True)
    await call.settle()
    await call.clock.advance(LOOK_AFTER)
    assert len(call._messages) == 4
    ready.set()
    await call.task
    assert got == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_handler_that_is_told_may_end_by_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        assert current_inbound.get().gone
        await respond(send)

    call = Call(app)
    await call.leave()
    await call.task
    assert call.status == 200
    assert call.events == []


async def test_a_handler_that_is_told_and_goes_on_is_cancelled_after_the_grace() -> None:
    database = Database()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        await database.query()

    call = Call(app)
    await call.leave()
    assert database.cancelled == 0
    await call.clock.advance(GRACE + 0.01)
    await call.task
    assert database.cancelled == 1


async def test_asking_for_the_client_while_it_is_watched_gets_the_right_answer() -> None:
    asked: list[bool] = []
    turn = asyncio.Semaphore(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        assert await request.body() == b"x"
        for _ in range(3):
            await turn.acquire()
            asked.append(await request.is_disconnected())
        await respond(send)

    call = Call(app, messages=({"type": "http.request", "body": b"x", "more_body": False},))
    await call.settle()
    await call.clock.advance(LOOK_AFTER)
    turn.release()
    await call.settle()
    turn.release()
    await call.settle()
    assert asked == [False, False]
    await call.cancel()


async def test_its_mesh_calls_fail_at_once_when_the_client_is_gone() -> None:
    failed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(ClientDisconnectedError):
                await call.mesh.call_service("users", "/")
            failed.append(1)

    async def users(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            failed.append("called")

    call = Call(app)
    call.mesh.add_service("users", users)
    await call.leave()
    await call.task
    assert failed == [1]
    await call.mesh.stop()


async def test_a_thousand_cancellations_leave_nothing() -> None:
    await cancellations(1000)


@pytest.mark.soak
async def test_ten_thousand_cancellations_leave_nothing() -> None:
    await cancellations(10_000)


async def cancellations(count: int) -> None:
    """Handlers that wait for a call to a service; half of them lose their time, half their client."""
    reached = 0

    async def users(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        assert scope["type"] == "http"  # it has no lifespan
        reached += 1
        await asyncio.Event().wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await mesh.call_service("users", "/")

    clock = FakeClock()
    mesh = ServiceMesh("orders", discovery_backend="memory", enable_metrics=False, clock=clock)
    mesh.add_service("users", users)
    node = Node(app, mesh, trust_request_id=True)
    before = asyncio.all_tasks()
    await mesh.start()
    for _ in range(count // 100):
        left = asyncio.Event()
        tasks = [asyncio.get_running_loop().create_task(one(node, n % 2 == 0, left)) for n in range(100)]
        await asyncio.sleep(0.001)
        await clock.advance(LOOK_AFTER)
        left.set()
        await clock.advance(1.0)
        await asyncio.gather(*tasks)
    assert reached == count
    state = mesh.states.get("users")
    assert [each.in_flight for each in state.instances.value or ()] == [0]
    assert mesh.supervisor.statistics()["tasks"] < 10
    await mesh.stop()
    assert await leaked_tasks(before) == []


async def one(node: Node, in_time: bool, left: asyncio.Event) -> None:
    async def receive() -> Message:
        await left.wait()
        return GONE

    async def send(message: Message) -> None:
        assert not in_time

    headers = [] if in_time else [TIMEOUT]
    scope = {"type": "http", "method": "GET" if in_time else "POST", "path": "/", "headers": headers}
    await node(scope, receive, send)


# Behind a real server, with FastAPI's own parts inside


class Shop:
    """An application with a handler of each kind; `release` lets its threads go on."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.seen: list[str] = []
        self.release = threading.Event()
        self.entered = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.events: list[object] = []
        self.mesh = ServiceMesh(
            "shop",
            discovery_backend="memory",
            services={"stock": Shop.stock},
            observers=[self.events.append],
            enable_metrics=False,
        )
        self.app.add_middleware(ServiceMeshMiddleware, mesh=self.mesh)
        self._routes()

    @staticmethod
    async def stock(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    def _enter(self) -> None:
        self.loop.call_soon_threadsafe(self.entered.set)

    def _routes(self) -> None:
        app, seen = self.app, self.seen

        async def connection() -> AsyncIterator[str]:
            try:
                yield "connection"
            finally:
                await asyncio.sleep(0)
                seen.append("given back")

        @app.get("/waits")
        async def waits(tasks: BackgroundTasks, db: str = Depends(connection)) -> None:
            self._enter()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        @app.get("/thread")
        def thread() -> str:
            self._enter()
            assert self.release.wait(30)
            future = asyncio.run_coroutine_threadsafe(self.mesh.call_service("stock", "/"), self.loop)
            try:
                future.result(30)
            except DeadlineExceededError:
                seen.append("call refused")
            return "late"

        @app.get("/background")
        async def background(tasks: BackgroundTasks) -> str:
            async def later() -> None:
                self._enter()
                await asyncio.sleep(0.3)
                seen.append("background")

            tasks.add_task(later)
            return "ok"

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                try:
                    yield b"first"
                    self._enter()
                    await asyncio.Event().wait()
                finally:
                    seen.append("stream ended")

            return StreamingResponse(parts())


async def ask(port: int, path: str, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: shop", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it happens behind a server
            await asyncio.sleep(0.01)


async def test_behind_a_server_the_deadline_ends_a_handler_and_its_dependencies() -> None:
    shop = Shop()
    async with serving(shop.app) as port:
        answer = await talk(port, request("GET /waits", "x-mesh-timeout-ms: 150"))
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"deadline-exceeded" in answer
        await until(lambda: shop.seen == ["cancelled", "given back"])


async def test_behind_a_server_a_client_that_goes_ends_its_handler() -> None:
    shop = Shop()
    async with serving(shop.app) as port:
        _, writer = await ask(port, "/waits")
        await shop.entered.wait()
        writer.close()
        await until(lambda: shop.seen == ["cancelled", "given back"])
        assert shop.events[-1] == HandlerCancelled("disconnect")


@pytest.mark.parametrize("around", [False, True], ids=["plain", "in BaseHTTPMiddleware"])
async def test_a_handler_in_a_thread_is_answered_for_and_finishes_there(around: bool) -> None:
    shop = Shop()
    if around:

        async def pass_on(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        inside = type(shop.app.user_middleware[0])(BaseHTTPMiddleware, dispatch=pass_on)
        shop.app.user_middleware.append(inside)
    async with serving(shop.app) as port:
        answer = await talk(port, request("GET /thread", "x-mesh-timeout-ms: 150"))
        assert answer.startswith(b"HTTP/1.1 504 ")
        await until(lambda: HandlerAbandoned("deadline") in shop.events)
        shop.release.set()
        await until(lambda: shop.seen == ["call refused"])


async def test_behind_a_server_background_tasks_outlive_client_and_deadline() -> None:
    shop = Shop()
    async with serving(shop.app) as port:
        _, writer = await ask(port, "/background", "x-mesh-timeout-ms: 200")
        await shop.entered.wait()
        writer.close()
        await until(lambda: shop.seen == ["background"])
        assert shop.events == [] or not any(isinstance(each, HandlerCancelled) for each in shop.events)


@pytest.mark.parametrize("how", ["deadline", "disconnect"])
async def test_behind_a_server_a_stream_ends_with_its_time_or_its_client(how: str) -> None:
    shop = Shop()
    async with serving(shop.app) as port:
        reader, writer = await ask(port, "/stream", *(["x-mesh-timeout-ms: 200"] if how == "deadline" else []))
        await shop.entered.wait()
        if how == "deadline":
            content = await asyncio.wait_for(reader.read(), 20)
            assert b"first" in content
            assert not content.endswith(b"0\r\n\r\n")  # the client can tell that it was cut off
        writer.close()
        await until(lambda: shop.seen == ["stream ended"])
