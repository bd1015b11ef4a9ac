"""The client of a request: its body as it comes, and the watch for its going away.

Whether a client is still there is only learnt from `receive`, and asking costs a task. So nobody asks in the first
moments of a request: the `Watch` looks at all running requests every few milliseconds and asks for those that are old.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.headers import CHUNKED
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.exceptions import ClientDisconnectedError, InvalidRequestError, MeshError

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Message, Receive
    from fastapi_mesh.core.tasks import Supervisor

TICK = 0.025
"""Seconds between two looks of the watch; a request is asked about after one to two of them."""

_QUESTIONS = 16
"""After so many ends of the body, none of which was news, the server is not asked again."""


class SlowClientError(MeshError):
    """The client took too long to send its body."""

    status: ClassVar[int] = 408
    reason: ClassVar[str] = "request-timeout"


class BodyTooLargeError(GatewayRefusalError):
    """A request's body is longer than its route allows."""

    status: ClassVar[int] = 413
    reason: ClassVar[str] = "body-too-large"

    def __init__(self, limit: float) -> None:
        super().__init__(f"The body of a request may have {limit:.0f} bytes here.")


class Client:
    """One request's client. `gone` turns True when it went away and the request's task was cancelled for it, `ended`
    when that was done because the answer is to end here.

    `length` is the body's Content-Length or CHUNKED; `expects_continue` that it waits for `100 Continue`; `pause` the
    longest wait for a part of the body, in seconds, 0.0 for any; `offers_upgrade` that the request had an `Upgrade`;
    `limit` how many bytes the body may have: one more raises BodyTooLargeError.

    As the body of a `Request` it is an async iterator over what the client sends, once. It raises
    ClientDisconnectedError when the client goes away before its body is complete, and InvalidRequestError where what
    the server made of the body is not of the length that the headers say.
    """

    __slots__ = (
        "_asked",
        "_more",
        "_receive",
        "_size",
        "_task",
        "_watch",
        "_watcher",
        "ended",
        "expects_continue",
        "gone",
        "length",
        "limit",
        "offers_upgrade",
        "pause",
    )

    def __init__(self, receive: Receive, watch: Watch) -> None:
        self._receive = receive
        self._watch = watch
        self._more = True
        self._asked = False
        self._size = 0
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self.ended = False
        self.gone = False
        self.length = CHUNKED
        self.limit: float = inf
        self.expects_continue = False
        self.offers_upgrade = False
        self.pause = 0.0

    def no_body(self) -> None:
        """This request has no body."""
        self._more = False
        self._watch.add(self)

    def __aiter__(self) -> Client:
        return self

    async def __anext__(self) -> bytes:
        self._asked = True
        while self._more:
            message = await self._within(self.pause) if self.pause else await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnectedError("the client went away before its body was complete")
            data: bytes = message.get("body", b"")
            self._size += len(data)
            if self._size > self.limit:
                raise BodyTooLargeError(self.limit)
            if not message.get("more_body", False):
                self._more = False
                self._watch.add(self)
                self._check_size()
            if data:
                return data
        raise StopAsyncIteration

    def _check_size(self) -> None:
        """uvicorn with httptools loses the body of a request with an `Upgrade` that it does not take up, and ends it
        properly: passed on, it would be another request than the one the client has sent.
        """
        if self.length >= 0:
            if self._size != self.length:
                raise InvalidRequestError("the body is not as long as its Content-Length says")
        elif self.offers_upgrade and not self._size:
            raise InvalidRequestError("the body was lost, because the request offers an upgrade")

    async def read_all(self, timeout: float) -> bytes:
        """The whole body. Raises SlowClientError when it takes more than `timeout` seconds."""
        end = asyncio.get_running_loop().time() + timeout
        parts = []
        while self._more:
            self.pause = max(0.001, end - asyncio.get_running_loop().time())
            parts.append(await anext(self, b""))
        return b"".join(parts)

    async def _within(self, timeout: float) -> Message:
        """The next message, within `timeout` seconds."""
        task = asyncio.current_task()
        assert task is not None, "bodies are read in tasks"
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(timeout, expire)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if late and task.uncancel() == 0:
                raise SlowClientError("the request's body did not come in time") from None
            raise
        finally:
            timer.cancel()

    @property
    def is_unasked(self) -> bool:
        """Whether nobody has asked for the body, as far as is known here: a client that waits for `100 Continue` then
        waits still.
        """
        return self._more and not self._asked

    def answered(self) -> None:
        """The head of the answer is here: what is left of the body isn't read any more (the wire has given it up)."""
        if self._more:
            self._more = False
            self._watch.add(self)

    def release(self) -> None:
        """The request is answered, or given up: nobody needs to know any more whether the client is there."""
        self._watch.forget(self)
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        self._task = None

    def end(self) -> None:
        """Cancel the request's task, because its answer is to end here. Nobody asks after the client any more."""
        task = self._task
        self.release()
        if task is not None and not self.gone:
            self.ended = True
            task.cancel()

    def is_what_cancelled(self) -> bool:
        """Whether the CancelledError at hand is ours (`gone` or `ended`), and nobody else's too."""
        task = asyncio.current_task()
        return (self.gone or self.ended) and task is not None and task.uncancel() == 0

    def ask(self, supervisor: Supervisor) -> None:
        """Start waiting for the client's going away."""
        self._watcher = supervisor.start(self._ask(), name="gateway-watch")

    async def _ask(self) -> None:
        """Wait for the end; what is left of a body that nobody wants is thrown away."""
        questions = 0
        while questions < _QUESTIONS:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if self._task is not None:
                    self.gone = True
                    self._task.cancel()
                return
            if not message.get("more_body", False):
                questions += 1


class Watch:
    """Asks after the clients of requests that have been running for a while. One per gateway."""

    __slots__ = ("_new", "_old", "_supervisor", "_timer")

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._new: set[Client] = set()
        self._old: set[Client] = set()
        self._timer: asyncio.TimerHandle | None = None

    def statistics(self) -> dict[str, int]:
        return {"waiting": len(self._new) + len(self._old)}

    def add(self, client: Client) -> None:
        """The body of this client's request has been read; from now on it may be asked after."""
        self._new.add(client)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._look)

    def forget(self, client: Client) -> None:
        self._new.discard(client)
        self._old.discard(client)

    def close(self) -> None:
        """No more looks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._new.clear()
        self._old.clear()

    def _look(self) -> None:
        due, self._old, self._new = self._old, self._new, set()
        self._timer = asyncio.get_running_loop().call_later(TICK, self._look) if self._old else None
        for client in due:
            client.ask(self._supervisor)
