"""Makes the registry and the config store that the settings name: one file per kind of server beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from fastapi_mesh.config.backends import BACKENDS, ENTRY_POINTS
from fastapi_mesh.configstore.file import FileStore
from fastapi_mesh.configstore.local import LocalStore
from fastapi_mesh.configstore.memory import MemoryStore
from fastapi_mesh.discovery.hosts import HostNames
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.config.backends import DiscoveryConfig, StoreConfig
    from fastapi_mesh.config.mesh import MeshConfig
    from fastapi_mesh.configstore.base import ConfigStore
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import Discovery

STORES = ("local", "memory", "consul", "etcd", "kubernetes")
"""Backends of discovery that also keep configuration."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a backend may use of the node that it is made for."""

    namespace: str
    clock: Clock
    supervisor: Supervisor


@runtime_checkable
class Opened(Protocol):
    """A backend that is opened before its first use, and closed."""

    async def open(self) -> None:
        """Raises ConfigurationError for what waiting can't mend, ServiceDiscoveryError for a server that is away."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Closed(Protocol):
    """A backend or store that is closed at the end."""

    async def aclose(self) -> None: ...


def discoveries_of(config: MeshConfig, surroundings: Surroundings) -> list[Discovery]:
    """The backends that `config.discovery` names, in the order in which they are asked. Raises ConfigurationError."""
    if not config.enabled:
        return [HostNames()]
    if not config.enable_service_discovery:
        return []
    found = [_discovery(each, surroundings) for each in _flat(config.discovery)]
    return [each for each in found if each is not None]


def _flat(settings: DiscoveryConfig) -> list[DiscoveryConfig]:
    return [settings, *(below for each in settings.chain for below in _flat(each))]


def _discovery(settings: DiscoveryConfig, surroundings: Surroundings) -> Discovery | None:
    match settings.backend:
        case "local":
            return LocalRegistry(
                settings.path,
                namespace=surroundings.namespace,
                lease=settings.lease,
                heartbeat=settings.heartbeat,
                poll_interval=settings.poll_interval,
                clock=surroundings.clock,
            )
        case "memory":
            return MemoryRegistry(lease=settings.lease, heartbeat=settings.heartbeat, clock=surroundings.clock)
        case "static":
            return None
        case "consul":
            from fastapi_mesh.service_mesh.backends import consul  # imported late: only its users load it

            return consul.discovery(settings, surroundings)
        case "etcd":
            from fastapi_mesh.service_mesh.backends import etcd

            return etcd.discovery(settings, surroundings)
        case "dns":
            from fastapi_mesh.service_mesh.backends import dns

            return dns.discovery(settings, surroundings)
        case "kubernetes":
            from fastapi_mesh.service_mesh.backends import kubernetes

            return kubernetes.discovery(settings, surroundings)
    assert settings.backend not in BACKENDS, "each has a case"
    return _of_another_package(settings)


def _of_another_package(settings: DiscoveryConfig) -> Discovery:
    """The backend that an installed package offers by an entry point, made with `options` as keyword arguments."""
    (offer, *_) = entry_points(group=ENTRY_POINTS, name=settings.backend)
    try:
        backend = offer.load()(**settings.options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"discovery.backend: {settings.backend!r} ({offer.value}) can't be made with these options: {error}"
        ) from error
    if not hasattr(backend, "watch"):
        raise ConfigurationError(
            f"discovery.backend: {settings.backend!r} ({offer.value}) has no method watch(service); see "
            "fastapi_mesh.discovery.base.Discovery"
        )
    return cast("Discovery", backend)


def store_of(
    settings: StoreConfig, discovery: DiscoveryConfig | None, *, namespace: str, clock: Clock | None = None
) -> ConfigStore:
    """The config store that `settings` name, else that of discovery's backend. Raises ConfigurationError."""
    server = settings if settings.backend or discovery is None else discovery
    match server.backend:
        case "local":
            return LocalStore(server.path, namespace=namespace, poll_interval=settings.poll_interval, clock=clock)
        case "memory":
            return MemoryStore()
        case "file":
            assert server.path is not None, "its settings say so"
            return FileStore(server.path, poll_interval=settings.poll_interval, clock=clock)
        case "consul":
            from fastapi_mesh.service_mesh.backends import consul  # imported late: only its users load it

            return consul.store(server, namespace, clock)
        case "etcd":
            from fastapi_mesh.service_mesh.backends import etcd

            return etcd.store(server, namespace, clock)
        case "kubernetes":
            from fastapi_mesh.service_mesh.backends import kubernetes

            return kubernetes.store(server, namespace, clock)
    raise ConfigurationError(
        f"config_store.backend: the backend {server.backend!r} of discovery keeps no configuration; name one of "
        f"file, {', '.join(STORES)}"
    )
