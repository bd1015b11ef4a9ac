"""Makes the registry and the config store on Consul from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.configstore.consul import ConsulStore
from fastapi_mesh.discovery.consul import ConsulRegistry
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.backends.client import control_client

if TYPE_CHECKING:
    from fastapi_mesh.config.backends import DiscoveryConfig
    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.control import Control
    from fastapi_mesh.service_mesh.backends import Surroundings

PORT, TLS_PORT = 8500, 8501
BESIDE = 16
"""Connections beside those of blocking queries: heartbeats, polls, first lists."""


def discovery(settings: DiscoveryConfig, surroundings: Surroundings) -> ConsulRegistry:
    """The registry. Raises ConfigurationError for TLS material that can't be used."""
    return ConsulRegistry(
        _client(settings),
        settings,
        namespace=surroundings.namespace,
        clock=surroundings.clock,
        supervisor=surroundings.supervisor,
    )


def store(settings: ServerSettings, namespace: str, clock: Clock | None) -> ConsulStore:
    """The config store. Raises ConfigurationError for TLS material that can't be used."""
    return ConsulStore(_client(settings), settings, namespace=namespace, clock=clock)


def _client(settings: ServerSettings) -> Control:
    token = None if settings.token is None else settings.token.get_secret_value().strip()  # files end with a newline
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ConfigurationError("token: an ACL token of Consul has only printable ASCII characters")
    return control_client(
        settings,
        settings.url(PORT, TLS_PORT),
        headers={"X-Consul-Token": token} if token else None,
        max_connections=settings.consul.max_watches + BESIDE,
    )
