"""Routes made from discovered services: `{route_prefix}/{service}/*`, which appear and vanish with them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi_mesh.config.routes import RouteConfig
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.gateway")

HIDDEN = "fastapi-mesh.expose=false"
"""A tag: a service that has it at any of its instances gets no route."""

FIRST_LIST = 1.0
"""Seconds that opening waits for the registry to say which services there are; then routes come when they come."""

TASK = "gateway-dynamic-routes"

ANY_SERVICE = KnownService("any-service")
"""Stands for services to come: what is wrong with the settings of their routes shows before there is one."""

_CAN_NOT_LIST = (
    "dynamic_routing: the mesh's discovery can't say which services there are; it needs a method watch_services "
    "(see discovery.base.ServiceList)"
)
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""Names of services that can stand in a path as they are."""


def dynamic_routes(config: GatewayConfig, services: Iterable[KnownService], own: str) -> tuple[RouteConfig, ...]:
    """A route for each of `services` but the gateway's `own`, those with the tag HIDDEN, and names no path can have."""
    if not config.dynamic_routing:
        return ()
    template = config.dynamic_routes
    settings = {name: getattr(template, name) for name in template.model_fields_set}
    return tuple(
        RouteConfig.model_validate(
            {**settings, "path": f"{config.route_prefix}/{each.name}/*", "service": each.name, "strip_prefix": True}
        )
        for each in services
        if each.name != own and HIDDEN not in each.tags and _SEGMENT.fullmatch(each.name)
    )


class FoundServices:
    """Which services discovery knows, followed while dynamic routing is on; `changed` is called after each change.

    When the registry fails, the last list stays. `services` is empty until the first one has come.
    """

    def __init__(self, mesh: ServiceMesh, changed: Callable[[], object]) -> None:
        self.services: tuple[KnownService, ...] = ()
        self._mesh = mesh
        self._changed = changed
        self._first = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    def check(self, config: GatewayConfig) -> None:
        """Raises ConfigurationError where discovery can't list its services."""
        if config.dynamic_routing and not self._mesh.lists_services:
            raise ConfigurationError(problems=[_CAN_NOT_LIST])

    def take(self, config: GatewayConfig) -> None:
        """Follow, or don't, as the settings say. The mesh is open."""
        if config.dynamic_routing and self._task is None:
            self._first.clear()
            self._task = self._mesh.supervisor.keep(self._follow, name=TASK)
        elif not config.dynamic_routing:
            self.close()

    async def wait_first(self) -> None:
        """Wait for the first list, if it is followed, but not for ever."""
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LIST):
                    await self._first.wait()

    def close(self) -> None:
        task, self._task, self.services = self._task, None, ()
        if task is not None:
            task.cancel()
            self._mesh.supervisor.degraded.pop(TASK, None)

    async def _follow(self) -> None:
        listing = self._mesh.watch_services()
        try:
            async for services in listing:
                self._tell(services)
                self._first.set()
                self._changed()
                self._mesh.supervisor.recovered(TASK)
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    def _tell(self, services: tuple[KnownService, ...]) -> None:
        before, now = {each.name for each in self.services}, {each.name for each in services}
        self.services = services
        for verb, names in (("appeared", now - before), ("vanished", before - now)):
            if names:
                logger.info("services %s: %s", verb, ", ".join(sorted(names)))
