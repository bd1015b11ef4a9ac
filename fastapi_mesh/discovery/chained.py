"""A discovery of several sources in order: for each service, the first one that knows an instance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.base import ServiceList
from fastapi_mesh.discovery.lists import same, watching
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery, KnownService


class ChainedDiscovery:
    """Gives the list of the first source whose list isn't empty, and switches live, in both directions.

    A later source is watched only while all earlier ones know no instance. A source that fails counts as knowing none.
    If another one helps out, it is tried again in the background, as `discovery-source:SERVICE/NUMBER` of the
    supervisor; if none does, `watch` raises its error.
    """

    def __init__(self, sources: Iterable[Discovery], *, supervisor: Supervisor | None = None) -> None:
        self._sources = tuple(sources)
        self._supervisor = supervisor or Supervisor()

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        wake = asyncio.Event()
        followed = [
            _Followed(source, service, f"discovery-source:{service}/{number}", self._supervisor, wake)
            for number, source in enumerate(self._sources, 1)
        ]
        last: tuple[Instance, ...] | None = None
        try:
            while True:
                wake.clear()
                current = _first(followed)
                if current is not None and (last is None or not same(current, last)):
                    last = current
                    yield current
                else:
                    await wake.wait()
        finally:
            tasks = [task for each in followed for task in each.stop()]
            await asyncio.gather(*tasks, return_exceptions=True)

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`: the services of all sources that can list them, each as the first of them
        that knows it has it. Never raises: a source that fails keeps what it said last, and is tried again in the
        background, as `discovery-services:NUMBER` of the supervisor.
        """
        listings = [source for source in self._sources if isinstance(source, ServiceList)]
        wake = asyncio.Event()
        latest: dict[int, tuple[KnownService, ...]] = {}
        tasks = [
            self._supervisor.keep(
                partial(self._follow_services, number, listing, latest, wake), name=f"discovery-services:{number}"
            )
            for number, listing in enumerate(listings, 1)
        ]
        last: tuple[KnownService, ...] | None = None
        try:
            while True:
                wake.clear()
                merged = {each.name: each for number in sorted(latest, reverse=True) for each in latest[number]}
                current = tuple(merged[name] for name in sorted(merged))
                if current != last and len(latest) == len(listings):
                    last = current
                    yield current
                else:
                    await wake.wait()
        finally:
            for number, task in enumerate(tasks, 1):
                task.cancel()
                self._supervisor.degraded.pop(f"discovery-services:{number}", None)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_services(
        self, number: int, listing: ServiceList, latest: dict[int, tuple[KnownService, ...]], wake: asyncio.Event
    ) -> None:
        services = listing.watch_services()
        try:
            async for known in services:
                latest[number] = known
                self._supervisor.recovered(f"discovery-services:{number}")
                wake.set()
            raise ServiceDiscoveryError("the watch of the services ended by itself")
        except Exception:
            latest.setdefault(number, ())  # the others need not wait for it
            wake.set()
            raise
        finally:
            if isinstance(services, AsyncGenerator):
                await services.aclose()


class _Followed:
    """One source for one watch. `list` is None until it has answered; () while it fails, with the `error`."""

    def __init__(self, source: Discovery, service: str, name: str, supervisor: Supervisor, wake: asyncio.Event) -> None:
        self.list: tuple[Instance, ...] | None = None
        self.error: Exception | None = None
        self._source = source
        self._service = service
        self._name = name
        self._supervisor = supervisor
        self._wake = wake
        self._task: asyncio.Task[object] | None = None
        self._ending: list[asyncio.Task[object]] = []

    def start(self) -> None:
        """Begin to follow; does nothing if it does already, or has failed."""
        if self._task is None:
            self.list = self.error = None
            self._task = self._supervisor.start(self._follow_once(), name=self._name)

    def retry(self) -> None:
        """Follow again, and again, if it has failed."""
        if self.error is not None and self._task is not None and self._task.done():
            self._task = self._supervisor.keep(self._follow, name=self._name)

    def stop(self) -> list[asyncio.Task[object]]:
        """End it, and give what has yet to end."""
        if self._task is not None:
            self._task.cancel()
            self._supervisor.degraded.pop(self._name, None)
            self._ending = [task for task in (*self._ending, self._task) if not task.done()]
            self._task = None
        return self._ending

    async def _follow_once(self) -> None:
        """Without a log line for a failure: either another source helps out, or `watch` raises it."""
        with contextlib.suppress(Exception):
            await self._follow()

    async def _follow(self) -> None:
        try:
            async with watching(self._source, self._service) as lists:
                async for instances in lists:
                    self.list, self.error = instances, None
                    self._supervisor.recovered(self._name)
                    self._wake.set()
            raise ServiceDiscoveryError("the watch ended by itself", service=self._service)
        except Exception as error:  # whatever a source raises; kept for `watch`
            self.list, self.error = (), error
            self._wake.set()
            raise


def _first(followed: list[_Followed]) -> tuple[Instance, ...] | None:
    """The list to use, None while an answer is awaited; raises the error of a source when no other one helps."""
    for position, source in enumerate(followed):
        source.start()
        if source.list is None:
            return None
        if source.list:
            for earlier in followed[:position]:
                earlier.retry()
            for later in followed[position + 1 :]:
                later.stop()
            return source.list
    for source in followed:
        if source.error is not None:
            raise source.error
    return ()
