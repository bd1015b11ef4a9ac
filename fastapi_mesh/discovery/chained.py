"""A discovery of several sources in order: for each service, the first one that knows an instance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.lists import same, watching
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery


class ChainedDiscovery:
    """Gives the list of the first source whose list isn't empty, and switches live, in both directions.

    A later source is watched only while all earlier ones know no instance. A source that fails counts as knowing none,
    and is tried again in the background; only when no other source has an instance either does `watch` raise its error.
    """

    def __init__(self, sources: Iterable[Discovery], *, supervisor: Supervisor | None = None) -> None:
        self._sources = tuple(sources)
        self._supervisor = supervisor or Supervisor()

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        wake = asyncio.Event()
        followed = [
            _Followed(source, service, f"discovery:{service}, source {number}", self._supervisor, wake)
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
            tasks = [task for each in followed if (task := each.stop()) is not None]
            await asyncio.gather(*tasks, return_exceptions=True)


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

    def start(self) -> None:
        if self._task is None or self._task.cancelling():
            self.list = self.error = None
            self._task = self._supervisor.keep(self._follow, name=self._name)

    def stop(self) -> asyncio.Task[object] | None:
        if self._task is not None:
            self._task.cancel()
            self._supervisor.degraded.pop(self._name, None)
        return self._task

    async def _follow(self) -> None:
        try:
            async with watching(self._source, self._service) as lists:
                async for instances in lists:
                    self.list, self.error = instances, None
                    self._supervisor.recovered(self._name)
                    self._wake.set()
            raise ServiceDiscoveryError("the watch ended by itself", service=self._service)
        except Exception as error:  # whatever a source raises; the supervisor tries it again
            self.list, self.error = (), error
            self._wake.set()
            raise


def _first(followed: list[_Followed]) -> tuple[Instance, ...] | None:
    """The list to use, None while an answer is awaited; raises the error of a source when no other one helps."""
    for number, source in enumerate(followed, 1):
        source.start()
        if source.list is None:
            return None
        if source.list:
            for later in followed[number:]:
                later.stop()
            return source.list
    for source in followed:
        if source.error is not None:
            raise source.error
    return ()
