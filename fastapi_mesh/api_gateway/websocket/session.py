"""One WebSocket, from its handshake to an end that both sides hear of.

Two tasks, one per direction; each waits where its receiver is slow, so nothing piles up here. Whoever ends it first
(a side, a time limit, the process) says how, and the session's own task tells the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeVar

from fastapi_mesh.api_gateway.websocket import closes
from fastapi_mesh.api_gateway.websocket.closes import CUT, NO_STATUS, Close, Ending
from fastapi_mesh.api_gateway.websocket.framing import SLICE
from fastapi_mesh.api_gateway.websocket.keepalive import TOO_OLD, KeepAlive
from fastapi_mesh.exceptions import ClientDisconnectedError, MeshError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.api_gateway.websocket.framing import Frames
    from fastapi_mesh.api_gateway.websocket.handshake import Handshake
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Receive, Send
    from fastapi_mesh.core.message import ByteStream, Response
    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.gateway")

CLOSE_TIMEOUT = 5.0
"""Seconds for either side to take our Close, and for the service to close its connection after it."""
FAREWELL = 1.0
"""Seconds for the server in front to say with which code a client left that can't be sent to any more."""
T = TypeVar("T")


class Tally(Protocol):
    """What counts the messages of a route's WebSockets; `size` is bytes, of a text message characters."""

    def from_client(self, size: int) -> None: ...

    def from_service(self, size: int) -> None: ...


