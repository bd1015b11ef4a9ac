"""Settings that only etcd has."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from fastapi_mesh.config.fields import Frozen, Seconds, shown


def _prefix(value: str) -> str:
    if not value.isprintable() or "" in value.split("/"):
        raise ValueError(f"{shown(value)} is not a prefix of keys: printable segments between '/', like 'shop/mesh'")
    return value


def _endpoint(value: str) -> str:
    parts = urlsplit(value if "//" in value else f"//{value}")
    try:
        complete = bool(parts.hostname and parts.port)
    except ValueError:  # a port that is none
        complete = False
    if (
        not complete
        or parts.scheme not in ("", "http", "https")
        or parts.path.strip("/")
        or parts.query
        or "@" in value
    ):
        raise ValueError(
            f"{shown(value)} is not an endpoint: host:port, like '10.0.0.1:2379', or http(s)://host:port; user and "
            "password are settings of their own"
        )
    return value.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_endpoint)]


class EtcdConfig(Frozen):
    """What etcd needs to know beyond where it is."""

    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="fastapi-mesh", description="What all keys begin with, before '/NAMESPACE/'."
    )
    endpoints: tuple[Endpoint, ...] = Field(
        default=(),
        description="The members of the cluster, as host:port or URL; the next one is asked when one is away. None: "
        "`host` and `port`, which else come first if `host` is set.",
    )
    watch_idle: Seconds = Field(
        default=10.0,
        description="Seconds of silence after which a watch is opened anew, since a connection that a router has "
        "forgotten is silent too. It goes on where it was.",
    )
