"""A backend for nodes in Kubernetes: instances are the endpoints of Services, as their EndpointSlices say.

A node doesn't register: a Service finds its pod by labels, and its readiness probe says whether it gets requests.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from fastapi_mesh.discovery.feed import ALL, SharedFeed
from fastapi_mesh.discovery.kubernetes_slices import Slices
from fastapi_mesh.exceptions import ConfigurationError, MeshError, ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.objects import Batch, Objects
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.discovery.base import KnownService

V = TypeVar("V")


class KubernetesDiscovery:
    """A Discovery and a ServiceList over `objects`, which it closes. `namespace` None is that of `objects`.

    A service `name` is the Service of that name in the namespace, `name.other` the one in the namespace `other`. One
    list and one watch of a namespace's slices serve all who watch a service of it; they end with the last of those.
    """

    found_by_readiness = True
    """Others see by the readiness probe that this node leaves, so the drain waits for them."""

    def __init__(
        self,
        objects: Objects,
        *,
        supervisor: Supervisor,
        namespace: str | None = None,
        port_name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._objects = objects
        self._supervisor = supervisor
        self._namespace = namespace or objects.namespace
        self._port_name = port_name
        self._clock = clock
        self._followed: dict[str, _Namespace] = {}

    def statistics(self) -> dict[str, int]:
        """Namespaces followed, slices known and watchers."""
        followed = self._followed.values()
        return {
            "namespaces": len(followed),
            "slices": sum(len(each.slices) for each in followed),
            "watchers": sum(each.users for each in followed),
        }

    async def open(self) -> None:
        """Ask once, to learn at once what waiting can't mend: credentials, rights, TLS, a server of another kind.

        Raises ConfigurationError for those, ServiceDiscoveryError when the API does not answer.
        """
        try:
            await self._objects.first("endpointslices", self._namespace)
        except MeshError as error:
            status = getattr(error, "status_code", None)
            if status in (401, 403):
                raise ConfigurationError(
                    f"discovery.kubernetes: {error}; the ServiceAccount needs the verbs list and watch for "
                    f"endpointslices.discovery.k8s.io in the namespace {self._namespace!r}"
                ) from error
            if status == 404:
                raise ConfigurationError(f"discovery.kubernetes: {error}; that is no Kubernetes API") from error
            raise _away(error) from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._objects.aclose()

    def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        name, namespace = self._place(service)
        return self._values(namespace, name, lambda followed: followed.list_of(name, service), service)

    def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`: the Services of the namespace."""
        return self._values(self._namespace, ALL, lambda followed: followed.slices.known())

    async def _values(
        self, namespace: str, what: str, read: Callable[[_Namespace], V], service: str | None = None
    ) -> AsyncIterator[V]:
        followed = self._in(namespace)
        try:
            async with aclosing(followed.values(what, lambda: read(followed), service=service)) as values:
                async for each in values:
                    yield each
        finally:
            self._left(namespace, followed)

    def _place(self, service: str) -> tuple[str, str]:
        """The Service's name and namespace; a Service's name has no dot in it."""
        name, dot, namespace = service.partition(".")
        return (name, namespace) if dot and namespace and "." not in namespace else (service, self._namespace)

    def _in(self, namespace: str) -> _Namespace:
        followed = self._followed.get(namespace)
        if followed is None:
            followed = self._followed[namespace] = _Namespace(self, namespace)
        return followed

    def _left(self, namespace: str, followed: _Namespace) -> None:
        if not followed.users and self._followed.get(namespace) is followed:
            del self._followed[namespace]


class _Namespace(SharedFeed["Batch"]):
    """The slices of a namespace, kept as they are while somebody watches one of its services."""

    def __init__(self, of: KubernetesDiscovery, namespace: str) -> None:
        super().__init__(
            lambda: of._objects.follow("endpointslices", namespace),
            MeshError,
            of._supervisor,
            name=f"kubernetes-slices:{namespace}",
            clock=of._clock,
        )
        self.slices = Slices(of._port_name)

    def list_of(self, name: str, asked: str) -> tuple[Instance, ...]:
        """The instances of `name`, under the name by which they were asked for."""
        instances = self.slices.list_of(name)
        return instances if name == asked else tuple(replace(each, service=asked) for each in instances)

    def _take(self, batch: Batch, *, is_back: bool) -> set[str]:
        return self.slices.take(batch)


def _away(error: MeshError, service: str | None = None) -> ServiceDiscoveryError:
    return ServiceDiscoveryError(str(error), service=service)
