"""What the requests at one node share: its clock and background tasks, and which of them never end by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.integration.exchange import Exchange
    from fastapi_mesh.service_mesh.life import NodeLife


class Streams:
    """What the exchanges of a node share; it knows the running ones that have no end of their own."""

    def __init__(self, life: NodeLife, clock: Clock, supervisor: Supervisor, observer: Observer) -> None:
        self.clock = clock
        self.supervisor = supervisor
        self.observer = observer
        self._life = life
        self._running: set[Exchange] = set()
        life.on_end_streams(self._end)

    def add(self, exchange: Exchange) -> None:
        """Make it known until `discard`; when the process ends already, it is ended at once."""
        self._running.add(exchange)
        if self._life.ending:
            exchange.end()

    def discard(self, exchange: Exchange) -> None:
        self._running.discard(exchange)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run `work` in the background; None where the mesh is stopping and nothing starts any more."""
        try:
            return self.supervisor.start(work, name=name)
        except RuntimeError:
            return None

    def _end(self) -> None:
        for exchange in list(self._running):
            exchange.end()
