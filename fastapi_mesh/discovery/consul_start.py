"""What is asked of Consul once, when a node starts: is it there, is it Consul, and does it let us read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.discovery.consul_api import ConsulError, decoded, refusal
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.discovery.consul_api import ConsulApi

LEADER = "/v1/status/leader"
TOKEN = "/v1/acl/token/self"
CATALOG = "/v1/catalog/services"


def where(settings: ServerSettings) -> str:
    """How messages call the server of `settings`."""
    return f"Consul at {settings.url(8500, 8501)}"


async def check_server(api: ConsulApi, settings: ServerSettings) -> None:
    """Raises ConfigurationError for what is no Consul, and ConsulError for one that has no leader."""
    answer = await api.ask(LEADER)
    if answer.status >= 500 or answer.status == 429:
        raise refusal("GET", LEADER, answer)
    if answer.status == 400 and b"HTTPS" in answer.content:
        raise ConfigurationError(f"discovery.tls: {where(settings)} wants TLS; set tls=True, and ca_path for its CA")
    try:
        leader = decoded(answer, LEADER)
    except ConsulError:
        leader = None
    if answer.status != 200 or not isinstance(leader, str):
        raise ConfigurationError(
            f"discovery.host: what answers at {settings.url(8500, 8501)} is not Consul's HTTP API (status "
            f"{answer.status}); check host and port"
        )
    if not leader:
        raise ConsulError("Consul has no leader")


async def check_rights(api: ConsulApi, settings: ServerSettings) -> None:
    """Raises ConfigurationError where no list could ever be read with these settings, ConsulError for anything else."""
    has_token = settings.token is not None and bool(settings.token.get_secret_value().strip())
    if has_token:
        answer = await api.ask(TOKEN)
        if answer.status == 403:
            raise ConfigurationError(
                f"discovery.token: {where(settings)} does not know this token; it may have been deleted or have expired"
            )
        if answer.status >= 500:
            raise refusal("GET", TOKEN, answer)
    try:
        answered = await api.read(CATALOG)
    except ConsulError as error:
        if error.answered in (400, 401, 403):
            raise ConfigurationError(f"discovery: {where(settings)} refuses to be read: {error}") from error
        raise
    place = settings.consul.namespace or settings.consul.partition
    nothing = answered.content is not None and decoded(answered.content, CATALOG) == {}
    if nothing and not has_token and not place:  # it lists itself, to those who may see it
        raise ConfigurationError(
            f"discovery.token: {where(settings)} lets nobody read its services without an ACL token; set token "
            "(MESH_DISCOVERY__TOKEN) to one with service:read and node:read"
        )
