"""One at a time for all who want the same: a call is made once, and everybody who waits gets its outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi_mesh.api_gateway.auth.base import ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from fastapi_mesh.core.tasks import Supervisor

T = TypeVar("T")

MOST = 256
"""Different calls at a time; more are refused, so that a flood of made-up tokens is none for the issuer."""


class Flights(Generic[T]):
    """Calls under way, by what they are for. They run in tasks of their own: a client that goes away ends no call that
    others wait for, and whoever starts one is no different from those who join.
    """

    __slots__ = ("_name", "_running", "_supervisor")

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self._supervisor = supervisor
        self._name = name
        self._running: dict[Hashable, asyncio.Task[tuple[T | None, Exception | None]]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> asyncio.Task[tuple[T | None, Exception | None]]:
        """The call for `key`: the one under way, else a new one. Raises ProviderUnavailableError for one too many."""
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= MOST:
                raise ProviderUnavailableError(f"{MOST} calls are under way", retry_after=1.0)
            task = self._supervisor.start(_outcome(call), name=self._name)
            self._running[key] = task
            task.add_done_callback(lambda done: self._running.pop(key, None))
        return task

    async def join(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Wait for that call. Raises what it raised."""
        task = self.start(key, call)
        await asyncio.wait((task,))
        if task.cancelled():
            raise ProviderUnavailableError("the gateway is closing", retry_after=1.0)
        value, error = task.result()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only with an error, or where T is None

    async def aclose(self) -> None:
        """End all calls."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _outcome(call: Callable[[], Awaitable[T]]) -> tuple[T | None, Exception | None]:
    """A task's own exception would be logged as a fault, and here it is an answer."""
    try:
        return await call(), None
    except Exception as error:  # each waiter decides what it means
        return None, error
