"""Makes discovery by etcd, and the config store in it, from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.configstore.etcd import EtcdStore
from fastapi_mesh.discovery.etcd import EtcdRegistry
from fastapi_mesh.discovery.etcd_client import EtcdClient
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.backends.client import control_client

if TYPE_CHECKING:
    from fastapi_mesh.config.backends import DiscoveryConfig
    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.service_mesh.backends import Surroundings

PORT = 2379


def discovery(settings: DiscoveryConfig, surroundings: Surroundings) -> EtcdRegistry:
    """The registry. Raises ConfigurationError for TLS material that can't be used."""
    return EtcdRegistry(
        client(settings),
        space=space(settings, surroundings.namespace),
        lease=settings.lease,
        heartbeat=settings.heartbeat,
        clock=surroundings.clock,
        supervisor=surroundings.supervisor,
    )


def store(settings: ServerSettings, namespace: str, clock: Clock | None) -> EtcdStore:
    """The config store. Raises ConfigurationError for TLS material that can't be used."""
    return EtcdStore(client(settings), space=space(settings, namespace), clock=clock)


def space(settings: ServerSettings, namespace: str) -> Space:
    """Where the keys of `namespace` are."""
    return Space(settings.etcd.prefix, namespace, settings.etcd.watch_idle)


def client(settings: ServerSettings) -> EtcdClient:
    """A client of all endpoints. Raises ConfigurationError for TLS material and credentials that can't be used."""
    if (settings.username is None) != (settings.password is None):
        raise ConfigurationError("etcd: a user has a password: give both username and password, or none")
    urls = endpoints(settings)
    return EtcdClient(
        {url: control_client(settings, url) for url in urls},
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password is not None else "",
        timeout=settings.request_timeout,
    )


def endpoints(settings: ServerSettings) -> tuple[str, ...]:
    """The URLs of the members, that of `host` first if it is set or the only one."""
    scheme = "https" if settings.secure else "http"
    listed = [each if "//" in each else f"{scheme}://{each}" for each in settings.etcd.endpoints]
    own = [settings.url(PORT)] if settings.host is not None or not listed else []
    return tuple(dict.fromkeys([*own, *listed]))
