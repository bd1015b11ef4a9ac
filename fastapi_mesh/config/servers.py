"""Settings of a server that is a registry or a config store: where it is and with which credentials it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from fastapi_mesh.config.consul import ConsulConfig
from fastapi_mesh.config.dns import DnsConfig
from fastapi_mesh.config.etcd import EtcdConfig
from fastapi_mesh.config.fields import Frozen, Host, Port, Problems, Seconds
from fastapi_mesh.config.kubernetes import KubernetesConfig

TLS = ("tls", "ca_path", "cert_path", "key_path")
SERVER = ("host", "port", "request_timeout", *TLS)

USES: dict[str, tuple[str, ...]] = {
    "consul": (*SERVER, "token", "consul"),
    "etcd": (*SERVER, "username", "password", "etcd"),
    "kubernetes": ("request_timeout", "kubernetes"),
    "dns": ("host", "port", "request_timeout", "dns"),
}
"""Backend to the settings below that it uses; another one that is given is an error."""


class ServerSettings(Frozen):
    """Where a registry's or config store's server is, and who asks it."""

    OWN: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Backend to the settings of the subclass that it uses."""
    GENERAL: ClassVar[tuple[str, ...]] = ()
    """Settings of the subclass that have a meaning for each backend."""

    host: Host | None = Field(default=None, description="The server; None: this machine. Backend dns: the resolver.")
    port: Port | None = Field(
        default=None, description="Its port; None: the usual one (consul 8500, with TLS 8501; etcd 2379; dns 53)."
    )
    tls: bool | None = Field(
        default=None, description="Whether it is asked over TLS; None: when a certificate or CA is given."
    )
    token: SecretStr | None = Field(default=None, description="Backend consul: the ACL token.")
    username: str | None = Field(default=None, description="Backend etcd: the user.")
    password: SecretStr | None = Field(default=None, description="Backend etcd: the user's password.")
    ca_path: Path | None = Field(
        default=None, description="Whom to trust (PEM); None: the system's certificate authorities."
    )
    cert_path: Path | None = Field(default=None, description="The client certificate (PEM), if the server wants one.")
    key_path: Path | None = Field(
        default=None, validate_default=True, description="Its private key (PEM); None: it is in the file `cert_path`."
    )
    request_timeout: Seconds = Field(
        default=10.0, description="Seconds that the server may take for each step of an answer."
    )
    consul: ConsulConfig = Field(default=ConsulConfig(), description="What only Consul has.")
    etcd: EtcdConfig = Field(default=EtcdConfig(), description="What only etcd has.")
    kubernetes: KubernetesConfig = Field(default=KubernetesConfig(), description="What only Kubernetes has.")
    dns: DnsConfig = Field(default=DnsConfig(), description="What only DNS has.")

    @classmethod
    def settings_of(cls, backend: str) -> frozenset[str] | None:
        """The names of the settings that `backend` has here; None for one that is not ours."""
        own = cls.OWN.get(backend)
        return None if own is None else frozenset((*own, *USES.get(backend, ()), *cls.GENERAL))

    @property
    def secure(self) -> bool:
        """Whether the server is asked over TLS."""
        return self.tls if self.tls is not None else bool(self.ca_path or self.cert_path)

    def url(self, port: int, secure_port: int | None = None) -> str:
        """The server's URL; the ports are those without and with TLS where none is set."""
        host = self.host or "127.0.0.1"
        usual = secure_port if self.secure and secure_port is not None else port
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self.secure else 'http'}://{name}:{self.port or usual}"

    @field_validator("key_path")
    @classmethod
    def _key_has_a_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("cert_path") is None:
            raise Problems([((), "a private key without cert_path, the certificate it belongs to")])
        return key

    @model_validator(mode="after")
    def _only_what_the_backend_uses(self) -> ServerSettings:
        backend = getattr(self, "backend", None)
        used = self.settings_of(str(backend))
        if used is None:
            return self  # one of your own, or that of discovery
        fields = type(self).model_fields
        given = (name for name in self.model_fields_set if getattr(self, name) != fields[name].default)
        wrong = sorted(name for name in given if name not in used)
        if wrong:
            has = ", ".join(sorted(used.difference(self.GENERAL))) or "no settings of its own"
            raise Problems([((name,), f"the backend {backend!r} does not have it; it has {has}") for name in wrong])
        return self
