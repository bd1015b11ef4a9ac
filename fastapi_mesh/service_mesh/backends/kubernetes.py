"""Makes discovery by Kubernetes, and the config store in it, from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.configstore.kubernetes import KubernetesStore
from fastapi_mesh.discovery.kubernetes import KubernetesDiscovery
from fastapi_mesh.wire.kubernetes import KubernetesApi

if TYPE_CHECKING:
    from fastapi_mesh.config.backends import DiscoveryConfig
    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.service_mesh.backends import Surroundings

DEFAULT = "default"
"""A node's namespace where nobody has set one, which says nothing of the pod's."""


def discovery(settings: DiscoveryConfig, surroundings: Surroundings) -> KubernetesDiscovery:
    """The EndpointSlices of a namespace. Raises ConfigurationError for a kubeconfig that can't be used."""
    return KubernetesDiscovery(
        api(settings, surroundings.clock),
        supervisor=surroundings.supervisor,
        namespace=_namespace(settings, surroundings.namespace),
        port_name=settings.kubernetes.port_name,
        clock=surroundings.clock,
    )


def store(settings: ServerSettings, namespace: str, clock: Clock | None) -> KubernetesStore:
    """The ConfigMap. Raises ConfigurationError for a kubeconfig that can't be used."""
    own = settings.kubernetes
    return KubernetesStore(api(settings, clock), name=own.config_map, namespace=_namespace(settings, namespace))


def api(settings: ServerSettings, clock: Clock | None = None) -> KubernetesApi:
    """A client of the API. Raises ConfigurationError for a kubeconfig that can't be used."""
    own = settings.kubernetes
    return KubernetesApi(
        kubeconfig=None if own.kubeconfig is None else str(own.kubeconfig.expanduser()),
        context=own.context,
        timeout=settings.request_timeout,
        watch_timeout=own.watch_timeout,
        clock=clock,
    )


def _namespace(settings: ServerSettings, namespace: str) -> str | None:
    """The namespace that is asked, None for the client's own."""
    return settings.kubernetes.namespace or (namespace if namespace != DEFAULT else None)
