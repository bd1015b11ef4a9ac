"""Long work in the event loop, in slices between which requests go on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    Steps = Generator[None, None, None]

SLICE = 0.005
"""Seconds for which requests wait, and then have the event loop for themselves."""


class Slices:
    """Goes through the steps of one generator at a time. Giving it up closes it, so it can undo what it has begun."""

    def __init__(self) -> None:
        self._running: Steps | None = None

    async def run(self, steps: Steps) -> bool:
        """Take all steps; False where they were given up meanwhile. Whatever they raise goes up."""
        self.give_up()
        self._running = steps
        try:
            end = time.perf_counter() + SLICE
            for _ in steps:
                if time.perf_counter() >= end:
                    await asyncio.sleep(SLICE)
                    end = time.perf_counter() + SLICE
            return self._running is steps
        finally:
            if self._running is steps:
                self.give_up()

    def give_up(self) -> None:
        """Whatever is running takes no further step."""
        steps, self._running = self._running, None
        if steps is not None:
            steps.close()
