"""All backends that the suites of discovery and of config stores run over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.contracts import backends, config_backends
from tests.contracts.consul_backends import Consul, ConsulKeys
from tests.contracts.kubernetes_backends import Kubernetes, KubernetesConfigMap

if TYPE_CHECKING:
    from tests.contracts.backends import Backend, RegistryBackend
    from tests.contracts.config_backends import StoreBackend

DISCOVERIES: tuple[type[Backend], ...] = (*backends.ALL, Consul, Kubernetes)
REGISTRIES: tuple[type[RegistryBackend], ...] = (*backends.REGISTRIES, Consul)
STORES: tuple[type[StoreBackend], ...] = (*config_backends.ALL, ConsulKeys, KubernetesConfigMap)
