"""One exchange: a request on a connection and the answer to it, whose body it is the source of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import REPLAY_LIMIT
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.message import Header, Request
    from fastapi_mesh.wire.h1.connection import H1Connection

HIGH_WATER = 256 * 1024
"""Bytes of a body that wait to be read; above it the connection is no longer read from."""
SWITCHED = 101
HOLD_TIME = 0.05
"""Seconds that a held answer is waited for after its head."""


class Exchange:
    """A request in progress, then the BodySource of its response. Made by `H1Wire`, fed by `H1Connection`.

    `connection` is set as long as the message is on the wire; after that everything there is to know is in here, and
    the connection already serves somebody else. `waiter` is the future that the caller waits on, for the head or for
    more of the body. `sending` is True while the request body is not complete on the wire; `answer_within` is seconds
    that the head may take after that, None where another deadline stands.
    """

    __slots__ = (
        "_buffered",
        "_hold",
        "_idle_timeout",
        "_loop",
        "_send_waiter",
        "_timer",
        "answer_within",
        "complete",
        "connection",
        "continued",
        "error",
        "headers",
        "parts",
        "sender",
        "sending",
        "service",
        "stale",
        "started",
        "status",
        "to_head",
        "upgrade",
        "waiter",
    )

    def __init__(
        self,
        connection: H1Connection,
        request: Request,
        loop: asyncio.AbstractEventLoop,
        waiter: asyncio.Future[None],
        upgrade: bool,
    ) -> None:
        context = request.context
        self.connection: H1Connection | None = connection
        self.service = request.service
        self.to_head = request.method == b"HEAD"
        self.upgrade = upgrade
        self.status = 0
        self.headers: list[Header] = []
        self.parts: list[bytes] = []
        self.complete = False
        self.error: Exception | None = None
        self.started = False
        self.stale = False
        self.answer_within: float | None = None
        self.continued = False
        self.sending = False
        self.sender: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = waiter
        self._loop = loop
        self._hold = context.hold
        self._idle_timeout = context.policy.idle_timeout
        self._buffered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._send_waiter: asyncio.Future[None] | None = None

    # What the connection reports.

    def on_continue(self) -> None:
        """`100 Continue` came, perhaps before the task that sends the body has begun to wait for it (uvloop)."""
        self.continued = True
        self.wake_sender()

    def on_early_head(self) -> None:
        """The final head came while the body was being sent: what is left of it is of no interest any more."""
        self._stop_timer()
        self._stop_sender()

    def on_progress(self, length: int, size: int) -> bool:
        """The head is here, and `size` bytes more, but not all: wake the caller, or hold a short answer a little.

        True when so much waits to be read that the connection shall stop reading.
        """
        if self._hold:
            if 0 <= length <= REPLAY_LIMIT:
                if self._timer is None:
                    self._timer = self._loop.call_later(HOLD_TIME, self._end_hold)
                return False
            self._hold = False
        if self.waiter is not None:
            self._wake()
            return False
        self._buffered += size
        return self._buffered > HIGH_WATER

    def on_upgrade(self) -> None:
        """The connection switched to another protocol: a byte stream from here on."""
        self.on_early_head()
        self._hold = False
        self._wake()

    def on_complete(self) -> None:
        """The message is complete on the wire and the connection no longer ours."""
        self.connection = None
        self.complete = True
        waiter = self.waiter
        if self._timer is not None or self.sender is not None or self._send_waiter is not None:
            self._settle()
        elif waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End it with `error`, closing the connection; nothing happens if it has ended already."""
        connection = self.connection
        if connection is None:
            return
        self.connection = None
        self.error = error
        connection.abort()
        self._settle()

    def lose(self, error: UpstreamConnectionError) -> None:
        """End it with an error of ours about the connection, whose attributes are filled in."""
        error.service = self.service
        error.request_sent = True
        error.response_started = self.status != 0
        self.fail(error)

    def expire(self) -> None:
        """The deadline of the attempt passed before the head came."""
        self.fail(UpstreamTimeoutError("no answer in time", service=self.service, phase="headers"))

    def outlast(self) -> None:
        """The body has been coming for as long as it may."""
        self.fail(UpstreamTimeoutError("the answer took too long to come", service=self.service, phase="read"))

    def limit_duration(self, seconds: float) -> None:
        """Let the rest of the body take `seconds` at most."""
        self._timer = self._loop.call_later(seconds, self.outlast)

    def hang_up(self) -> None:
        """Close an upgraded stream in good order: what was written still goes out."""
        connection = self.connection
        if connection is not None:
            self.connection = None
            self.error = UpstreamConnectionError("the stream is closed", service=self.service)
            connection.close()
            self._settle()

    # BodySource.

    @property
    def at_end(self) -> bool:
        return self.complete and not self.parts

    async def read(self) -> bytes:
        """The next part, as much as is here; b"" at the end. Waits `idle_timeout` at most."""
        parts = self.parts
        while not parts:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait_readable()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        if self.connection is not None:
            self.connection.resume_reading()
        return data

    async def aclose(self) -> None:
        """Give up whatever is left; an answer that is not complete costs the connection."""
        self.parts.clear()
        if self.status == SWITCHED:
            self.hang_up()
        elif self.connection is not None:
            self.lose(UpstreamConnectionError("the response was closed before its end"))

    # The sending side, driven by `sender.py`.

    def on_sent(self) -> None:
        """The request body is complete on the wire; with `answer_within` the head must come so many seconds later."""
        if self.sending and self.answer_within is not None and not self.status:
            self._timer = self._loop.call_later(self.answer_within, self.expire)
        self.sending = False

    async def wait_writable(self) -> None:
        """Wait until the instance takes more. On a timeout, and when all is over, `connection` is None."""
        await self._wait_sender(self._write_timeout, self._idle_timeout)

    async def wait_continue(self, timeout: float) -> None:
        """Wait for `100 Continue`, `timeout` seconds at most (RFC 9110 section 10.1.1)."""
        if not self.continued:
            await self._wait_sender(self.wake_sender, timeout)

    def wake_sender(self) -> None:
        waiter = self._send_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Private.

    async def _wait_sender(self, callback: Callable[[], None], timeout: float) -> None:
        if self._send_waiter is not None:  # another writer of an upgraded stream waits already
            await asyncio.wait((self._send_waiter,))
            return
        self._send_waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout, callback)
        try:
            await waiter
        finally:
            self._send_waiter = None
            timer.cancel()

    async def _wait_readable(self) -> None:
        if self.waiter is not None:
            raise RuntimeError("two tasks read the same response")
        self.waiter = waiter = self._loop.create_future()
        timer = None
        if self.status != SWITCHED:
            timer = self._loop.call_later(self._idle_timeout, self._read_timeout)
        try:
            await waiter
        except asyncio.CancelledError:
            await self.aclose()
            raise
        finally:
            self.waiter = None
            if timer is not None:
                timer.cancel()

    def _read_timeout(self) -> None:
        self.fail(UpstreamTimeoutError("the answer stopped coming", service=self.service, phase="read"))

    def _write_timeout(self) -> None:
        self.fail(UpstreamTimeoutError("the request body is not taken", service=self.service, phase="write"))

    def _end_hold(self) -> None:
        self._timer = None
        self._hold = False
        self._wake()

    def _settle(self) -> None:
        """All is over: end the timer and the sender, and wake whoever waits."""
        self._stop_timer()
        if self.sender is not None:
            self._stop_sender()
        self.wake_sender()
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_sender(self) -> None:
        sender, self.sender = self.sender, None
        if sender is not None:
            sender.cancel()

    def _wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
