"""One HTTP/2 stream: a request in progress, and then the source of its response's body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import REPLAY_LIMIT
from fastapi_mesh.exceptions import InvalidRequestError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.fields import content_length

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from fastapi_mesh.core.message import Header, Request
    from fastapi_mesh.wire.h2.connection import H2Connection

HOLD_TIME = 0.05
"""Seconds that a held answer is waited for after its head."""


class Stream:
    """Made by `Http2Wire`, fed by `H2Connection`; a BodySource once the head is here.

    `connection` is set while the stream is open on it. `complete` is True when the instance has ended its message,
    `error` is what ended it otherwise; `sent` is True when the request is. `sender` is the task that sends its body.
    """

    __slots__ = (
        "_bodiless",
        "_hold",
        "_idle_timeout",
        "_loop",
        "_reader",
        "_timer",
        "_unread",
        "_writer",
        "complete",
        "connection",
        "error",
        "headers",
        "id",
        "parts",
        "sender",
        "sent",
        "service",
        "status",
    )

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.service = request.service
        self.connection: H2Connection | None = None
        self.id = 0
        self.status = 0
        self.headers: list[Header] = []
        self.parts: list[bytes] = []
        self.complete = False
        self.error: Exception | None = None
        self.sender: asyncio.Task[None] | None = None
        self.sent = False
        self._bodiless = request.method == b"HEAD"
        self._loop = loop
        self._hold = request.context.hold
        self._idle_timeout = request.context.policy.idle_timeout
        self._unread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # What the connection reports.

    def on_head(self, status: int, headers: list[Header]) -> None:
        """The final head came. Raises ValueError when it has no valid length."""
        length = content_length(headers)
        self.status = status
        self.headers = headers
        self._bodiless = self._bodiless or status in (204, 304)
        if self._hold and length is not None and length <= REPLAY_LIMIT:
            self._timer = self._loop.call_later(HOLD_TIME, self._end_hold)
        else:
            self._hold = False
            self._wake()

    def on_data(self, data: bytes, size: int) -> None:
        """A part of the body came, `size` bytes of the flow-control windows."""
        self._unread += size
        if data and not self._bodiless:  # RFC 9110 section 6.4.1
            self.parts.append(data)
        if not self._hold:
            self._wake()

    def on_end(self) -> None:
        """The instance ended its message; the stream is closed by the connection."""
        self.connection = None
        self.complete = True
        self._settle()

    def on_writable(self) -> None:
        """A window or the socket has room again, or there is nothing to wait for any more."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def fail(self, error: Exception) -> None:
        """End it with `error`, resetting the stream; nothing happens if it has ended already."""
        connection = self.connection
        if connection is None:
            return
        self.connection = None
        self.error = error
        connection.reset(self)
        self._settle()

    def lose(self, error: UpstreamConnectionError, *, sent: bool = True) -> None:
        """End it with an error about the connection, whose attributes are filled in."""
        error.service = self.service
        error.request_sent = sent
        error.response_started = self.status != 0
        self.fail(error)

    # The caller's side.

    async def wait_head(self, timeout: float | None) -> None:
        """Wait for the head, `timeout` seconds at most; raises what ended the stream before."""
        expire = partial(self._expire, "headers", "no answer in time")
        timer = None if timeout is None else self._loop.call_later(timeout, expire)
        try:
            while self.error is None and not self.complete and (self._hold or not self.status):
                await self._wait()
        finally:
            if timer is not None:
                timer.cancel()
        if self.error is not None and (self._hold or not self.status):
            if self.sender is not None:
                await asyncio.wait((self.sender,))
            raise self.error
        self._hold = False

    def limit_duration(self, seconds: float) -> None:
        """Let the rest of the body take `seconds` at most."""
        if not self.complete and self.error is None:
            expire = partial(self._expire, "read", "the answer took too long to come")
            self._timer = self._loop.call_later(seconds, expire)

    @property
    def at_end(self) -> bool:
        return self.complete and not self.parts

    async def read(self) -> bytes:
        """The next part, as much as is here; b"" at the end. Waits `idle_timeout` at most."""
        while not self.parts:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            self._acknowledge()
            expire = partial(self._expire, "read", "the answer stopped coming")
            timer = self._loop.call_later(self._idle_timeout, expire)
            try:
                await self._wait()
            finally:
                timer.cancel()
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        self._acknowledge()
        return data

    async def aclose(self) -> None:
        """Give up whatever is left: the stream is reset, the connection goes on."""
        self.parts.clear()
        self.lose(UpstreamConnectionError("the response was closed before its end"))

    # The sending side.

    async def send_body(self, body: bytes | AsyncIterable[bytes], stated: int | None) -> None:
        """Send the request's body, whose Content-Length says `stated`; an error of the body ends the stream."""
        try:
            if isinstance(body, bytes):
                await self._send(body, end=True)
            else:
                await self._send_parts(body, stated)
        except Exception as error:  # the caller's own iterator may raise anything, and gets it back unchanged
            self.fail(error)
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()

    async def _send_parts(self, body: AsyncIterable[bytes], stated: int | None) -> None:
        size = 0
        async for part in body:
            size += len(part)
            if stated is not None and size > stated:
                raise InvalidRequestError("the request's body is longer than its content-length", service=self.service)
            if part:
                await self._send(part, end=False)
        if stated is not None and size < stated:
            raise InvalidRequestError("the request's body is shorter than its content-length", service=self.service)
        await self._send(b"", end=True)

    async def _send(self, data: bytes, *, end: bool) -> None:
        """Send all of `data` as the windows and the socket allow."""
        position = 0
        while (connection := self.connection) is not None:
            room = connection.room(self)
            left = len(data) - position
            if left and not room:
                await self._wait_writable()
                continue
            chunk = data[position : position + room]
            position += len(chunk)
            last = position == len(data)
            connection.send_data(self, chunk, end=end and last)
            if last:
                return

    async def _wait_writable(self) -> None:
        expire = partial(self._expire, "write", "the request's body is not taken")
        self._writer = self._loop.create_future()
        timer = self._loop.call_later(self._idle_timeout, expire)
        try:
            await self._writer
        finally:
            self._writer = None
            timer.cancel()

    # Private.

    async def _wait(self) -> None:
        self._reader = self._loop.create_future()
        try:
            await self._reader
        except asyncio.CancelledError:
            self.lose(UpstreamConnectionError("the call was cancelled"))
            raise
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _acknowledge(self) -> None:
        """Give what was read back to the flow-control windows."""
        if self._unread and self.connection is not None:
            unread, self._unread = self._unread, 0
            self.connection.acknowledge(self, unread)

    def take_unread(self) -> int:
        """Bytes of the windows that nobody will give back by reading."""
        unread, self._unread = self._unread, 0
        return unread

    def _expire(self, phase: str, text: str) -> None:
        connection = self.connection
        self.fail(UpstreamTimeoutError(text, service=self.service, phase=phase))
        if connection is not None:
            connection.probe()

    def _end_hold(self) -> None:
        self._timer = None
        self._hold = False
        self._wake()

    def _settle(self) -> None:
        """All is over: end the timer and the sender, and wake whoever waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.sender is not None and self.sender is not asyncio.current_task(self._loop):
            self.sender.cancel()
        self.on_writable()
        self._wake()
