"""One watch of a server for all who watch something of it in this process: started by the first, ended by the last."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.exceptions import ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.tasks import Supervisor

B = TypeVar("B")
V = TypeVar("V")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two attempts while the server does not answer, however many watchers ask for one."""
STEADY = 1.0
"""Seconds that following must have lasted for a failure to be the first one again."""
ALL = ""
"""Who waits for a change of anything."""


class SharedFeed(ABC, Generic[B]):
    """Runs `follow()` while somebody uses it, and gives each batch to `_take`, which says what is different now.

    A watcher takes `values`: it does everything within `used()`, waits with `ready()` until all is known, and with
    `changed` for more.
    `failure` is the kind of error that `follow` raises when the server does not answer.
    """

    def __init__(
        self,
        follow: Callable[[], AsyncGenerator[B, None]],
        failure: type[Exception],
        supervisor: Supervisor,
        *,
        name: str,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._changes = follow
        self._kind = failure
        self._supervisor = supervisor
        self._name = name
        self._clock: Clock = clock or SystemClock()
        self._jitter = jitter
        self._users = 0
        self._task: asyncio.Task[object] | None = None
        self._live = False
        self._failure: Exception | None = None
        self._failures = 0
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    @abstractmethod
    def _take(self, batch: B, *, is_back: bool) -> Iterable[str]:
        """Take over a batch; the names of what is another one now. `is_back`: it is the first after a failure."""

    @property
    def users(self) -> int:
        return self._users

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Follow while anybody is in here; whoever comes first starts it, and the last one out ends it."""
        self._users += 1
        try:
            if self._task is None or self._task.done():
                self._task = self._supervisor.start(self._run(), name=self._name)
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._stop()

    async def values(self, what: str, read: Callable[[], V], *, service: str | None = None) -> AsyncGenerator[V, None]:
        """Yield what `read` gives: at once, and again whenever it gives something else after a change of `what`.

        Raises ServiceDiscoveryError, for `service`, when the server does not answer. Never ends by itself.
        """
        last: V | None = None
        async with self.used():
            while True:
                try:
                    await self.ready()
                except self._kind as error:
                    raise ServiceDiscoveryError(str(error), service=service) from error
                current = read()
                if last is None or current != last:
                    last = current
                    yield current
                else:
                    await self.changed(what)

    async def ready(self) -> None:
        """Wait until all is known as it is now. Raises what `follow` raised when the server does not answer."""
        while not self._live:
            if self._failure is not None and (self._task is None or self._task.done()):
                raise self._failure
            await self.changed(ALL)

    async def changed(self, what: str) -> None:
        """Wait until `what` may be another one, or following has failed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(what, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(what) is waiters:
                del self._waiters[what]

    async def _run(self) -> None:
        begun: float | None = None
        try:
            if self._failures:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
                await self._clock.sleep(pause * (0.5 + 0.5 * self._jitter()))
            async with aclosing(self._changes()) as batches:
                async for batch in batches:
                    begun = self._clock.now() if begun is None else begun
                    self._accept(batch)
        except self._kind as error:
            steady = begun is not None and self._clock.now() - begun > STEADY
            self._failures = 1 if steady else self._failures + 1
            self._failure = error
        except asyncio.CancelledError:  # nobody needs it any more
            raise
        except BaseException:
            self._failure = self._kind(f"{self._name} ended by a mistake")
            raise
        finally:
            if self._task is asyncio.current_task():
                self._live = False
                self._wake(tuple(self._waiters))

    def _accept(self, batch: B) -> None:
        begins, self._live = not self._live, True
        is_back, self._failure = self._failure is not None, None
        changes = tuple(self._take(batch, is_back=is_back))
        self._wake(tuple(self._waiters) if begins else (*changes, ALL) if changes else ())

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for waiter in self._waiters.pop(name, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def _stop(self) -> None:
        task, self._task, self._live = self._task, None, False
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
