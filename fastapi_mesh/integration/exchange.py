"""One request at a node's application, and how it ends when its deadline, its client or the process does before it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyio import to_thread

from fastapi_mesh.core.events import HandlerAbandoned, HandlerCancelled
from fastapi_mesh.integration.read_ahead import DISCONNECT, ReadAhead

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.types import Message, Receive, Scope, Send

    from fastapi_mesh.core.clock import Timer
    from fastapi_mesh.core.context import Inbound
    from fastapi_mesh.integration.streams import Streams

GRACE = 1.0
"""Seconds in which an application may end by itself once it was told that its client is gone."""
LOOK_AFTER = 0.05
"""Seconds after which we look whether the client is still there, so that quick handlers don't pay for it."""
FIRST_WAIT, LONGEST_WAIT = 0.01, 1.0
"""Seconds between two looks whether a handler has come back from its thread; they double."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.1: whoever asked for nothing but an answer needs none once they are gone."""
_IN_THREAD = to_thread.run_sync.__code__


class Exchange:
    """`receive` and `send` of one HTTP request, for the application inside.

    `over` is why nobody waits for the answer any more: `deadline`, `disconnect`, `shutdown`, or "" while somebody does.
    Then the task of the handler is cancelled, once (so that its cleanup may wait), unless it waits for a thread: a
    thread can't be ended, so the handler is cancelled when it comes back. Where no head was sent yet, the answer to a
    passed deadline is sent by `answer_late` at once, and what the application sends later is dropped. Nothing is
    cancelled after the last byte.

    `end` ends an answer of `text/event-stream`: `receive` says that the client is gone, and what the application still
    sends reaches it; after GRACE seconds its task is cancelled. `close` completes the answer then.
    """

    __slots__ = (
        "_ahead",
        "_alarm",
        "_answer_late",
        "_cut",
        "_heeds",
        "_inbound",
        "_look",
        "_receive",
        "_running",
        "_scope",
        "_send",
        "_streams",
        "_task",
        "_timer",
        "_waiting",
        "_woken",
        "answering",
        "complete",
        "ended",
        "over",
        "started",
    )

    def __init__(
        self,
        streams: Streams,
        scope: Scope,
        receive: Receive,
        send: Send,
        inbound: Inbound,
        *,
        heeds: bool,
        answer_late: Callable[[Scope, Inbound, Send], Coroutine[Any, Any, None]],
    ) -> None:
        """`heeds`: the handler is cancelled when its client goes away."""
        self._streams = streams
        self._scope = scope
        self._receive = receive
        self._send = send
        self._inbound = inbound
        self._heeds = heeds
        self._answer_late = answer_late
        self._task = asyncio.current_task()
        self._waiting: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._ahead: ReadAhead | None = None
        self._running = False
        self._woken = False
        self._cut = False
        self.answering: asyncio.Task[None] | None = None
        self.complete = False
        self.started = False
        self.ended = False
        self.over = ""
        clock = streams.clock
        deadline = inbound.deadline
        self._alarm: Timer | None = None
        if deadline is not None:
            self._alarm = clock.call_later(deadline - clock.now(), self._expire)
        self._look: Timer | None = clock.call_later(LOOK_AFTER, self._look_out) if heeds else None

    async def receive(self) -> Message:
        if self.ended:
            return self._goodbye()
        task = self._waiting = asyncio.current_task()
        try:
            ahead = self._ahead
            message = await (self._receive() if ahead is None else ahead.next())
        except asyncio.CancelledError:
            if self._woken and task is not None and task.uncancel() == 0:
                return self._goodbye()
            raise
        finally:
            self._waiting = None
        if self._heeds:
            if message["type"] == DISCONNECT:
                self._told()
            elif self._look is None and not self.complete:
                self._look = self._streams.clock.call_later(LOOK_AFTER, self._look_out)
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        last = kind != "http.response.start" and not message.get("more_body", False) and kind in _LAST
        if last:
            self.finish()
            self._inbound.deadline = None  # what a background task does is none of the caller's business
            self._inbound.gone = False
        if self.answering is not None:
            return  # another answer was sent
        self.started = True
        if kind == "http.response.start":
            if self._inbound.head_only and self._alarm is not None:
                self._alarm.cancel()
                self._alarm = self._inbound.deadline = None
            if _is_event_stream(message):
                self._running = True
                self._streams.add(self)
        elif self._running and last:
            self._running = False
            self._streams.discard(self)
        await self._send(message)

    def end(self) -> None:
        """Tell the application that its client is gone, and give it GRACE seconds."""
        if self.ended:
            return
        self.ended = True
        self.over = self.over or "shutdown"
        if self._waiting is not None:
            self._woken = True
            self._waiting.cancel()
        self._grace()

    def was_cancelled(self) -> bool:
        """Whether the CancelledError at hand is ours, and nobody else's too."""
        if not self._cut or self._task is None:
            return False
        self._cut = False
        return self._task.uncancel() == 0

    async def release(self) -> None:
        """The application is through, or gave up."""
        self.finish()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            self._streams.discard(self)
        if self._cut and self._task is not None:  # it did not heed
            self._cut = False
            self._task.uncancel()
        if self.answering is not None:
            await self.answering

    async def close(self) -> None:
        """Complete an answer that was ended, unless the application has."""
        if self._running:
            self._running = False
            await self._send({"type": "http.response.body", "body": b""})

    def _goodbye(self) -> Message:
        return {"type": DISCONNECT}

    def finish(self) -> None:
        """The application has sent its last byte, or has ended: nothing is left to cancel."""
        if self.complete:
            return
        self.complete = True
        for timer in (self._alarm, self._look):
            if timer is not None:
                timer.cancel()
        self._alarm = self._look = None
        if self._ahead is not None:
            self._ahead.stop()

    # The client

    def _look_out(self) -> None:
        """The handler takes its time: read on in its place, unless it does so itself."""
        self._look = None
        if self._waiting is not None or self.complete:
            return
        if self._ahead is None:
            self._ahead = ReadAhead(self._receive, self._streams.start, self._went_away)
        self._ahead.watch()

    def _went_away(self) -> None:
        if not self.complete and not self.over:
            self._inbound.gone = True
            self._abort("disconnect")

    def _told(self) -> None:
        """The application knows from `receive` that its client is gone, and may end by itself."""
        if not self.complete and not self.over:
            self._inbound.gone = True
            self.over = "disconnect"
            self._grace()

    # The end

    def _grace(self) -> None:
        if self._timer is None:
            self._timer = self._streams.clock.call_later(GRACE, self._cancel)

    def _expire(self) -> None:
        """The deadline has passed."""
        self._alarm = None
        if self.over:
            return
        if not self.started:
            self.answering = self._streams.start(self._answer_late(self._scope, self._inbound, self._send), "deadline")
        self._abort("deadline")

    def _abort(self, cause: str) -> None:
        if not self.over:
            self.over = cause
            self._interrupt(FIRST_WAIT, noticed=False)

    def _interrupt(self, wait: float, *, noticed: bool) -> None:
        """Cancel the handler, as soon as it does not wait for a thread."""
        if self.complete or self._cut or self._task is None:
            return
        clock = self._streams.clock
        if not _waits_for_thread(self._task):
            self._streams.observer(HandlerCancelled(self.over))
            self._cut = True
            self._task.cancel()
            if not noticed:
                self._alarm = clock.call_later(GRACE, self._unheeded)
            return
        if not noticed:
            self._unheeded()
        following = min(2 * wait, LONGEST_WAIT)
        self._alarm = clock.call_later(wait, lambda: self._interrupt(following, noticed=True))

    def _unheeded(self) -> None:
        self._streams.observer(HandlerAbandoned(self.over))

    def _cancel(self) -> None:
        self._timer = None
        self._interrupt(FIRST_WAIT, noticed=False)


_LAST = frozenset({"http.response.body", "http.response.pathsend"})
"""The messages that can be the last of an answer."""


def _waits_for_thread(task: asyncio.Task[Any]) -> bool:
    """Whether what `task` awaits in the end is anyio's worker thread, as for a `def` handler or dependency.

    Its place in the pool is free again only when the thread is; cancelled, it would be given away before.
    """
    waits: object = task.get_coro()
    while waits is not None:
        if getattr(waits, "cr_code", None) is _IN_THREAD:
            return True
        waits = getattr(waits, "cr_await", None)
    return False


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
