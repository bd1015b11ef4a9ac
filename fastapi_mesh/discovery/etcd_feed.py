"""One watch of a namespace's instances in etcd, for all who watch a service in this process.

One, and not one per service: heartbeats are no changes of keys, so all of a namespace is few messages, and fifty
services would be fifty connections of each node. Only with all rows at hand is it known, too, that a process replaced
the one that crashed on its port, whatever service that was.
"""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi_mesh.discovery.etcd_follow import RESUME, Batch
from fastapi_mesh.discovery.etcd_messages import EtcdError
from fastapi_mesh.discovery.etcd_rows import Rows, Stored
from fastapi_mesh.discovery.feed import ALL, SharedFeed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.etcd_follow import Follow


class Feed(SharedFeed[Batch[Stored]]):
    """Keeps `rows` as etcd has them while somebody uses it.

    Rows that etcd has lost, with its data, stay for `hold` seconds. So do those that vanish within so many seconds of a
    time in which etcd did not answer, where less than half of a service's rows would be left: then the leases of all
    have ended, and those that live are about to register anew.
    """

    def __init__(
        self,
        follow: Follow[Stored],
        supervisor: Supervisor,
        *,
        hold: float,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(follow.changes, EtcdError, supervisor, name="etcd-instances", clock=clock, jitter=jitter)
        self.rows = Rows()
        self._follow = follow
        self._hold = hold
        self._held: set[bytes] = set()
        self._release: Timer | None = None
        self._sizes: dict[str, int] = {}  # how many rows each service had when etcd went away
        self._doubt_until = -math.inf
        self._left = -math.inf

    def sees(self, key: bytes) -> bool:
        """Whether etcd has `key`, as far as is followed right now."""
        return self._live and key in self.rows and key not in self._held

    def doubt(self) -> None:
        """etcd does not answer, or did not until now: for a while, what vanishes may be about to come back."""
        now = self._clock.now()
        if now >= self._doubt_until:
            self._sizes = self.rows.sizes()
        self._doubt_until = now + self._hold

    def statistics(self) -> dict[str, int]:
        """Rows known, watchers, and what following them took."""
        return {"rows": len(self.rows), "watchers": self._users, **self._follow.statistics()}

    def forget(self) -> None:
        """Begin anew with the next use, as in another event loop."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        self._follow.forget()
        self.rows = Rows()
        self._held = set()
        self._failures = 0
        self._failure = None

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """See `SharedFeed.used`. What was known long ago is asked for anew: nobody is used to it any more."""
        if not self._users and self._clock.now() - self._left > RESUME:
            self.forget()
        try:
            async with super().used():
                yield
        finally:
            if not self._users:
                self._left = self._clock.now()

    def _take(self, batch: Batch[Stored], *, is_back: bool) -> Iterable[str]:
        if is_back:
            self.doubt()
        now = self._clock.now()
        changes = dict(batch.changes)
        self._held -= changes.keys()
        if batch.complete:
            missing = self.rows.missing_in(changes)
            if batch.restored:
                self._keep(missing)
            changes |= dict.fromkeys(missing - self._held)
        if now < self._doubt_until:
            gone = {key for key, row in changes.items() if row is None and key in self.rows}
            doubtful = self._doubtful(gone)
            self._keep(doubtful)
            changes = {key: row for key, row in changes.items() if key not in doubtful}
        return self.rows.apply(changes)

    def _doubtful(self, gone: set[bytes]) -> set[bytes]:
        """Those of `gone` after which less than half of what a service had would be left."""
        left = self.rows.sizes()
        for key in (*self._held, *gone):
            left[self.rows.service_of(key)] -= 1
        few = {service for service, number in left.items() if 2 * number < self._sizes.get(service, 0)}
        return {key for key in gone if self.rows.service_of(key) in few}

    def _keep(self, lost: set[bytes]) -> None:
        """Let these stay for now; those that live put themselves back with their next heartbeat."""
        if lost:
            self._held |= lost
            if self._release is not None:
                self._release.cancel()
            self._release = self._clock.call_later(self._hold, self._let_go)

    def _let_go(self) -> None:
        held, self._held, self._release = self._held, set(), None
        self._wake((*self.rows.apply(dict.fromkeys(held)), ALL))
