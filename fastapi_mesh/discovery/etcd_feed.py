"""One watch of a namespace's instances in etcd, for all who watch a service in this process.

One, and not one per service: heartbeats are no changes of keys, so all of a namespace is few messages, and fifty
services would be fifty connections of each node. Only with all rows at hand is it known, too, that a process replaced
the one that crashed on its port, whatever service that was.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.etcd_follow import STEADY
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
    """Keeps `rows` as etcd has them while somebody uses it; `hold` is the seconds that rows stay which etcd has lost.

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

    def sees(self, key: bytes) -> bool:
        """Whether etcd has `key`, as far as is followed right now."""
        return self._live and key in self.rows and key not in self._held

    def statistics(self) -> dict[str, int]:
        """Rows known, watchers, and what following them took."""
        return {"rows": len(self.rows), "watchers": self._users, **self._follow.statistics()}

    def forget(self) -> None:
        """Begin anew with the next use, as in another event loop."""
        self._follow.forget()
        self.rows = Rows()
        self._failures = 0

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Follow while anybody is in here; whoever comes first starts it, and the last one out ends it."""
        self._users += 1
        try:
            if self._task is None or self._task.done():
                self._failure = None
                self._task = self._supervisor.start(self._run(), name="etcd-instances")
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._stop()

    async def ready(self) -> None:
        """Wait until the rows are those of now. Raises EtcdError when etcd does not answer."""
        while not self._live:
            if self._failure is not None:
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
        finally:
            if self._task is asyncio.current_task():
                self._live = False
                self._failure = self._failure or EtcdError("following etcd ended by a mistake")
                self._wake(tuple(self._waiters))

    def _take(self, batch: Batch[Stored]) -> None:
        changes = dict(batch.changes)
        self._held -= changes.keys()
        if batch.complete:
            missing = self.rows.missing_in(changes)
            if batch.restored and missing:
                self._keep(missing)
            else:
                changes |= dict.fromkeys(missing - self._held)
        affected = self.rows.apply(changes)
        begins, self._live = not self._live, True
        self._wake(tuple(self._waiters) if begins else (*affected, ALL) if affected else ())

    def _keep(self, lost: set[bytes]) -> None:
        """etcd has lost these; those that live put themselves back with their next heartbeat."""
        self._held = lost
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
        if self._release is not None:
            self._release.cancel()
            self._let_go()
            self._follow.forget()
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
