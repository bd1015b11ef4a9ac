"""Settings of a gateway's own server: where it listens, with which TLS material, and what a client may take of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from fastapi_mesh.config.backends import StoreBackend, StoreConfig, StoreKey
from fastapi_mesh.config.fields import Count, Frozen, Host, ListenPort, NotBool, Port, Problems, Seconds, ServiceName


class ConfigStoreConfig(StoreConfig):
    """Where a gateway finds settings that are changed while it runs."""

    GENERAL: ClassVar[tuple[str, ...]] = ("backend", "key", "namespace")

    backend: StoreBackend = Field(  # a gateway may have no discovery to take it from
        default="local", description=StoreConfig.model_fields["backend"].description
    )
    key: StoreKey = Field(
        default="gateway",
        description="The key of the gateway's settings. Its ending says how they are written: .toml, .yaml, else JSON.",
    )
    namespace: ServiceName = Field(default="default", description="Keys are those of this namespace.")


class Listener(Frozen):
    """What only a gateway that is its own server uses (`gateway.start()`, `fastapi-mesh gateway`).

    None of it can be changed while the server runs.
    """

    host: Host = Field(default="0.0.0.0", description="The address to listen on, standalone.")
    port: ListenPort = Field(default=8080, description="The port to listen on, standalone; 0: any free one.")
    workers: Count = Field(
        default=1,
        description="Processes that share the port, standalone; each is a node of its own. More than one needs "
        "`fastapi-mesh gateway` or `python -m fastapi_mesh.api_gateway`.",
    )
    backlog: Count = Field(default=2048, description="Connections that may wait to be accepted, standalone.")
    ssl_cert: Path | None = Field(
        default=None, description="The certificate chain (PEM), the server's own first; standalone. None: plain HTTP."
    )
    ssl_key: Path | None = Field(
        default=None, validate_default=True, description="Its private key (PEM); None: it is in the file `ssl_cert`."
    )
    ssl_key_password: SecretStr | None = Field(
        default=None, description="What the private key is encrypted with; None: it isn't."
    )
    max_connections: Count | None = Field(
        default=1000,
        description="Client connections at once, for each worker, standalone; requests on further ones are answered "
        "503. None: no limit.",
    )
    keepalive_timeout: Seconds = Field(
        default=65.0, description="Seconds that a client's connection may be idle between two requests, standalone."
    )
    header_timeout: Seconds = Field(
        default=30.0, description="Seconds that a client may take for the head of a request, standalone."
    )
    max_header_size: Annotated[int, Field(ge=1024), NotBool] = Field(
        default=65536, description="Bytes that the head of a request may have, standalone; larger ones get 431."
    )
    shutdown_timeout: Seconds = Field(
        default=30.0,
        description="Seconds that requests under way may take when the server stops, standalone; then they are cut.",
    )
    worker_timeout: Seconds | None = Field(
        default=30.0,
        description="Seconds for which a worker may give no sign of life before it is killed and replaced, as one does "
        "whose event loop is blocked, standalone. None: for ever.",
    )
    metrics_port: Port | None = Field(
        default=None,
        description="A port of its own for metrics and health (plain HTTP), standalone; then `port` has no /metrics.",
    )
    metrics_host: Host | None = Field(default=None, description="Where `metrics_port` is; None: on `host`.")
    watch_config: bool = Field(
        default=True, description="Take over changes of the settings file and of `config_store` while the gateway runs."
    )
    config_store: ConfigStoreConfig | None = Field(
        default=None, description="Where settings are that change while the gateway runs; they count over the file."
    )

    @field_validator("ssl_key")
    @classmethod
    def _key_has_a_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("ssl_cert") is None:
            raise Problems([((), "a private key without ssl_cert, the certificate it belongs to")])
        return key

    @field_validator("metrics_port")
    @classmethod
    def _a_port_of_its_own(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port is not None and port == info.data.get("port"):
            raise ValueError(f"{port} is the gateway's own port; leave metrics_port out to have metrics there")
        return port


FIXED = (*Listener.model_fields, "enable_metrics")
"""Settings that a running gateway keeps, whatever its file says: they belong to sockets, processes and registries."""
