"""Functions of the user's that are told which instances of a service come, change and go: `mesh.watch_service`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from fastapi_mesh.discovery.lists import same, watching
from fastapi_mesh.exceptions import ServiceDiscoveryError
from fastapi_mesh.service_mesh.handlers import run_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AsyncExitStack

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import Discovery

logger = logging.getLogger("fastapi_mesh.discovery")

Change = Literal["added", "updated", "removed"]
H = TypeVar("H", bound="Callable[..., object]")

MOST_PENDING = 1000
"""Lists that wait for a slow handler; of more, the oldest is left out, and its changes are told with the next one's."""


def changes(before: dict[str, Instance], now: tuple[Instance, ...]) -> Iterator[tuple[Change, Instance]]:
    """What is different from `before` (by id), what came first and what went last: so a list kept by it is never
    empty while one instance takes the place of another. A removed instance is as it was last known.
    """
    for instance in now:
        if instance.id not in before:
            yield "added", instance
    for instance in now:
        known = before.get(instance.id)
        if known is not None and not same((known,), (instance,)):
            yield "updated", instance
    there = {instance.id for instance in now}
    for id, instance in before.items():
        if id not in there:
            yield "removed", instance


class ServiceWatches:
    """The watched services of one mesh: one watch of `discovery` for each, whose lists all its handlers get.

    A handler has a task of its own, so that a slow one holds up neither the others nor the watch. What it was told
    lasts: after a failure of the registry, and after a stop and start of the mesh, it hears of what is different only.
    """

    def __init__(self, discovery: Discovery, supervisor: Supervisor) -> None:
        self._discovery = discovery
        self._supervisor = supervisor
        self._services: dict[str, _Watched] = {}
        self._open = False

    def statistics(self) -> dict[str, int]:
        """Services that are watched, functions that are told, and lists that wait for them."""
        handlers = [each for watched in self._services.values() for each in watched.handlers]
        waiting = sum(len(each.pending) for each in handlers)
        return {"services": len(self._services), "handlers": len(handlers), "waiting": waiting}

    def watch(self, service: str) -> Callable[[H], H]:
        """Decorator: call a function `(event, instance)`, async or not, when an instance of `service` comes or goes.

        `event` is "added", "updated" (it is not as it was: another address, new metadata, ...) or "removed"; each is
        told once. The instances that are there at the start, or when the function is registered later, are "added".
        Calls come one after the other. A `def` function is called in a thread. What it raises is logged, and the watch
        goes on. `instance.health` is what the registry says, not what this node's probes do.
        """
        if not isinstance(service, str):
            raise TypeError("watch_service takes the name of a service: @mesh.watch_service('user-service')")

        def register(function: H) -> H:
            watched = self._services.get(service)
            if watched is None:
                watched = self._services[service] = _Watched(service)
            handler = _Handler(service, function)
            watched.handlers.append(handler)
            if self._open:
                self._follow(watched)
                if watched.latest is not None:
                    handler.put(watched.latest)
            return function

        return register

    async def start(self, life: AsyncExitStack) -> None:
        """Begin to watch; all of it ends with `life`, before what is watched does."""
        life.push_async_callback(self._stop)
        self._open = True
        for watched in self._services.values():
            watched.latest = None
            self._follow(watched)

    async def _stop(self) -> None:
        self._open = False
        tasks = [task for watched in self._services.values() for task in watched.end()]
        for watched in self._services.values():
            self._supervisor.degraded.pop(_name(watched.service), None)
        waited = [task for task in tasks if task is not asyncio.current_task() and not task.done()]
        await asyncio.gather(*waited, return_exceptions=True)

    def _follow(self, watched: _Watched) -> None:
        """Start the tasks that are not there yet."""
        if watched.task is None:
            watched.task = self._supervisor.keep(partial(self._read, watched), name=_name(watched.service))
        for handler in watched.handlers:
            if handler.task is None:
                handler.task = self._supervisor.start(handler.run(), name=f"{_name(watched.service)}:handler")

    async def _read(self, watched: _Watched) -> None:
        async with watching(self._discovery, watched.service) as lists:
            async for instances in lists:
                self._supervisor.recovered(_name(watched.service))
                watched.latest = instances
                for handler in watched.handlers:
                    handler.put(instances)
        raise ServiceDiscoveryError("the watch ended by itself", service=watched.service)


class _Watched:
    """One service: its newest list since the start, the task that reads it, and who is told."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.latest: tuple[Instance, ...] | None = None
        self.handlers: list[_Handler] = []
        self.task: asyncio.Task[object] | None = None

    def end(self) -> list[asyncio.Task[object]]:
        """Cancel all its tasks; those that have to end."""
        tasks = [self.task, *(handler.task for handler in self.handlers)]
        self.task = None
        for handler in self.handlers:
            handler.forget_pending()
        ended = [task for task in tasks if task is not None and not task.done()]
        for task in ended:
            if task is not asyncio.current_task():  # a handler that stops its own mesh may come to its end
                task.cancel()
        return ended


class _Handler:
    """One function, the lists that it has not been told of, and what it knows."""

    def __init__(self, service: str, function: Callable[..., object]) -> None:
        self.pending: deque[tuple[Instance, ...]] = deque(maxlen=MOST_PENDING)
        self.task: asyncio.Task[object] | None = None
        self._service = service
        self._function = function
        self._known: dict[str, Instance] = {}
        self._wake: asyncio.Future[None] | None = None

    def put(self, instances: tuple[Instance, ...]) -> None:
        self.pending.append(instances)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def forget_pending(self) -> None:
        """No task tells it any more; what it knows stays known."""
        self.task = self._wake = None
        self.pending.clear()

    async def run(self) -> None:
        """Tell what is different from list to list, for ever, or until the task that runs it is no longer ours."""
        mine = asyncio.current_task()
        while True:
            if not self.pending:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            for event, instance in tuple(changes(self._known, self.pending.popleft())):
                if event == "removed":
                    del self._known[instance.id]
                else:
                    self._known[instance.id] = instance
                await self._tell(event, instance)
                if self.task is not mine:
                    return

    async def _tell(self, event: Change, instance: Instance) -> None:
        try:
            await run_handler(self._function, event, instance)
        except Exception:  # of the user's code: the watch must outlive it
            logger.exception("a handler of the service %r failed (%s %s)", self._service, event, instance.id)


def _name(service: str) -> str:
    return f"watch:{service}"
