"""A registry inside one process, for tests and demonstrations: several meshes may share one object."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.bell import Bell
from fastapi_mesh.discovery.lists import check, known_services, same
from fastapi_mesh.discovery.rows import Owner, Row, RowRegistration, check_times, lists_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import KnownService

    Lists = dict[str, tuple[Instance, ...]]

_THIS_PROCESS = Owner("", 0.0)


class MemoryRegistry:
    """Keeps registrations as long as their leases are renewed. A Discovery and a Registrar.

    An instance whose last beat is `lease` seconds ago is gone. Within a service, the last registration of an id, or at
    an address and port, replaces the one before. Can be shared by event loops in several threads.
    """

    def __init__(self, *, lease: float = 15.0, heartbeat: float = 5.0, clock: Clock | None = None) -> None:
        check_times(lease=lease, heartbeat=heartbeat)
        self._lease = lease
        self._heartbeat = heartbeat
        self._clock: Clock = clock or SystemClock()
        self._rows: dict[tuple[str, str], Row] = {}
        self._births = itertools.count(1)
        self._lists: Lists = {}
        self._next_expiry = -math.inf
        self._bell = Bell()
        self._lock = threading.Lock()

    async def register(self, instance: Instance) -> RowRegistration:
        """See `Registrar.register`. Raises ConfigurationError for an instance that nobody could call."""
        row = Row(check(instance), _THIS_PROCESS, next(self._births), self._lease, self._clock.now() + self._lease)
        with self._lock:
            self._put(row)
        self._bell.ring()
        return RowRegistration(self, row, self._heartbeat)

    async def services(self) -> tuple[str, ...]:
        """The services that have an instance now, sorted."""
        return tuple(sorted(self._current()[0]))

    async def instances(self) -> tuple[Instance, ...]:
        """All instances, sorted by service and id."""
        lists, _ = self._current()
        return tuple(each for service in sorted(lists) for each in lists[service])

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`; never raises."""
        last: tuple[Instance, ...] | None = None
        while True:
            version = self._bell.version
            lists, next_expiry = self._current()
            current = lists.get(service, ())
            if last is None or not same(current, last):
                last = current
                yield current
            else:
                await self._wait(version, next_expiry)

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`; never raises."""
        last: tuple[KnownService, ...] | None = None
        while True:
            version = self._bell.version
            lists, next_expiry = self._current()
            current = known_services(lists)
            if current != last:
                last = current
                yield current
            else:
                await self._wait(version, next_expiry)

    async def renew(self, row: Row) -> None:
        """Prolong the lease of `row`, or put it back if it is gone; one that was replaced stays replaced."""
        now = self._clock.now()
        with self._lock:
            there = self._rows.get(_key(row))
            renewed = replace(row, expires=now + self._lease)
            if there is not None and there.expires > now:
                if there.born == row.born:
                    self._rows[_key(row)] = renewed
                return
            self._put(renewed)
        self._bell.ring()

    async def remove(self, row: Row) -> None:
        """Remove `row` unless another one has replaced it."""
        with self._lock:
            there = self._rows.get(_key(row))
            if there is None or there.born != row.born:
                return
            del self._rows[_key(row)]
            self._next_expiry = -math.inf
        self._bell.ring()

    async def _wait(self, version: int, next_expiry: float) -> None:
        """Until something changed, or a lease may be over."""
        if next_expiry == math.inf:
            await self._bell.wait(version)
        else:
            await self._bell.wait(version, clock=self._clock, limit=next_expiry - self._clock.now())

    def _put(self, row: Row) -> None:
        self._rows[_key(row)] = row
        self._next_expiry = -math.inf  # the lists are to be made anew

    def _current(self) -> tuple[Lists, float]:
        """The lists of now, made anew when something changed or a lease may be over, and when the next one may be."""
        now = self._clock.now()
        with self._lock:
            if now >= self._next_expiry:
                self._rows = {key: row for key, row in self._rows.items() if row.expires > now}
                self._lists = lists_of(self._rows.values())
                self._next_expiry = min((row.expires for row in self._rows.values()), default=math.inf)
            return self._lists, self._next_expiry


def _key(row: Row) -> tuple[str, str]:
    return row.instance.service, row.instance.id
