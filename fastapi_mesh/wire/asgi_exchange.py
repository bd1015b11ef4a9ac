"""One request in an ASGI application of this process: what the application is given, and what its caller reads.

The application runs in its own task and calls `receive` and `send`; the caller waits for the head and reads the body.
Neither side runs ahead: the request's parts are read when the application asks for them, and its `send` waits while
the reader of the response is behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import REPLAY_LIMIT
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import (
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.fields import content_length, end_to_end

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.instance import ASGIApp, Message
    from fastapi_mesh.core.message import ByteStream, Header, Request

logger = logging.getLogger("fastapi_mesh.asgi")

HIGH_WATER = 64 * 1024
"""Bytes of a response that wait for its reader; at this many, the application's `send` waits too."""
MOST_CHUNKS = 16
"""Parts of a response that wait for its reader, likewise."""
HOLD_TIME = 0.05
"""Most seconds for an answer to be complete: an empty one, or a short one where `context.hold` asks for it."""
FAREWELL = 0.1
"""Seconds for an application that hears of the disconnect in `receive` or `send` to end by itself; then cancelled."""


class Exchange:
    """One request in an application, and the source of its response's body."""

    __slots__ = (
        "_bodiless",
        "_body",
        "_body_read",
        "_chunks",
        "_clock",
        "_error",
        "_finished",
        "_gone",
        "_head",
        "_hold",
        "_idle_timeout",
        "_left",
        "_lifetime",
        "_listening",
        "_longest",
        "_over",
        "_parts",
        "_reader",
        "_reading",
        "_scope",
        "_sent",
        "_size",
        "_stated",
        "_vacant",
        "service",
        "task",
        "upgrade",
    )

    def __init__(self, request: Request, scope: Message, clock: Clock) -> None:
        context = request.context
        self.service = request.service
        self.task: asyncio.Task[None] | None = None
        self.upgrade: ByteStream | None = None
        self._scope = scope
        self._clock = clock
        self._idle_timeout: float | None = context.policy.idle_timeout
        self._longest = context.policy.max_stream_duration
        self._lifetime: Timer | None = None
        self._hold = context.hold
        # the request's way in
        self._body = request.body
        self._parts = None if isinstance(request.body, bytes) else aiter(request.body)
        self._stated = None if self._parts is None else content_length(scope["headers"])
        self._sent = 0
        self._reading = False
        self._body_read = False
        # the response's way out
        self._head: tuple[int, list[Header]] | None = None
        self._bodiless = False
        self._left: int | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._finished = False
        self._error: Exception | None = None
        # who waits
        self._reader: asyncio.Future[None] | None = None
        self._vacant = asyncio.Event()
        self._over = asyncio.Event()
        self._listening = 0
        self._gone = False

    # The application's side: its task, and the two functions it is given.

    async def run(self, app: ASGIApp) -> None:
        """Run the application to its end, whatever it does."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as error:  # a foreign application may raise anything; its caller gets it as the cause
            self.app_ended(error)
        else:
            self.app_ended(None)
        finally:
            if isinstance(self._parts, AsyncGenerator) and not self._reading:
                await self._parts.aclose()

    def app_ended(self, error: BaseException | None) -> None:
        """The application has returned, or has raised `error`."""
        if self._gone:
            if error is not None:
                logger.debug("%s ended after its caller had gone: %r", self.service, error)
        elif self._finished:
            if error is not None:
                logger.error("%s failed after its response was complete", self.service, exc_info=error)
        elif error is None:
            what = "the whole body" if self._head is not None else "a response"
            self._fail(UpstreamProtocolError, f"{self.service} returned without sending {what}")
        else:
            text = (
                "was cancelled"
                if isinstance(error, asyncio.CancelledError)
                else f"raised {type(error).__name__}: {error}"
            )
            self._fail(UpstreamConnectionError, f"{self.service} {text}", error)

    async def receive(self) -> Message:
        """ASGI receive: the request's body part by part, then the end of the exchange."""
        if not (self._body_read or self._gone):
            if self._parts is not None:
                return await self._next_part()
            self._body_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        if not self._finished:
            await self._listen(self._over)
        return {"type": "http.disconnect"}

    async def _next_part(self) -> Message:
        assert self._parts is not None
        self._reading = True
        part = b""
        try:
            while not part:
                part = await anext(self._parts)
        except StopAsyncIteration:
            self._body_read = True
            if self._stated is not None and self._sent < self._stated:
                return self._body_failed(self._misstated("shorter"))
            return {"type": "http.request", "body": b"", "more_body": False}
        except Exception as error:  # the caller's own iterator: its error is the caller's, unchanged
            return self._body_failed(error)
        finally:
            self._reading = False
        self._sent += len(part)
        if self._stated is not None and self._sent > self._stated:
            return self._body_failed(self._misstated("longer"))
        return {"type": "http.request", "body": part, "more_body": True}

    def _misstated(self, how: str) -> InvalidRequestError:
        return InvalidRequestError(f"the request's body is {how} than its content-length", service=self.service)

    def _body_failed(self, error: Exception) -> Message:
        """The request can't be completed: for the application, that is a client that went away in the middle."""
        self._body_read = True
        if self._error is None:
            self._error = error
        self.abandon(told=True)
        self._wake()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI send. Raises ConnectionAbortedError once the caller has gone (an OSError, as HTTP 2.4 wants it)."""
        self._check_connected()
        kind = message["type"]
        if self._head is None and kind == "http.response.start":
            self._begin(message)
        elif self._head is not None and kind == "http.response.body" and not self._finished:
            await self._take_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"the application sent {kind!r} where it has no place")

    def _begin(self, message: Message) -> None:
        status = message["status"]
        try:
            headers = end_to_end(message.get("headers", ()))
            length = content_length(headers)
            if not 200 <= status <= 599:
                raise ValueError(f"{status} is no status of a response")
        except ValueError as error:
            self._fail(UpstreamProtocolError, f"the response of {self.service} is not valid: {error}")
            raise RuntimeError(str(error)) from error
        self._bodiless = status in (204, 304) or self._scope.get("method") == "HEAD"
        self._left = None if self._bodiless else length
        short = self._left is not None and self._left <= REPLAY_LIMIT
        # An application that has no body to send gets the moment too: else closing the response would disturb its end.
        self._hold = self._bodiless or (self._hold and short)
        self._head = (status, headers)
        self._wake()

    async def _take_body(self, data: bytes, more: bool) -> None:
        data = b"" if self._bodiless else bytes(data)  # RFC 9110 section 6.4.1
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                what = "longer" if self._left < 0 else "shorter"
                self._fail(UpstreamProtocolError, f"the body of {self.service} is {what} than its content-length")
                raise RuntimeError(f"the body is {what} than its content-length")
        if data:
            self._chunks.append(data)
            self._size += len(data)
        if not more:
            self._finished = True
            self._over.set()
            self._end_lifetime()
        self._wake()
        if more:
            await self._wait_vacant()

    async def _wait_vacant(self) -> None:
        """Wait while the reader is behind; without data to wait for, still let others run."""
        if self._bodiless:
            await asyncio.sleep(0)
        while not (self._hold or self._gone) and (self._size >= HIGH_WATER or len(self._chunks) >= MOST_CHUNKS):
            self._vacant.clear()
            await self._listen(self._vacant)
        self._check_connected()

    def _check_connected(self) -> None:
        if self._gone:
            raise ConnectionAbortedError("the caller has gone")

    async def _listen(self, event: asyncio.Event) -> None:
        self._listening += 1
        try:
            await event.wait()
        finally:
            self._listening -= 1

    # The caller's side.

    async def respond(self, timeout: float | None) -> Response:
        """Wait for the head, at most `timeout` seconds; with `hold`, also a moment for the rest of a short answer."""
        timer = None
        if timeout is not None:
            timer = self._clock.call_later(
                timeout, partial(self._expire, "headers", f"sent no response for {timeout:g} s")
            )
        try:
            while self._head is None:
                self._raise_error()
                await self._wait()
        finally:
            if timer is not None:
                timer.cancel()
        if self._hold:
            await self._wait_complete()
        if self._longest is not None and not self._finished:
            text = f"took longer than {self._longest:g} s with its body"
            self._lifetime = self._clock.call_later(self._longest, partial(self._expire, "read", text))
        status, headers = self._head
        return Response(status, headers, self, self.upgrade)

    async def _wait_complete(self) -> None:
        timer = self._clock.call_later(HOLD_TIME, self._end_hold)
        try:
            while self._hold and not self._finished and self._error is None:
                await self._wait()
        finally:
            timer.cancel()
        self._hold = False
        self._raise_error()

    def _raise_error(self) -> None:
        """Raise what went wrong before there was a response that could be closed."""
        if self._error is not None:
            self.abandon()
            raise self._error

    def _end_hold(self) -> None:
        self._hold = False
        self._wake()

    @property
    def at_end(self) -> bool:
        return not self._chunks and self._error is None and (self._finished or self._bodiless)

    async def read(self) -> bytes:
        if not self._chunks:
            await self._wait_chunk()
        if not self._chunks:
            return b""
        data = self._chunks.popleft()
        self._size -= len(data)
        self._vacant.set()
        return data

    async def _wait_chunk(self) -> None:
        timer = None
        try:
            while not (self._chunks or self.at_end):
                if self._error is not None:
                    raise self._error
                if self._gone:
                    raise UpstreamConnectionError(
                        "the response was closed before its end",
                        service=self.service,
                        request_sent=True,
                        response_started=True,
                    )
                if timer is None and self._idle_timeout is not None:
                    text = f"sent no part of its body for {self._idle_timeout:g} s"
                    timer = self._clock.call_later(self._idle_timeout, partial(self._expire, "read", text))
                await self._wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        self.abandon()

    def abandon(self, *, told: bool = False) -> None:
        """The caller goes: tell the application (`told`: it just was), and end it unless its response is complete."""
        if self._gone:
            return
        self._gone = True
        self._chunks.clear()
        self._size = 0
        told = told or self._listening > 0
        self._over.set()
        self._vacant.set()
        self._end_lifetime()
        if self.task is None or self._finished or self._bodiless:
            return
        if told:
            asyncio.get_running_loop().call_later(FAREWELL, self.task.cancel)
        else:
            self.task.cancel()

    async def _wait(self) -> None:
        """Wait until the application has done something."""
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        except asyncio.CancelledError:
            self.abandon()
            raise
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _expire(self, phase: str, text: str) -> None:
        if self._error is None:
            self._error = UpstreamTimeoutError(
                f"{self.service} {text}", service=self.service, phase=phase, request_sent=True
            )
        self.abandon()
        self._wake()

    def _end_lifetime(self) -> None:
        if self._lifetime is not None:
            self._lifetime.cancel()

    def _fail(self, kind: type[UpstreamConnectionError], text: str, cause: BaseException | None = None) -> None:
        if self._error is None:
            error = kind(text, service=self.service, request_sent=True, response_started=self._head is not None)
            error.__cause__ = cause
            self._error = error
        self._wake()
