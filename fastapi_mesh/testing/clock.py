"""A clock that tests turn by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TURNS = 20
"""Event loop turns given to the tasks after each timer, so that what it woke can run to its next wait."""


class _FakeTimer:
    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Virtual monotonic time; nothing passes until `advance`.

    With `skip_sleeps` a `sleep` moves the clock on by itself, so that code which waits does not need to be driven.

    >>> import asyncio
    >>> async def example() -> float:
    ...     clock = FakeClock()
    ...     started = clock.now()
    ...     await clock.advance(60)
    ...     return clock.now() - started
    >>> asyncio.run(example())
    60.0
    """

    def __init__(self, start: float = 1000.0, *, skip_sleeps: bool = False) -> None:
        self._now = start
        self._skip_sleeps = skip_sleeps
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _FakeTimer]] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], object]) -> _FakeTimer:
        timer = _FakeTimer(callback)
        heapq.heappush(self._timers, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    async def sleep(self, delay: float) -> None:
        if delay <= 0 or self._skip_sleeps:
            self._now += max(0.0, delay)
            await asyncio.sleep(0)
            return
        done = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        timer = self.call_later(delay, wake)
        try:
            await done
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: timers run in order, and the tasks they wake run in between."""
        end = self._now + seconds
        await self._settle()
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if timer.cancelled:
                continue
            self._now = max(self._now, due)
            timer.callback()
            await self._settle()
        self._now = end
        await self._settle()

    @staticmethod
    async def _settle() -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
