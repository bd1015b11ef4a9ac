"""A cell that holds the newest good value: replaced whole, read without waiting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Live(Generic[T]):
    """An immutable snapshot that a writer replaces and readers read once per request.

    `value` is None until the first `publish`. Subscribers are called in the writer's turn, in order of subscription.
    """

    __slots__ = ("_subscribers", "_waiters", "value", "version")

    def __init__(self, value: T | None = None) -> None:
        self.value = value
        self.version = 0 if value is None else 1
        self._subscribers: list[Callable[[T], object]] = []
        self._waiters: list[asyncio.Future[None]] = []

    def publish(self, value: T) -> None:
        """Replace the snapshot, wake whoever waits for one, and tell the subscribers."""
        self.value = value
        self.version += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for subscriber in tuple(self._subscribers):
            subscriber(value)

    def subscribe(self, callback: Callable[[T], object]) -> Callable[[], None]:
        """Call `callback` with each later snapshot; the returned function ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    async def wait_first(self) -> T:
        """Return the snapshot, waiting for the first one if there is none yet."""
        while self.value is None:
            await self.wait_change()
        return self.value

    async def wait_change(self) -> None:
        """Wait until the next `publish`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
