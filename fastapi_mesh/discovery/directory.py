"""The lists of instances that this process uses: one supervised watch per service, the last good list at hand."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.events import InstancesChanged
from fastapi_mesh.core.live import Live
from fastapi_mesh.discovery.lists import same, watching
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import Discovery

logger = logging.getLogger("fastapi_mesh.discovery")

LIMIT = 1024
"""Services watched at once; names that nobody registered must not use memory for ever."""


class Directory:
    """Gives a `Live` list for each service, watched from its first use on.

    When the registry fails, the last good list stays, the supervisor tries again (after 10 s at most), and the watch is
    in `supervisor.degraded` as `discovery:SERVICE`. A watch that nobody used for `idle_timeout` seconds ends; so does
    the one unused for longest when there are more than `limit`. `on_end` then hears the service's name. A Live of an
    ended watch gets no more lists: call `live` for each use.
    """

    def __init__(
        self,
        discovery: Discovery,
        supervisor: Supervisor,
        *,
        observer: Observer | None = None,
        idle_timeout: float = 600.0,
        clock: Clock | None = None,
        limit: int = LIMIT,
    ) -> None:
        self._discovery = discovery
        self._supervisor = supervisor
        self._observer = observer
        self._idle_timeout = idle_timeout
        self._clock: Clock = clock or SystemClock()
        self._limit = limit
        self._watches: OrderedDict[str, _Watch] = OrderedDict()  # the longest unused first
        self._ended: list[Callable[[str], object]] = []
        self._sweeper: Timer | None = None
        self._updates = 0
        self._evicted = 0

    def live(self, service: str) -> Live[tuple[Instance, ...]]:
        """The list of `service`; its value is None until the registry has answered. Counts as a use."""
        watch = self._watches.get(service)
        if watch is None:
            watch = self._start(service)
        else:
            watch.used = self._clock.now()
            self._watches.move_to_end(service)
        return watch.live

    def peek(self, service: str) -> tuple[Instance, ...] | None:
        """The newest list of `service`, None where there is none yet. Does not count as a use, and starts nothing."""
        watch = self._watches.get(service)
        return None if watch is None else watch.live.value

    def failure(self, service: str) -> str | None:
        """Why the list of `service` can't be renewed at the moment; None when all is well."""
        return self._supervisor.degraded.get(_name(service))

    def on_end(self, callback: Callable[[str], object]) -> None:
        """Call `callback` with the name of each service that is no longer watched."""
        self._ended.append(callback)

    def statistics(self) -> dict[str, int]:
        """Services watched, those without an answer yet, lists received, and watches ended because nobody used them."""
        waiting = sum(watch.live.value is None for watch in self._watches.values())
        return {
            "watches": len(self._watches),
            "waiting": waiting,
            "updates": self._updates,
            "evicted": self._evicted,
        }

    async def aclose(self) -> None:
        """End all watches. The lists stay readable."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        ended = [self._end(service) for service in tuple(self._watches)]
        if running := [task for task in ended if not task.done()]:  # all are done when their event loop has ended
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, service: str) -> _Watch:
        watch = _Watch(service, self._clock.now())
        watch.task = self._supervisor.keep(lambda: self._follow(watch), name=_name(service))
        self._watches[service] = watch
        while len(self._watches) > self._limit:
            longest_unused = next(iter(self._watches))
            logger.warning("more than %d services are watched; ending %r", self._limit, longest_unused)
            self._evict(longest_unused)
        if self._sweeper is None:
            self._sweeper = self._clock.call_later(self._idle_timeout, self._sweep)
        return watch

    def _sweep(self) -> None:
        """End what is idle; the next sweep is due when the longest unused of the others may be."""
        now = self._clock.now()
        self._sweeper = None
        while self._watches:
            service, watch = next(iter(self._watches.items()))
            left = watch.used + self._idle_timeout - now
            if left > 0:
                self._sweeper = self._clock.call_later(left, self._sweep)
                return
            self._evict(service)

    def _evict(self, service: str) -> None:
        self._evicted += 1
        self._end(service)

    def _end(self, service: str) -> asyncio.Task[object]:
        watch = self._watches.pop(service)
        assert watch.task is not None, "set before the watch is listed"
        watch.task.cancel()
        self._supervisor.degraded.pop(_name(service), None)
        for callback in self._ended:
            callback(service)
        return watch.task

    async def _follow(self, watch: _Watch) -> None:
        async with watching(self._discovery, watch.service) as lists:
            async for instances in lists:
                self._publish(watch, instances)
                self._supervisor.recovered(_name(watch.service))
        raise ServiceDiscoveryError("the watch ended by itself", service=watch.service)

    def _publish(self, watch: _Watch, instances: tuple[Instance, ...]) -> None:
        before = watch.live.value
        if before is not None and same(before, instances):
            return  # the same list again, after a failure
        self._updates += 1
        watch.live.publish(instances)
        if self._observer is not None and (before or instances):
            known, now = {each.id for each in before or ()}, {each.id for each in instances}
            added, removed = tuple(sorted(now - known)), tuple(sorted(known - now))
            self._observer(InstancesChanged(watch.service, added, removed, len(instances)))


class _Watch:
    __slots__ = ("live", "service", "task", "used")

    def __init__(self, service: str, used: float) -> None:
        self.service = service
        self.used = used
        self.live: Live[tuple[Instance, ...]] = Live()
        self.task: asyncio.Task[object] | None = None


def _name(service: str) -> str:
    return f"discovery:{service}"
