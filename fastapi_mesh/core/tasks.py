"""The Supervisor: the only place where tasks start.

A loop that fails is logged, backed off with jitter and started again; it never takes the application with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.events import LoopFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer

logger = logging.getLogger("fastapi_mesh.tasks")

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 10.0


def _ignore(event: object) -> None:
    """The observer of a supervisor that nobody listens to."""


class Supervisor:
    """Starts, keeps and ends background tasks. `degraded` maps the name of a failing loop to its last error."""

    def __init__(self, *, clock: Clock | None = None, observer: Observer | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._observer: Observer = observer or _ignore
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.degraded: dict[str, str] = {}

    def statistics(self) -> dict[str, int]:
        return {"tasks": len(self._tasks), "degraded": len(self.degraded)}

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` once in the background; its failure is logged, and returned to whoever awaits the task."""
        if self._closed:
            work.close()
            raise RuntimeError(f"the supervisor is closed; {name!r} can't start")
        task = asyncio.get_running_loop().create_task(work, name=f"fastapi_mesh:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Callable[[], Awaitable[object]], *, name: str) -> asyncio.Task[Any]:
        """Run `work` again and again until it returns: a failure waits 0.1 s, then twice as long, at most 10 s."""
        return self.start(self._keep(work, name), name=name)

    def recovered(self, name: str) -> None:
        """A kept loop says that it works again; clears `degraded` and its back-off starts anew."""
        if self.degraded.pop(name, None) is not None:
            logger.info("%s works again", name)

    async def _keep(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        failures = 0
        while True:
            try:
                await work()
            except Exception as error:  # a loop must outlive whatever its dependency does
                failures = failures + 1 if name in self.degraded else 1
                delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)
                text = f"{type(error).__name__}: {error}"
                if self.degraded.get(name) != text:
                    logger.warning("%s failed (%s); trying again in %.1f s", name, text, delay)
                self.degraded[name] = text
                self._observer(LoopFailed(name, text, delay))
                await self._clock.sleep(delay)
            else:
                self.recovered(name)
                return

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s ended with %s: %s", task.get_name(), type(error).__name__, error, exc_info=error)

    def reopen(self) -> None:
        """Allow tasks again after `aclose`: a mesh can be started anew."""
        self._closed = False

    async def aclose(self) -> None:
        """Cancel every task and wait until all have ended."""
        self._closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task() and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
