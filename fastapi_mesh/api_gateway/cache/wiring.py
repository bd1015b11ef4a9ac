"""How the cache gets into a gateway: which routes have it, and their layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.engine import CacheEngine, new_engine
from fastapi_mesh.api_gateway.cache.invalidate import SAFE, Invalidate
from fastapi_mesh.api_gateway.cache.layer import Cache
from fastapi_mesh.api_gateway.cache.status import name_of
from fastapi_mesh.api_gateway.cache.visit import DATE
from fastapi_mesh.config.edge.cache import CachePolicy, cache_policy
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.cache.engine import CacheMeter
    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.gateway import GatewayConfig, RouteConfig
    from fastapi_mesh.core.tasks import Supervisor

ENGINE = "cache"


def policy_of(config: GatewayConfig, route: RouteConfig) -> CachePolicy | None:
    """How `route` is cached; None: not at all."""
    return cache_policy(config.cache, config.cache_ttl, route.cache, route.cache_ttl)


@dataclass(frozen=True, slots=True)
class Caching:
    """What the rows of the pipeline need: there is one where at least one route is cached."""

    engine: CacheEngine
    config: GatewayConfig
    supervisor: Supervisor

    def layer(self, inner: GatewayService, route: Route) -> Cache | None:
        policy = policy_of(self.config, route.config)
        if policy is None:
            return None
        return Cache(inner, route, self.engine, policy, name=name_of(self.config.via), supervisor=self.supervisor)

    def invalidation(self, inner: GatewayService, route: Route) -> Invalidate | None:
        """Every route that can change something: what it changes may be cached under another one."""
        methods = route.config.methods
        if methods is not None and {method.encode() for method in methods} <= SAFE:
            return None
        return Invalidate(inner, self.engine, supervisor=self.supervisor)


def dropped_below(caching: Caching | None, route: Route, dropped: frozenset[bytes]) -> frozenset[bytes]:
    """Response headers that end before the cache: not Date, which it counts ages from and then drops itself."""
    if caching is None or policy_of(caching.config, route.config) is None:
        return dropped
    return dropped - {DATE}


def new_caching(
    config: GatewayConfig,
    routes: Iterable[Route],
    engines: Engines,
    *,
    meter: CacheMeter | None,
    supervisor: Supervisor,
) -> Caching | None:
    """None where no route is cached. Raises ConfigurationError where the store's client is missing."""
    if all(policy_of(config, route.config) is None for route in routes):
        return None
    rules = config.cache
    settings = (rules.backend, rules.max_bytes, rules.max_variants, rules.namespace, rules.timeout, rules.recheck)
    try:
        engine = engines.kept(ENGINE, settings, lambda: new_engine(rules, meter))
    except ImportError as error:
        raise ConfigurationError(problems=[f"cache.backend: {error}"]) from error
    return Caching(engine, config, supervisor)
