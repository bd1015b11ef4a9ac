"""How a node ends its own event streams: the application is told, then cancelled, and the client gets an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.integration.exchange import GRACE
from fastapi_mesh.integration.node import Node
from fastapi_mesh.service_mesh import ServiceMesh
from fastapi_mesh.testing.clock import FakeClock

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-23")]

LAST = {"type": "http.response.body", "body": b""}
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Call:
    """One GET request at a node around `app`, on a server whose client stays."""

    def __init__(self, app: ASGIApp) -> None:
        self.clock = FakeClock()
        self.mesh = ServiceMesh("orders", discovery_backend="memory", enable_metrics=False, clock=self.clock)
        self.sent: list[Message] = []
        self._node = Node(app, self.mesh, trust_request_id=True)
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "http_version": "1.1"}
        await self._node(scope, asyncio.Event().wait, self._send)  # type: ignore[arg-type] # it never returns

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def begin(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})


async def listening(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, EVENTS)
    assert (await receive())["type"] == "http.disconnect"
    assert (await receive())["type"] == "http.disconnect"


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, EVENTS)
    await asyncio.Event().wait()


async def test_an_application_that_listens_hears_it_at_once_and_the_client_gets_an_end() -> None:
    call = Call(listening)
    await call.settle()
    assert not call.task.done()
    call.mesh.life.end_streams()
    await call.task
    assert call.sent[-1] == LAST
    assert len(call.sent) == 3


async def test_an_application_that_does_not_is_cancelled_after_the_grace() -> None:
    call = Call(deaf)
    await call.settle()
    call.mesh.life.end_streams()
    await call.clock.advance(GRACE - 0.01)
    await call.settle()
    assert not call.task.done()
    await call.clock.advance(0.02)
    await call.task
    assert call.sent[-1] == LAST


async def test_an_end_by_the_application_itself_is_not_doubled() -> None:
    async def polite(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, EVENTS)
        await receive()
        await send({"type": "http.response.body", "body": b"data: bye\n\n"})

    call = Call(polite)
    await call.settle()
    call.mesh.life.end_streams()
    await call.task
    assert [message.get("body") for message in call.sent[1:]] == [b"data: 1\n\n", b"data: bye\n\n"]


async def test_a_stream_that_begins_when_the_process_ends_is_told_at_once() -> None:
    call = Call(listening)
    call.mesh.life.end_streams()
    await call.task
    assert call.sent[-1] == LAST


@pytest.mark.parametrize(
    "headers",
    [[(b"content-type", b"application/json")], [*EVENTS, (b"content-length", b"99")], []],
    ids=["json", "events-with-length", "no-type"],
)
async def test_any_other_answer_goes_on(headers: list[tuple[bytes, bytes]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, headers)
        await receive()

    call = Call(app)
    await call.settle()
    call.mesh.life.end_streams()
    await call.clock.advance(GRACE * 2)
    await call.settle()
    assert not call.task.done()
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task


async def test_a_cancellation_by_the_server_goes_through() -> None:
    call = Call(deaf)
    await call.settle()
    call.mesh.life.end_streams()
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
