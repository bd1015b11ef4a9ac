"""The counts of a gateway's rate limits, in memory or in a Redis, with a second place for failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.ratelimit.memory import MemoryCounters
from fastapi_mesh.config.edge.limits import MEMORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.ratelimit.store import RedisCounters
    from fastapi_mesh.api_gateway.ratelimit.windows import Charge, Verdict
    from fastapi_mesh.config.edge.limits import RateLimitingConfig
    from fastapi_mesh.core.tasks import Supervisor

COUNTS = ("storage", "timeout", "retry_interval", "namespace", "max_keys")
"""The settings that make an engine: while they stay, its counts do."""


def engine_settings(config: RateLimitingConfig) -> tuple[object, ...]:
    """What two configurations must have in common to share their counts."""
    return tuple(getattr(config, name) for name in COUNTS)


class RateLimitEngine:
    """Counts requests where the configuration says. Raises ConfigurationError when a Redis is asked for and the package
    `redis` is missing. `memory` is the only place, or where requests are counted while Redis is down (`local`).
    """

    __slots__ = ("_shared", "memory")

    def __init__(self, config: RateLimitingConfig, supervisor: Supervisor) -> None:
        self.memory = MemoryCounters(config.max_keys)
        self._shared: RedisCounters | None = None
        if config.storage != MEMORY:
            from fastapi_mesh.api_gateway.ratelimit.store import RedisCounters  # most gateways need none of it

            self._shared = RedisCounters(
                config.storage,
                supervisor,
                timeout=config.timeout,
                retry_interval=config.retry_interval,
                namespace=config.namespace,
            )

    def statistics(self) -> dict[str, int]:
        """Those of the memory (`keys`, `times`, `evicted`) and of Redis (`waiting`, `down`, `outages`)."""
        return self.memory.statistics() | ({} if self._shared is None else self._shared.statistics())

    async def charge(self, charges: Sequence[Charge]) -> Verdict:
        """Count a request in all its windows, or in none. Raises StorageUnavailableError when Redis fails."""
        if self._shared is None:
            return self.memory.charge(charges)
        return await self._shared.charge(charges)

    async def aclose(self) -> None:
        if self._shared is not None:
            await self._shared.aclose()
