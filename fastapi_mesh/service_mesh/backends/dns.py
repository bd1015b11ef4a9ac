"""Makes discovery by DNS from the settings."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from fastapi_mesh.discovery.dns import DnsDiscovery
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.config.backends import DiscoveryConfig
    from fastapi_mesh.service_mesh.backends import Surroundings

PORT = 53


def discovery(settings: DiscoveryConfig, surroundings: Surroundings) -> DnsDiscovery:
    """The discovery. Raises ConfigurationError for a resolver that is not given by its address."""
    return DnsDiscovery(
        settings.dns,
        nameserver=nameserver(settings),
        timeout=settings.request_timeout,
        clock=surroundings.clock,
        supervisor=surroundings.supervisor,
    )


def nameserver(settings: DiscoveryConfig) -> tuple[str, int] | None:
    """The resolver's address and port; None for those of /etc/resolv.conf."""
    if settings.host is None and settings.port is None:
        return None
    host = settings.host or "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigurationError(
            f"discovery.host: {host!r} is a name, and names are what this server is asked for: give its IP address"
        ) from error
    return host, settings.port or PORT
