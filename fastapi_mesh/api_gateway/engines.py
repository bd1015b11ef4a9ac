"""The parts of a gateway that have state of their own (counters, stores, keys): kept while their settings stay."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.gateway")

GRACE = 60.0
"""Seconds after which an engine that a reload replaced is closed: requests under way still use it."""


class Engine(Protocol):
    """Made without waiting for anything: it connects when it is used first, in the background where that takes long."""

    async def aclose(self) -> None: ...


E = TypeVar("E", bound=Engine)


class Engines:
    """The engines of one open gateway, by name.

    A reload asks `kept` for each engine that the new settings want, then calls `commit`, or `rollback` when something
    else about them was wrong: the running engines are the same until then.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._running: dict[str, tuple[object, Engine]] = {}
        self._next: dict[str, tuple[object, Engine]] = {}
        self._retired: set[Engine] = set()

    def kept(self, name: str, settings: object, make: Callable[[], E]) -> E:
        """The engine `name` for `settings`: the running one where it was made of equal ones, else a new one."""
        running = self._next.get(name) or self._running.get(name)
        entry = running if running is not None and running[0] == settings else (settings, make())
        self._next[name] = entry
        return cast("E", entry[1])  # a name has one kind of engine

    def running(self, name: str) -> Engine | None:
        """The engine `name` that is in use; None where no route asks for one."""
        entry = self._running.get(name)
        return None if entry is None else entry[1]

    def commit(self) -> None:
        """What was asked for since the last commit runs from now on; what wasn't is closed when it is out of use."""
        before, self._running, self._next = self._running, self._next, {}
        still = {id(engine) for _, engine in self._running.values()}
        for name, (_, engine) in before.items():
            if id(engine) not in still:
                self._retired.add(engine)
                self._supervisor.start(self._close_later(engine), name=f"gateway-retire-{name}")

    def rollback(self) -> None:
        """Forget what was asked for since the last commit. A new engine has not been used, so it holds nothing."""
        self._next = {}

    async def aclose(self) -> None:
        """Close all of them, the retired ones too."""
        engines = [engine for _, engine in self._running.values()]
        engines += self._retired
        self._running = {}
        for engine in engines:
            await _close(engine)
        self._retired.clear()

    async def _close_later(self, engine: Engine) -> None:
        await asyncio.sleep(GRACE)
        if engine in self._retired:
            self._retired.discard(engine)
            await _close(engine)


async def _close(engine: Engine) -> None:
    try:
        await engine.aclose()
    except Exception:  # the others are to be closed too
        logger.exception("closing %r failed", engine)
