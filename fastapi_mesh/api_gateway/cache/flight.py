"""Single flight: of several requests for the same answer one asks the service, and the others wait for the cache.

Nobody is handed somebody else's answer. Who waited looks into the cache again, by the rules that hold for itself: what
was not stored, or not for it, it doesn't get, and asks the service on its own.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MEMORY = 1024
"""Keys at most whose answers are known not to be stored; the oldest go."""
MEMORY_SECONDS = 60.0


class Landing(Enum):
    """How a flight ended, for those who wait."""

    STORED = "stored"
    UNSHARED = "unshared"
    """The answer is for nobody else."""
    LOST = "lost"
    """There is no answer: whoever asked went away, or the service failed. Another one may try."""
    LATE = "late"
    """Don't wait any longer: there may be one later, or it could not be kept."""


class Flight:
    """One request under way, and those who wait for what comes of it. `land` may be called again and does nothing."""

    __slots__ = ("_flights", "_key", "_landed", "_waiting")

    def __init__(self, flights: Flights, key: Hashable) -> None:
        self._flights = flights
        self._key = key
        self._landed = False
        self._waiting: list[asyncio.Future[Landing]] = []

    def land(self, how: Landing) -> None:
        if self._landed:
            return
        self._landed = True
        self._flights.landed(self._key, self, how)
        for future in self._waiting:
            if not future.done():
                future.set_result(how)
        self._waiting.clear()

    async def wait(self, timeout: float) -> Landing:
        """How it ends, LATE after `timeout` seconds."""
        if self._landed:
            return Landing.LOST
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Landing] = loop.create_future()
        self._waiting.append(future)
        timer = loop.call_later(timeout, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            if not self._landed:
                self._waiting.remove(future)


def _expire(future: asyncio.Future[Landing]) -> None:
    if not future.done():
        future.set_result(Landing.LATE)


class Flights:
    """All flights of a cache, by key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._running: dict[Hashable, Flight] = {}
        self._unshared: dict[Hashable, float] = {}
        self.clock = clock
        self._waits = 0

    def statistics(self) -> dict[str, int]:
        """Flights under way, and how many requests have waited for one so far."""
        return {"flights": len(self._running), "waits": self._waits}

    def running(self, key: Hashable) -> Flight | None:
        """The flight that a request could wait for. None also where waiting is known to be in vain."""
        return self._running.get(key)

    def start(self, key: Hashable, *, doubted: bool = True) -> Flight | None:
        """A flight of one's own, to be landed in any case; None where there is one, or nobody should wait because the
        last answers were not to be stored (unless `doubted` is False).
        """
        if key in self._running:
            return None
        until = self._unshared.get(key) if doubted else None
        if until is not None:
            if self.clock() < until:
                return None
            del self._unshared[key]
        flight = self._running[key] = Flight(self, key)
        return flight

    async def wait(self, flight: Flight, timeout: float) -> Landing:
        self._waits += 1
        return await flight.wait(timeout)

    def landed(self, key: Hashable, flight: Flight, how: Landing) -> None:
        """Said by the flight itself."""
        if self._running.get(key) is flight:
            del self._running[key]
        if how is Landing.UNSHARED:
            self._unshared.pop(key, None)
            if len(self._unshared) >= MEMORY:
                del self._unshared[next(iter(self._unshared))]
            self._unshared[key] = self.clock() + MEMORY_SECONDS
