"""One watch of a namespace's instances in etcd, for all who watch a service in this process.

One, and not one per service: heartbeats are no changes of keys, so all of a namespace is few messages, and fifty
services would be fifty connections of each node. Only with all rows at hand is it known, too, that a process replaced
the one that crashed on its port, whatever service that was.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.etcd_follow import RESUME, STEADY
from fastapi_mesh.discovery.etcd_messages import EtcdError
from fastapi_mesh.discovery.etcd_rows import Rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.etcd_follow import Batch, Follow
    from fastapi_mesh.discovery.etcd_rows import Stored

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two attempts while etcd does not answer, however many watchers ask for one."""

ALL = ""
"""Who waits for a change of any service; no service has this name."""


class Feed:
    """Keeps `rows` as etcd has them while somebody uses it.

    Rows that etcd has lost, with its data, stay for `hold` seconds. So do those that vanish within so many seconds of a
    time in which etcd did not answer, where less than half of a service's rows would be left: then the leases of all
    have ended, and those that live are about to register anew.

    A watcher does everything within `used()`, waits with `ready()` until the rows are those of now, and with `changed`
    for more.
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
        self.rows = Rows()
        self._follow = follow
        self._supervisor = supervisor
        self._hold = hold
        self._clock: Clock = clock or SystemClock()
        self._jitter = jitter
        self._users = 0
        self._task: asyncio.Task[object] | None = None
        self._live = False
        self._failure: EtcdError | None = None
        self._failures = 0
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
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
        """Follow while anybody is in here; whoever comes first starts it, and the last one out ends it."""
        if not self._users and self._clock.now() - self._left > RESUME:
            self.forget()  # nobody is used to what was there so long ago
        self._users += 1
        try:
            if self._task is None or self._task.done():
                self._task = self._supervisor.start(self._run(), name="etcd-instances")
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._left = self._clock.now()
                await self._stop()

    async def ready(self) -> None:
        """Wait until the rows are those of now. Raises EtcdError when etcd does not answer."""
        while not self._live:
            if self._failure is not None and (self._task is None or self._task.done()):
                raise self._failure
            await self.changed(ALL)

    async def changed(self, service: str) -> None:
        """Wait until the list of `service` may be another one, or following has failed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(service, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(service) is waiters:
                del self._waiters[service]

    async def _run(self) -> None:
        begun: float | None = None
        try:
            if self._failures:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
                await self._clock.sleep(pause * (0.5 + 0.5 * self._jitter()))
            async with aclosing(self._follow.changes()) as batches:
                async for batch in batches:
                    begun = self._clock.now() if begun is None else begun
                    self._take(batch)
        except EtcdError as error:
            steady = begun is not None and self._clock.now() - begun > STEADY
            self._failures = 1 if steady else self._failures + 1
            self._failure = error
        except asyncio.CancelledError:  # nobody needs it any more
            raise
        except BaseException:
            self._failure = EtcdError("following etcd ended by a mistake")
            raise
        finally:
            if self._task is asyncio.current_task():
                self._live = False
                self._wake(tuple(self._waiters))

    def _take(self, batch: Batch[Stored]) -> None:
        begins, self._live = not self._live, True
        now = self._clock.now()
        if self._failure is not None:  # it is back
            self._failure = None
            self.doubt()
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
        affected = self.rows.apply(changes)
        self._wake(tuple(self._waiters) if begins else (*affected, ALL) if affected else ())

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

    def _wake(self, services: Iterable[str]) -> None:
        for service in services:
            for waiter in self._waiters.pop(service, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def _stop(self) -> None:
        task, self._task, self._live = self._task, None, False
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
