"""What an open gateway has: the mesh it calls through, and the data path over it, from start to close."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.client import Watch
from fastapi_mesh.api_gateway.engines import Engines
from fastapi_mesh.api_gateway.forward import Forward
from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.pipeline import Parts, compile_chain
from fastapi_mesh.api_gateway.ratelimit.limits import rate_limits
from fastapi_mesh.api_gateway.reserved import reserved_paths
from fastapi_mesh.api_gateway.services import Services
from fastapi_mesh.config.overlay import overlay
from fastapi_mesh.config.policies import CallPolicy
from fastapi_mesh.service_mesh.mesh import ServiceMesh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.core.instance import ASGIApp, Message

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
    ) -> None:
        self.mesh = mesh or _private_mesh()
        self._services = Services(self.mesh, apps, added)
        self._config = config
        self._routes = routes
        self._owns_mesh = False
        metrics = self.mesh.metrics if config.enable_metrics else None
        self._meter = None if metrics is None else metrics.gateway
        self._forwarding = Forwarding(config.trusted_proxies, config.via)
        self._engines = Engines(self.mesh.supervisor)
        self.take(config, routes, extensions)
        self._watch = Watch(self.mesh.supervisor)
        self.forward = Forward(self.mesh, forwarding=self._forwarding, watch=self._watch, meter=self._meter)
        self.reserved = reserved_paths(self.mesh, metrics=metrics is not None)
        self._unsubscribe = self.mesh.policies.on_change(self._policy_changed)

    async def start(self) -> None:
        """Open the mesh, unless another door has: the first one owns it."""
        self._owns_mesh = await self.mesh.life.open()

    async def aclose(self) -> None:
        self._unsubscribe()
        self._watch.close()
        self.forward.close()
        await self._engines.aclose()
        if self._owns_mesh:
            await self.mesh.life.close()

    def take(self, config: GatewayConfig, routes: Sequence[Route], extensions: Extensions) -> None:
        """Make all this what counts from now on. Raises ConfigurationError before anything has changed."""
        self._services.check(config)
        self._forwarding.configure(config.trusted_proxies, config.via)
        try:
            chains = self._chains(config, routes, extensions)
        except BaseException:
            self._engines.rollback()
            self._forwarding.configure(self._config.trusted_proxies, self._config.via)
            raise
        self._config, self._routes = config, ()  # no route need hear of what is about to change
        self._services.take(config)
        self._engines.commit()
        self._routes = routes
        for route, chain in chains:
            route.chain = chain
            self._set_policies(route)

    def _chains(
        self, config: GatewayConfig, routes: Sequence[Route], extensions: Extensions
    ) -> list[tuple[Route, GatewayService]]:
        """Each route with its layers."""
        limits = rate_limits(config, routes, extensions, self._engines, self.mesh.supervisor, self._meter)
        parts = Parts(self._meter, _DROPPED, self._forwarding.via, self.mesh, limits=limits)
        return [(route, compile_chain(self.mesh.stack, route, parts)) for route in routes]

    def _set_policies(self, route: Route) -> None:
        for service in route.services:
            self._set_policy(route, service)

    def _set_policy(self, route: Route, service: str) -> None:
        """The mesh's policy for the service, under the gateway's own timeouts and retries (B3 to B5)."""
        own = self._config.policy_of(service)
        route.set_policy(service, CallPolicy.compile(overlay(self.mesh.policy_of(service), own)))

    def _policy_changed(self, service: str, before: object, after: object) -> None:
        for route in self._routes:
            if service in route.services:
                self._set_policy(route, service)


def mesh_of(scope: Message) -> ServiceMesh | None:
    """The mesh of the application whose scope this is."""
    state = getattr(scope.get("app"), "state", None)
    for mesh in (scope.get("state", {}).get("mesh"), getattr(state, "mesh", None)):
        if isinstance(mesh, ServiceMesh):
            return mesh
    return None


def _private_mesh() -> ServiceMesh:
    """A mesh for this gateway alone: it knows the services it is told of, and discovers others only if asked to."""
    asked = any(os.environ.get(name) for name in _ASKS_FOR_DISCOVERY)
    if asked:
        return ServiceMesh(PRIVATE_NAME)
    return ServiceMesh(PRIVATE_NAME, discovery_backend="static", enable_service_discovery=False)
