"""What the caching routes of a gateway share: the store, the flights, and who counts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.api_gateway.cache.flight import Flights
from fastapi_mesh.api_gateway.cache.layered import LayeredStore
from fastapi_mesh.api_gateway.cache.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.cache.key import Scope
    from fastapi_mesh.api_gateway.cache.store import SharedStore
    from fastapi_mesh.config.edge.cache import CacheConfig


class CacheMeter(Protocol):
    """Where it is counted; `observability.cache_metrics.CacheMetrics` is one."""

    def result(self, path: str, result: str) -> None: ...

    def stored(self, size: int) -> None: ...

    def failed(self) -> None: ...


class CacheEngine:
    """Made without waiting for anything: Redis is connected to when it is used first."""

    def __init__(
        self,
        store: SharedStore,
        *,
        meter: CacheMeter | None = None,
        flights: Flights | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix seconds, as the ages of answers are counted from dates."""
        self.store = store
        self.meter = meter
        self.flights = Flights() if flights is None else flights
        self.clock = clock

    async def purge(self, scope: Scope) -> None:
        await self.store.drop(scope)

    async def aclose(self) -> None:
        await self.store.aclose()

    def statistics(self) -> dict[str, int]:
        return {**self.store.statistics(), **self.flights.statistics()}


def new_engine(config: CacheConfig, meter: CacheMeter | None) -> CacheEngine:
    """The engine for `config`. Raises ImportError, naming the extra, where the client for Redis is missing."""
    memory = MemoryStore(config.max_bytes, max_variants=config.max_variants)
    if config.backend == "memory":
        return CacheEngine(memory, meter=meter)
    from fastapi_mesh.api_gateway.cache.redis import RedisStore

    shared = RedisStore(config, failed=(lambda: None) if meter is None else meter.failed)
    return CacheEngine(LayeredStore(memory, shared, recheck=config.recheck), meter=meter)
