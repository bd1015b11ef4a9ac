"""All backends that the suite of failures runs over."""

from __future__ import annotations

from tests.contracts import server_backends
from tests.contracts.consul_backends import ConsulServerBackend, ConsulWithTokens
from tests.contracts.dns_backends import DnsServerBackend
from tests.contracts.etcd_server import Etcd, EtcdWithUsers
from tests.contracts.kubernetes_backends import KubernetesServer, KubernetesWithTokens
from tests.contracts.server_backends import ServerBackend

ALL: tuple[type[ServerBackend], ...] = (
    *server_backends.ALL,
    Etcd,
    ConsulServerBackend,
    KubernetesServer,
    DnsServerBackend,
)
SECURED: tuple[type[ServerBackend], ...] = (
    *server_backends.SECURED,
    EtcdWithUsers,
    ConsulWithTokens,
    KubernetesWithTokens,
)
"""Those whose server asks for credentials."""
