"""Where a mesh finds instances and makes its own known: the fixed ones in front, then the configured backend."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.address import LOOPBACK, best_listener, own_listeners, routed_address
from fastapi_mesh.discovery.base import Locating, ServiceList
from fastapi_mesh.discovery.chained import ChainedDiscovery
from fastapi_mesh.discovery.directory import Directory
from fastapi_mesh.discovery.lists import is_loopback
from fastapi_mesh.discovery.registration import OwnRegistrations
from fastapi_mesh.discovery.rows import WORKER
from fastapi_mesh.discovery.static import StaticDiscovery
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.backends import Closed, Opened, Surroundings, discoveries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AsyncExitStack

    from fastapi_mesh.config.mesh import MeshConfig
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import ASGIApp
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import Discovery, Registrar
    from fastapi_mesh.discovery.static import Targets
    from fastapi_mesh.wire.asgi_lifespan import AsgiLifespan

logger = logging.getLogger("fastapi_mesh.discovery")

STARTED = "started"
"""Metadata key of a registration: when its process started (Unix time), so that a restart is told from a beat."""


class Sources:
    """The fixed services, the backend, the lists of both, and this node's own registrations."""

    def __init__(
        self,
        config: MeshConfig,
        discovery: Discovery | Sequence[Discovery] | None,
        *,
        supervisor: Supervisor,
        clock: Clock,
        observer: Observer,
        lifespan_of: Callable[[ASGIApp, str], AsgiLifespan] | None,
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._lifespan_of = lifespan_of
        self._lifespans: list[AsgiLifespan] = []
        self._open = False
        self.static = StaticDiscovery()
        if discovery is None:
            self.backends = discoveries_of(config, Surroundings(config.namespace, clock, supervisor))
        else:
            self.backends = list(discovery) if isinstance(discovery, Sequence) else [discovery]
        self.chain = ChainedDiscovery([self.static, *self.backends], supervisor=supervisor)
        self.directory = Directory(self.chain, supervisor, observer=observer, clock=clock)
        self._own: OwnRegistrations | None = None
        registrar = _registrar(self.backends)
        if registrar is not None:
            self._own = OwnRegistrations(registrar, supervisor, clock=clock)
        for name, urls in config.services.items():
            self.add(name, urls)

    @property
    def lists_services(self) -> bool:
        """Whether every source can say which services it knows."""
        return all(isinstance(each, ServiceList) for each in self.backends)

    @property
    def found_by_readiness(self) -> bool:
        """Whether others see by this node's readiness, and not by a registration, that it is there."""
        return any(getattr(each, "found_by_readiness", False) for each in self.backends)

    async def default_address(self) -> str:
        """Where others reach a server of this node that listens on all interfaces: what the registry says, else our
        interface that leads to the registry, 127.0.0.1 for one on this machine. Raises ServiceDiscoveryError while the
        registry does not answer.
        """
        registrar: object = _registrar(self.backends)
        if isinstance(registrar, Locating):
            return await registrar.own_address()
        settings = self._config.discovery
        if registrar is None or settings.host is None or is_loopback(settings.host):
            return LOOPBACK
        return await routed_address(settings.host, settings.port or 80)

    def add(self, name: str, targets: Targets) -> None:
        """Fixed instances of `name`; replaces those given before. An application's lifespan runs with the mesh's."""
        for instance in self.static.replace(name, targets):
            if instance.app is not None and self._lifespan_of is not None:
                lifespan = self._lifespan_of(instance.app, name)
                if lifespan not in self._lifespans:
                    self._lifespans.append(lifespan)
                if self._open and not lifespan.running:
                    self._supervisor.start(lifespan.start(), name=f"lifespan:{name}")

    async def start(self, life: AsyncExitStack) -> None:
        """Open the backend and run the lifespans of in-process applications. Raises ConfigurationError for what
        waiting can't mend; a registry that does not answer is waited for in the background.
        """
        for backend in self.backends:
            if isinstance(backend, Closed):
                life.push_async_callback(backend.aclose)
        life.push_async_callback(self.directory.aclose)  # the watches end before what they watch
        for backend in self.backends:
            if isinstance(backend, Opened):
                try:
                    await backend.open()
                except ServiceDiscoveryError as error:
                    if self._config.start_policy == "fail":
                        raise
                    logger.warning("the registry does not answer yet (%s); starting without it", error)
        for lifespan in self._lifespans:
            life.push_async_callback(lifespan.stop)
            await lifespan.start()
        life.push_async_callback(self.deregister)
        self._open = True
        life.callback(self._closed)

    def _closed(self) -> None:
        self._open = False

    @property
    def ready(self) -> bool:
        """Whether every list that was asked for has come, or is on its way."""
        return self._open and not any(
            name.startswith("discovery:") and self._missing(name.removeprefix("discovery:"))
            for name in self._supervisor.degraded
        )

    def _missing(self, service: str) -> bool:
        return self.directory.peek(service) is None

    @property
    def registrations(self) -> tuple[Instance, ...]:
        """What this node keeps registered."""
        return () if self._own is None else self._own.instances

    async def register(
        self,
        service_id: str | None,
        address: str | None,
        port: int | None,
        health_check: str | None,
        tags: tuple[str, ...],
        metadata: Mapping[str, str],
    ) -> Instance:
        """See `ServiceMesh.register_service`."""
        config = self._config
        if config.service_name is None:
            raise ConfigurationError("service_name: a node without a name can't be registered; pass service_name=")
        port = port or config.port or await _own_port()
        address = address or config.address or "127.0.0.1"
        version = metadata.get("version")
        if version is not None and version != config.service_version:
            logger.warning(
                "metadata['version'] is %r, but service_version is %r; the latter is registered",
                version,
                config.service_version,
            )
        worker = {WORKER: str(os.getpid())} if config.worker_instances else {}
        name = "-".join([config.service_name, address, str(port), *worker.values()])
        instance = Instance(
            service=config.service_name,
            id=service_id or name,
            address=address,
            port=port,
            tags=tags,
            metadata={**metadata, **worker, STARTED: f"{time.time():.3f}"},
            version=config.service_version,
            zone=config.zone,
            health_check=health_check,
        )
        if self._own is None:
            why = (
                "its Service finds this pod by its readiness probe"
                if self.found_by_readiness
                else "nothing to register with (discovery is off or fixed)"
            )
            logger.info("%s is not registered: %s", instance.id, why)
            return instance
        if not await self._own.add(instance) and config.start_policy == "fail":
            raise ServiceDiscoveryError("the registry did not accept this node", service=instance.service)
        return instance

    async def deregister(self) -> None:
        """Withdraw everything this node has registered."""
        if self._own is not None:
            await self._own.withdraw_all()


def _registrar(backends: Sequence[Discovery]) -> Registrar | None:
    """The first backend that can register too: it has a `register` method."""
    return next((cast("Registrar", each) for each in backends if hasattr(each, "register")), None)


async def _own_port() -> int:
    listeners = await asyncio.to_thread(own_listeners)
    if not listeners:
        raise ConfigurationError(
            "port: it isn't known where this node listens; pass port= or set MESH_PORT (a server that already accepts "
            "connections is found by itself)"
        )
    return best_listener(listeners).port
