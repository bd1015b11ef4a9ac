"""A port for time, so that tests can turn the clock by hand."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """A call that is due later and can be cancelled."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Monotonic time. `fastapi_mesh.testing.FakeClock` is the one that tests turn by hand."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once, `delay` seconds from now."""
        ...

    async def sleep(self, delay: float) -> None: ...


class SystemClock:
    """The running event loop's timers and the machine's monotonic clock."""

    now = staticmethod(time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)