class Session:
    """A WebSocket at a gateway. Made in the task in which the server runs the application, which goes through
    `during_handshake`, `pass_messages` and, whatever happens, `release`.

    `is_delivering` says that a message waits for the client to take it.
    """

    __slots__ = (
        "_alive",
        "_clock",
        "_deliverer",
        "_frames",
        "_gone",
        "_in_handshake",
        "_limit",
        "_listener",
        "_opened",
        "_over",
        "_receive",
        "_response",
        "_send",
        "_stream",
        "_supervisor",
        "_tally",
        "_task",
        "is_delivering",
    )

    _alive: KeepAlive
    _frames: Frames
    _limit: int
    _response: Response
    _stream: ByteStream
    _tally: Tally | None

    def __init__(self, receive: Receive, send: Send, *, supervisor: Supervisor, clock: Clock) -> None:
        self._receive = receive
        self._send = send
        self._supervisor = supervisor
        self._clock = clock
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._deliverer: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._in_handshake = False
        self._gone = False
        self.is_delivering = False

    # The session's own task.

    async def during_handshake(self, answer: Awaitable[T]) -> T:
        """Wait for `answer`. Raises ClientDisconnectedError, and cancels it, when the client goes away meanwhile."""
        self._listener = self._start(self._listen(), "websocket-client")
        self._in_handshake = True
        try:
            return await answer
        except asyncio.CancelledError:
            if self._gone and self._task is not None and self._task.uncancel() == 0:
                raise ClientDisconnectedError("the client went away during its handshake") from None
            raise
        finally:
            self._in_handshake = False

    async def pass_messages(self, request: Handshake, response: Response, tally: Tally | None) -> Ending:
        """Accept the client, pass messages both ways until there is an end, and tell both sides of it."""
        assert response.upgrade is not None, "the service has answered 101"
        self._frames, self._response, self._stream = request.frames, response, response.upgrade
        self._limit = request.route.websocket.max_message
        self._tally = tally
        self._alive = KeepAlive(self, request.route.websocket, self._clock, credential=_left(request.principal))
        accept = {"type": "websocket.accept", "subprotocol": request.subprotocol, "headers": response.headers}
        try:
            await self._send(accept)
        except OSError:  # it is gone already
            return Ending(None, CUT)
        self._opened.set()
        self._deliverer = self._start(self._deliver(), "websocket-service")
        self._alive.start()
        try:
            ending = await self._over
            await self._close(ending)
        finally:
            self._alive.stop()
        return ending

    def end(self, ending: Ending) -> None:
        """End it like this, unless it ends already; one that is not open yet ends when it is."""
        if not self._over.done():
            self._over.set_result(ending)

    async def release(self) -> None:
        """End both tasks."""
        self._task = None
        if not self._over.done():
            self._over.cancel()
        await _stop(self._listener)
        await _stop(self._deliverer)

    def ping(self) -> None:
        self._supervisor.start(self._ping(), name="websocket-ping")

    # From the client to the service.

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._client_left(message.get("code", NO_STATUS), message.get("reason") or "")
                return
            await self._opened.wait()
            text = message.get("text")
            if not await self._to_service(message["bytes"] if text is None else text):
                return

    async def _to_service(self, content: str | bytes) -> bool:
        """Send a message on, waiting while the service is slow; False when there is no point in another one."""
        size = len(content)
        if size > self._limit or (size * 4 > self._limit and _size_of(content) > self._limit):
            self.end(closes.TOO_LONG)
            return False
        self._alive.used = self._clock.now()
        if self._tally is not None:
            self._tally.from_client(size)
        self._frames.send(content)
        try:
            await self._stream.write(self._frames.outgoing())
        except MeshError as error:
            self.end(_of_failure(error))
            return False
        return True

    def _client_left(self, code: int, reason: str) -> None:
        self._gone = True
        if self._in_handshake and self._task is not None:
            self._task.cancel()
        self.end(closes.from_client(code, reason))

    # From the service to the client.

    async def _deliver(self) -> None:
        try:
            while data := await self._response.read():
                self._alive.heard = self._clock.now()
                for start in range(0, len(data), SLICE):
                    await self._take(data[start : start + SLICE] if len(data) > SLICE else data)
        except MeshError as error:
            self.end(_of_failure(error))
        else:
            self.end(closes.LOST)

    async def _take(self, data: bytes) -> None:
        frames = self._frames
        for message in frames.feed(data):
            if not self._over.done():
                await self._to_client(message)
        outgoing = frames.outgoing()
        if outgoing:
            await self._stream.write(outgoing)
        if frames.closed is not None:
            self.end(closes.from_service(frames.closed.code, frames.closed.reason))
        elif frames.fault is not None:
            self.end(closes.fault_of_service(frames.fault.code))

    async def _to_client(self, message: str | bytes) -> None:
        self._alive.used = self._clock.now()
        if self._tally is not None:
            self._tally.from_service(len(message))
        self.is_delivering = True
        try:
            await self._send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
        except (OSError, RuntimeError) as error:  # OSError since ASGI 2.4; uvicorn's older protocol raises the other
            logger.debug("a WebSocket's client can't be sent to any more: %r", error)
            if self._listener is not None:
                await asyncio.wait((self._listener,), timeout=FAREWELL)
            self.end(Ending(None, CUT))
        finally:
            self.is_delivering = False

    # The end.

    async def _close(self, ending: Ending) -> None:
        """Tell both sides; the service first, as it is nearer."""
        await _stop(self._listener)
        behind = self.is_delivering
        if behind:
            await _stop(self._deliverer)
        if ending.service is not None and ending.service is not CUT:
            self._frames.close(ending.service)
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._stream.write(self._frames.outgoing())
        if ending.client is not None:
            await self._close_client(ending.client)
        if ending.service is not CUT and not behind and self._deliverer is not None:
            await asyncio.wait((self._deliverer,), timeout=CLOSE_TIMEOUT)

    async def _close_client(self, close: Close) -> None:
        with suppress(OSError, RuntimeError):  # TimeoutError is an OSError
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    # Private.

    async def _ping(self) -> None:
        self._frames.ping()
        with suppress(MeshError):  # whoever reads from the service sees that too, and ends it
            await self._stream.write(self._frames.outgoing())

    def _start(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._supervisor.start(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One direction has ended; where nobody said why, it was cancelled with the mesh, or has failed."""
        if task.cancelled():
            self.end(closes.RESTART)
        elif task.exception() is not None:
            self.end(closes.FAILED)


def _left(principal: Principal | None) -> float:
    """Seconds until the client's credential ends, which is dated in Unix time."""
    return inf if principal is None or principal.expires is None else principal.expires - time.time()


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait((task,))


def _size_of(content: str | bytes) -> int:
    return len(content.encode()) if isinstance(content, str) else len(content)


def _of_failure(error: MeshError) -> Ending:
    """What becomes of it when the connection to the service fails; the text of the error is for the log."""
    if isinstance(error, UpstreamTimeoutError) and error.phase == "read":  # `max_stream_duration`
        return Ending(TOO_OLD.client, CUT)
    return Ending(closes.LOST.client, CUT, str(error) or type(error).__name__)
