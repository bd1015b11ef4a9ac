"""A bell that wakes whoever watches a backend of this process, in whatever event loop of whatever thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock, Timer


class Bell:
    """`version` counts how often it rang. Safe between threads: test clients run each application in its own."""

    __slots__ = ("_lock", "_waiters", "version")

    def __init__(self) -> None:
        self.version = 0
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake all who wait."""
        with self._lock:
            self.version += 1
            waiters, self._waiters = self._waiters, {}
        for waiter, loop in waiters.items():
            try:
                loop.call_soon_threadsafe(_wake, waiter)
            except RuntimeError:  # that loop is closed, and with it whoever waited there
                continue

    async def wait(self, version: int, *, clock: Clock | None = None, limit: float = 0.0) -> None:
        """Wait until it has rung more than `version` times; with a `clock`, at most `limit` seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if version != self.version:
                return
            self._waiters[waiter] = loop
        timer: Timer | None = clock.call_later(limit, lambda: _wake(waiter)) if clock is not None else None
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._waiters.pop(waiter, None)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
