"""What an open gateway has: the mesh it calls through, and the data path over it, from start to close."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.access_lines import new_lines
from fastapi_mesh.api_gateway.admission import inbound_seats
from fastapi_mesh.api_gateway.cache.engine import CacheEngine
from fastapi_mesh.api_gateway.cache.wiring import ENGINE, new_caching
from fastapi_mesh.api_gateway.client import Watch
from fastapi_mesh.api_gateway.cors import CorsRules
from fastapi_mesh.api_gateway.doors import Doors
from fastapi_mesh.api_gateway.dynamic import ANY_SERVICE, FoundServices, dynamic_routes
from fastapi_mesh.api_gateway.early import EarlyAnswers
from fastapi_mesh.api_gateway.engines import Engines
from fastapi_mesh.api_gateway.forward import Forward
from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.health import GatewayHealth
from fastapi_mesh.api_gateway.own_state import own_states
from fastapi_mesh.api_gateway.pipeline import LateChain, Parts, compile_chain
from fastapi_mesh.api_gateway.ratelimit.limits import rate_limits
from fastapi_mesh.api_gateway.reserved import reserved_paths
from fastapi_mesh.api_gateway.routes import Route, new_table, with_streaming
from fastapi_mesh.api_gateway.services import Services
from fastapi_mesh.api_gateway.transform.steps import unknown_routes
from fastapi_mesh.api_gateway.websocket.handshake import Upgrade
from fastapi_mesh.api_gateway.websocket.sockets import WebSockets
from fastapi_mesh.config.edge.websocket import effective
from fastapi_mesh.config.overlay import overlay
from fastapi_mesh.config.policies import CallPolicy
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastapi_mesh.api_gateway.access_lines import AccessLines
    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.api_gateway.routes import Policies
    from fastapi_mesh.api_gateway.slices import Steps
    from fastapi_mesh.api_gateway.table import RouteTable
    from fastapi_mesh.config.edge.websocket import WebSocketPolicy
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.policies import ServicePolicy
    from fastapi_mesh.core.instance import ASGIApp, Message
    from fastapi_mesh.service_mesh.stack import Stack

_DROPPED = frozenset({b"date", b"server", b"x-request-id"})
"""Response headers that end here besides the hop-by-hop ones. Every ASGI server writes Date and Server itself, and the
request's id is given by the gateway: passed on, there would be two.
"""

_ASKS_FOR_DISCOVERY = ("MESH_DISCOVERY__BACKEND", "DISCOVERY_BACKEND", "MESH_CONFIG_FILE")
PRIVATE_NAME = "api-gateway"
"""The name of the mesh that a gateway makes for itself; it is what services see as their caller."""


class Life:
    """Made with everything checked; `start` opens the mesh unless somebody has, `aclose` undoes that.

    `added` has the services that an earlier life of the same gateway told the mesh of.
    """

    def __init__(
        self,
        config: GatewayConfig,
        routes: Sequence[Route],
        extensions: Extensions,
        *,
        apps: Mapping[str, ASGIApp],
        mesh: ServiceMesh | None,
        added: set[str],
        services_changed: Callable[[], object] = lambda: None,
    ) -> None:
        from fastapi_mesh.api_gateway.auth.base import Tools  # imported late: cryptography costs a node 90 ms

        self.mesh = mesh or _private_mesh(discover=config.dynamic_routing)
        self.found = FoundServices(self.mesh, services_changed)
        self._services = Services(self.mesh, apps, added)
        self._config = config
        self._routes = routes
        self._owns_mesh = self._is_open = False
        metrics = self.mesh.metrics if config.enable_metrics else None
        self._meter = None if metrics is None else metrics.gateway
        self._forwarding = Forwarding(config.trusted_proxies, config.via)
        self._engines = Engines(self.mesh.supervisor)
        production = self.mesh.config.environment == "production"
        self._tools = Tools(self.mesh.supervisor, clock=self.mesh.clock, production=production)
        self._early = EarlyAnswers(self._meter)
        self._shared: dict[str, tuple[ServicePolicy, Policies]] = {}
        self._health = GatewayHealth(self.mesh.health)
        self._health_checks = extensions.health_checks
        for _ in self.taking(config, routes, extensions):
            pass
        self._watch = Watch(self.mesh.supervisor)
        self.forward = Forward(self.mesh, forwarding=self._forwarding, watch=self._watch, early=self._early)
        self.websockets = WebSockets(self.mesh, forwarding=self._forwarding, early=self._early, meter=self._meter)
        self.reserved = reserved_paths(self.mesh, metrics=metrics is not None)
        self._unsubscribe = self.mesh.policies.on_change(self._policy_changed)

    @property
    def cache(self) -> CacheEngine | None:
        """The shared cache, None where no route uses it."""
        engine = self._engines.running(ENGINE)
        return engine if isinstance(engine, CacheEngine) else None

    def dynamic_table(self, config: GatewayConfig) -> RouteTable[Route] | None:
        """The routes to discovered services, None where there are none."""
        routes = dynamic_routes(config, self.found.services, self.mesh.service_name)
        return new_table(routes, config) if routes else None

    def service_names(self) -> list[str]:
        """The services that routes lead to, and those that are configured."""
        routed = [name for route in self._routes for name in route.services]
        return list(dict.fromkeys([*routed, *self._config.services]))

    async def start(self) -> None:
        """Open the mesh, unless another door has: the first one owns it."""
        self._owns_mesh = await self.mesh.life.open()
        self.found.take(self._config)
        await self.found.wait_first()
        self._health.take(self._health_checks)
        self._is_open = True

    async def aclose(self) -> None:
        self._unsubscribe()
        self.found.close()
        self._health.close()
        self._watch.close()
        self.forward.close()
        self.websockets.close()
        await self._engines.aclose()
        if self._owns_mesh:
            await self.mesh.life.close()

    def end_streams(self) -> None:
        """End event streams and WebSockets, of which a server that stops would wait for the end."""
        self.forward.end_streams()
        self.websockets.end()

    def taking(self, config: GatewayConfig, routes: Sequence[Route], extensions: Extensions) -> Steps:
        """Make all this what counts, in steps: at the last one, all at once. Given up between two, nothing changes.

        Raises ConfigurationError before anything has changed.
        """
        self._services.check(config)
        self.found.check(config)
        try:
            lines = new_lines(config, extensions.providers)
            likely = [Route(each, config) for each in dynamic_routes(config, [ANY_SERVICE], "")]
            parts = self._parts(config, [*routes, *likely], extensions, lines)
            chains = partial(_chains, self.mesh.stack, parts)
            ready: list[tuple[Route, GatewayService, GatewayService, WebSocketPolicy]] = []
            for route in (*likely, *routes):
                ready.append((route, *chains(route), effective(config.websocket, route.config.websocket)))
                yield
            doors = Doors(config, parts)
        except BaseException:
            self._engines.rollback()
            raise
        self._forwarding.configure(config.trusted_proxies, config.via)
        self._chains_of = chains
        self._config, self._routes = config, ()  # no route need hear of what is about to change
        self._shared.clear()
        self._services.take(config)
        self._engines.commit()
        self._routes, self.doors = routes, doors
        self._early.cors = None if config.cors is None else CorsRules(config.cors)
        self._early.lines = lines
        self._health_checks = extensions.health_checks
        if self._is_open:
            self._health.take(extensions.health_checks)
            self.found.take(config)
        for route, chain, upgrade, websocket in ready[len(likely) :]:
            route.chain, route.upgrade, route.websocket = chain, upgrade, websocket
            self._set_policies(route)

    def _parts(
        self, config: GatewayConfig, routes: Sequence[Route], extensions: Extensions, lines: AccessLines | None
    ) -> Parts:
        """What the layers of all routes share."""
        from fastapi_mesh.api_gateway.auth.plan import new_plan  # imported late, as in `__init__`

        limits = rate_limits(config, routes, extensions, self._engines, self.mesh.supervisor, self._meter)
        if not config.dynamic_routing and (
            unknown := unknown_routes(extensions.transformers, (route.path for route in routes))
        ):
            raise ConfigurationError(problems=unknown)
        meter = None if self._meter is None else self._meter.cache
        caching = new_caching(config, routes, self._engines, meter=meter, supervisor=self.mesh.supervisor)
        return Parts(
            self._meter,
            _DROPPED,
            Forwarding(config.trusted_proxies, config.via).via,
            self.mesh,
            cors=config.cors,
            transform=config.transform,
            transformers=extensions.transformers,
            limits=limits,
            caching=caching,
            auth=new_plan(config, extensions.providers, routes, self._engines, self._tools),
            lines=lines,
            own_states=own_states(routes, self._engines, self.mesh.states),
            inbound=inbound_seats(config.inbound_limit, self._engines, self.mesh),
        )

    def _set_policies(self, route: Route) -> None:
        for service in route.services:
            self._set_policy(route, service)

    def _set_policy(self, route: Route, service: str) -> None:
        """The mesh's policy for the service, under the gateway's own (B3 to B5), under the route's.

        What routes have in common is worked out once: 10 000 of them are changed together.
        """
        was_sticky = route.sticky
        shared = self._shared.get(service)
        if shared is None:
            policy = overlay(self.mesh.policy_of(service), self._config.policy_of(service))
            shared = self._shared[service] = policy, with_streaming(CallPolicy.compile(policy))
        if route.config.overrides:
            own = overlay(shared[0], route.config.policy())
            route.set_policy(service, with_streaming(CallPolicy.compile(own)))
        else:
            route.set_policy(service, shared[1])
        if route.sticky is not was_sticky:  # the only setting of a service that takes a layer of its routes
            route.chain, route.upgrade = self._chains_of(route)

    def _policy_changed(self, service: str, before: object, after: object) -> None:
        self._shared.pop(service, None)
        for route in self._routes:
            if service in route.services:
                self._set_policy(route, service)


def _chains(stack: Stack, parts: Parts, route: Route) -> tuple[GatewayService, GatewayService]:
    """The layers of a route, and those of a WebSocket's handshake on it."""
    asking, uncached = Upgrade(stack), replace(parts, caching=None)
    return compile_chain(stack, route, parts), LateChain(partial(compile_chain, asking, route, uncached, upgrade=True))


def mesh_of(scope: Message) -> ServiceMesh | None:
    """The mesh of the application whose scope this is."""
    state = getattr(scope.get("app"), "state", None)
    for mesh in (scope.get("state", {}).get("mesh"), getattr(state, "mesh", None)):
        if isinstance(mesh, ServiceMesh):
            return mesh
    return None


def _private_mesh(*, discover: bool) -> ServiceMesh:
    """A mesh for this gateway alone: it knows the services it is told of, and discovers others only if asked to."""
    asked = discover or any(os.environ.get(name) for name in _ASKS_FOR_DISCOVERY)
    if asked:
        return ServiceMesh(PRIVATE_NAME)
    return ServiceMesh(PRIVATE_NAME, discovery_backend="static", enable_service_discovery=False)
