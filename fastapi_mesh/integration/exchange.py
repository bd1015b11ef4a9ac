"""One request at a node's application, and how it ends when the process does before it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.service_mesh.life import NodeLife

GRACE = 1.0
"""Seconds in which an application may end a stream itself once it was told that its client is gone."""


class Streams:
    """The running exchanges of a node that have no end of their own."""

    def __init__(self, life: NodeLife, clock: Clock) -> None:
        self.clock = clock
        self._life = life
        self._running: set[Exchange] = set()
        life.on_end_streams(self._end)

    def add(self, exchange: Exchange) -> None:
        """Make it known until `discard`; when the process ends already, it is ended at once."""
        self._running.add(exchange)
        if self._life.ending:
            exchange.end()

    def discard(self, exchange: Exchange) -> None:
        self._running.discard(exchange)

    def _end(self) -> None:
        for exchange in list(self._running):
            exchange.end()


class Exchange:
    """`receive` and `send` of one HTTP request, for the application inside.

    `end` ends an answer of `text/event-stream`: `receive` says that the client is gone, and what the application still
    sends reaches it; after GRACE seconds its task is cancelled. `close` completes the answer then.
    """

    __slots__ = (
        "_cut",
        "_receive",
        "_running",
        "_send",
        "_streams",
        "_task",
        "_timer",
        "_waiting",
        "_woken",
        "ended",
        "started",
    )

    def __init__(self, streams: Streams, receive: Receive, send: Send) -> None:
        self._streams = streams
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._waiting: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._running = False
        self._woken = False
        self._cut = False
        self.started = False
        self.ended = False

    async def receive(self) -> Message:
        if self.ended:
            return self._goodbye()
        task = self._waiting = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if self._woken and task is not None and task.uncancel() == 0:
                return self._goodbye()
            raise
        finally:
            self._waiting = None

    async def send(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start":
            if _is_event_stream(message):
                self._running = True
                self._streams.add(self)
        elif self._running and not message.get("more_body", False):
            self._running = False
            self._streams.discard(self)
        await self._send(message)

    def end(self) -> None:
        """Tell the application that its client is gone, and give it GRACE seconds."""
        if self.ended:
            return
        self.ended = True
        if self._waiting is not None:
            self._woken = True
            self._waiting.cancel()
        self._timer = self._streams.clock.call_later(GRACE, self._cancel)

    def was_cancelled(self) -> bool:
        """Whether the CancelledError at hand is that of the end of the grace, and nobody else's too."""
        return self._cut and self._task is not None and self._task.uncancel() == 0

    def release(self) -> None:
        """The application is through, or gave up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            self._streams.discard(self)

    async def close(self) -> None:
        """Complete an answer that was ended, unless the application has."""
        if self._running:
            self._running = False
            await self._send({"type": "http.response.body", "body": b""})

    def _goodbye(self) -> Message:
        return {"type": "http.disconnect"}

    def _cancel(self) -> None:
        self._timer = None
        if self._task is not None:
            self._cut = True
            self._task.cancel()


def _is_event_stream(head: Message) -> bool:
    """Whether this is the head of an answer of server-sent events without a Content-Length."""
    found = False
    for name, value in head.get("headers", ()):
        if name == b"content-type":
            found = value[:17].lower() == b"text/event-stream"
            if not found:
                return False
        elif name == b"content-length":
            return False
    return found
