"""Watches of Consul that their watchers share: who asks when, how often, and what stays when Consul has lost its state.

Consul serves about 200 blocking queries to one client address, so a number of feeds have one each, and those beyond
it are polled in turn.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi_mesh.discovery.consul_api import ConsulError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.control import ControlAnswer, Scalar
    from fastapi_mesh.discovery.consul_api import ConsulApi

V = TypeVar("V")

BURST = 5
"""Queries of one feed that may follow each other at once."""
RATE = 2.0
"""Queries a second of one feed after that, when Consul's index changes all the time."""
POLLS = 10.0
"""Polls a second, of all feeds together that have no blocking query."""
POLL_INTERVAL = 1.0
"""Seconds at least between two polls of one feed."""
LEAST = 4
"""Blocking queries that are made in any case, also when Consul has refused connections."""
CAUTION = 60.0
"""Seconds for which fewer blocking queries are made after such a refusal."""
TOO_MANY = 429
SUSPICION = 0.5
"""Seconds in which all queries fail when the server has died."""


class Limiter:
    """Gives at most `limit` blocking queries to feeds, first come, first served; the others poll in turn.

    Several processes of one machine share Consul's limit without knowing of each other: when Consul refuses a
    connection (429 today, closing it without an answer before), a quarter of the blocking queries here is given up
    for a minute.
    """

    def __init__(self, limit: int, clock: Clock) -> None:
        self._most = self._limit = limit
        self._clock = clock
        self._takers: set[object] = set()
        self._turn = asyncio.Lock()
        self._next = 0.0
        self._cautious_until = 0.0

    @property
    def blocking(self) -> int:
        return len(self._takers)

    def take(self, taker: object) -> bool:
        """Whether `taker` may block, from now on until it gives that back."""
        if taker in self._takers:
            if len(self._takers) <= self._limit:
                return True
            self._takers.discard(taker)
            return False
        if self._limit < self._most and self._clock.now() >= self._cautious_until:
            self._limit = self._most
        if len(self._takers) >= self._limit:
            return False
        self._takers.add(taker)
        return True

    def give(self, taker: object) -> None:
        self._takers.discard(taker)

    def failed(self, error: ConsulError) -> None:
        """A query failed. If Consul has closed a connection and those of the blocking queries stay open, it was one too
        many; if it has died they fail, too.
        """
        if error.answered == TOO_MANY:
            self._refused()
        elif error.dropped:
            self._clock.call_later(SUSPICION, self._refused_if_blocking)

    def _refused_if_blocking(self) -> None:
        if len(self._takers) > LEAST:
            self._refused()

    def _refused(self) -> None:
        self._limit = max(LEAST, len(self._takers) * 3 // 4)
        self._cautious_until = self._clock.now() + CAUTION

    async def wait_turn(self) -> None:
        """Wait until one more poll may be made."""
        async with self._turn:
            if (delay := self._next - self._clock.now()) > 0:
                await self._clock.sleep(delay)
            self._next = self._clock.now() + 1.0 / POLLS


@dataclass(frozen=True, slots=True)
class Terms:
    """What the feeds of one backend have in common; a blocking query waits `wait` seconds."""

    api: ConsulApi
    limiter: Limiter
    clock: Clock
    wait: float


@dataclass(frozen=True, slots=True)
class Source(Generic[V]):
    """What a feed watches.

    `parse` makes the values of an answer by key (of None: there is nothing), and raises ConsulError for one that isn't
    Consul's. `hold` and `supersedes`: see `Feed`.
    """

    path: str
    parse: Callable[[ControlAnswer | None], Mapping[str, V]]
    params: tuple[tuple[str, Scalar], ...] = ()
    hold: float = 0.0
    supersedes: Callable[[V, V], bool] | None = None


class Feed(Generic[V]):
    """One path that is watched, and what it gave: `values` by key. Of all its watchers one asks, for the others too.

    When less than half is left after an interruption (an error, or an index that went back), a server has probably
    lost its state: what has vanished stays for `hold` seconds, in which those who are still there register anew; a
    value that `supersedes` a held one ends it at once.
    """

    def __init__(self, terms: Terms, source: Source[V]) -> None:
        self.users = 0
        self.left_at = 0.0
        self.version = 0
        self.values: Mapping[str, V] = {}
        self._api = terms.api
        self._limiter = terms.limiter
        self._clock = clock = terms.clock
        self._wait = terms.wait
        self._source = source
        self._turn = asyncio.Lock()
        self._index = 0
        self._fresh = False
        self._plain: Mapping[str, V] = {}
        self._held: dict[str, V] = {}
        self._hold_until = 0.0
        self._allowance = float(BURST)
        self._asked_at = clock.now()

    async def wait_newer(self, version: int) -> int:
        """Wait until there are values newer than `version` (0: none seen yet); returns theirs. Raises ConsulError."""
        if not self._fresh or self.version == version:
            async with self._turn:
                if self.version == version or not self._fresh:  # as before we had to wait for our turn
                    await self._ask()
        return self.version

    def close(self) -> None:
        """Nobody watches any more."""
        self._limiter.give(self)
        self._fresh = False

    async def _ask(self) -> None:
        try:
            index, wait = 0, 0.0
            if self._fresh:
                index, wait = await self._pause()
            answer = await self._api.query(self._source.path, self._source.params, index=index, wait=wait)
            if self._fresh and answer.index == self._index and not self._held:
                return
            plain = self._source.parse(answer.content)
        except ConsulError as error:
            self._limiter.give(self)
            self._limiter.failed(error)
            self._fresh = False
            raise
        interrupted = not self._fresh or answer.index < self._index
        self._index = answer.index
        self._fresh = True
        self._accept(plain, interrupted=interrupted)

    async def _pause(self) -> tuple[int, float]:
        """Wait until the next query may be made; the index and the time with which it is to block (0: it isn't)."""
        if not self._limiter.take(self):
            if (delay := self._asked_at + POLL_INTERVAL - self._clock.now()) > 0:
                await self._clock.sleep(delay)
            await self._limiter.wait_turn()
            self._asked_at = self._clock.now()
            return 0, 0.0
        now = self._clock.now()
        self._allowance = min(float(BURST), self._allowance + (now - self._asked_at) * RATE)
        self._asked_at = now
        if self._allowance < 1.0:
            await self._clock.sleep((1.0 - self._allowance) / RATE)
            self._asked_at, self._allowance = self._clock.now(), 1.0
        self._allowance -= 1.0
        wait = self._wait
        if self._held:
            wait = max(0.1, min(wait, self._hold_until - self._clock.now()))
        return self._index, wait

    def _accept(self, plain: Mapping[str, V], *, interrupted: bool) -> None:
        now = self._clock.now()
        left = sum(key in plain for key in self._plain)
        if interrupted and self._source.hold and 2 * left < len(self._plain):
            self._held = {**self._held, **self._plain}
            self._hold_until = now + self._source.hold
        if now >= self._hold_until:
            self._held = {}
        supersedes = self._source.supersedes
        self._held = {
            key: held
            for key, held in self._held.items()
            if key not in plain and not (supersedes and any(supersedes(value, held) for value in plain.values()))
        }
        self._plain = plain
        self.values = {**self._held, **plain} if self._held else plain
        self.version += 1
