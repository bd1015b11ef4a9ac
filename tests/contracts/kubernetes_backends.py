"""Kubernetes as the contract suites see it: slices, a ConfigMap, and what can happen to its API."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.configstore.kubernetes import KubernetesStore
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.kubernetes import KubernetesDiscovery
from fastapi_mesh.discovery.kubernetes_slices import ANNOTATION, SERVICE_LABEL
from fastapi_mesh.discovery.rows import encode
from fastapi_mesh.wire.kubernetes import KubernetesApi
from tests.contracts.backends import Backend
from tests.contracts.config_backends import StoreBackend
from tests.contracts.server_backends import ServerBackend, http
from tests.support.kubernetes import FakeKubernetes, RealKubernetes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery, KnownService
    from tests.contracts.config_backends import Client

JSON = b"content-type: application/json"
_run = secrets.token_hex(3)
_numbers = itertools.count()

# Real servers refuse loopback addresses in slices.
_OUTSIDE = {"127.0.0.1": "192.0.2.1", "::1": "2001:db8::1"}
_INSIDE = {outside: inside for inside, outside in _OUTSIDE.items()}


def slice_of(service: str, instances: list[Instance], *, real: bool = False) -> dict[str, Any]:
    """An EndpointSlice with `instances`, which share a port; its name is that of the first."""
    first = instances[0]
    addresses = {each.id: _OUTSIDE.get(each.address, each.address) if real else each.address for each in instances}
    version = ipaddress.ip_address(addresses[first.id]).version
    name = hashlib.sha256(f"{service}/{first.id}".encode()).hexdigest()[:20]
    return {
        "metadata": {
            "name": f"slice-{name}",
            "labels": {SERVICE_LABEL: service},
            "annotations": {ANNOTATION: json.dumps({each.id: json.loads(encode(each)) for each in instances})},
        },
        "addressType": f"IPv{version}",
        "ports": [{"name": "http", "port": first.port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [addresses[each.id]],
                "conditions": {"ready": each.health != "unhealthy"},
                "targetRef": {"kind": "Pod", "name": each.id, "namespace": "default"},
            }
            for each in instances
        ],
    }


async def change(api: KubernetesApi, method: str, name: str | None, body: dict[str, Any] | None = None) -> int:
    """Send one request about slices; the status."""
    from lightkube.resources.discovery_v1 import EndpointSlice

    found = None if body is None else EndpointSlice.from_dict(body)
    request = api._request(method, "endpointslices", api.namespace, name=name, obj=found)
    status, _ = await api._answer(request)
    return status


async def put_slice(api: KubernetesApi, body: dict[str, Any]) -> None:
    if await change(api, "post", None, body) == 409:
        assert await change(api, "put", body["metadata"]["name"], body) == 200


class Translated:
    """A view whose addresses are those that the suite gave."""

    def __init__(self, inner: KubernetesDiscovery) -> None:
        self._inner = inner

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        lists = self._inner.watch(service)
        try:
            async for instances in lists:
                yield tuple(replace(each, address=_INSIDE.get(each.address, each.address)) for each in instances)
        finally:
            await cast("Any", lists).aclose()

    def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        return self._inner.watch_services()


def discovery(kubeconfig: Path, stack: AsyncExitStack, **settings: Any) -> KubernetesDiscovery:
    api = KubernetesApi(kubeconfig=str(kubeconfig), **settings)
    supervisor = Supervisor()
    found = KubernetesDiscovery(api, supervisor=supervisor)
    stack.push_async_callback(found.aclose)
    stack.push_async_callback(supervisor.aclose)
    return found


class Kubernetes(Backend):
    name = "kubernetes"
    fixture = "kubernetes_api"

    async def open(self) -> None:
        assert isinstance(self.process, FakeKubernetes | RealKubernetes)
        self._kubeconfig = self.process.kubeconfig(self.folder)
        self._real = isinstance(self.process, RealKubernetes)
        self._writer = KubernetesApi(kubeconfig=str(self._kubeconfig))
        self.stack.push_async_callback(self._writer.aclose)
        self._names: set[str] = set()
        self.stack.push_async_callback(self._clean)

    async def _clean(self) -> None:
        for name in self._names if self._real else ():
            await change(self._writer, "delete", name)

    def view(self) -> Discovery:
        found = discovery(self._kubeconfig, self.stack)
        return Translated(found) if self._real else found

    async def put(self, instance: Instance) -> None:
        await self._put(slice_of(instance.service, [instance], real=self._real))

    async def put_all(self, instances: list[Instance]) -> None:
        """A hundred endpoints to a slice, as Kubernetes does, where they share a port."""
        for (service, _), group in _grouped(instances):
            for part in range(0, len(group), 100):
                await self._put(slice_of(service, group[part : part + 100], real=self._real))

    async def remove(self, service: str, id: str) -> None:
        name = hashlib.sha256(f"{service}/{id}".encode()).hexdigest()[:20]
        assert await change(self._writer, "delete", f"slice-{name}") == 200

    async def _put(self, body: dict[str, Any]) -> None:
        self._names.add(body["metadata"]["name"])
        await put_slice(self._writer, body)


def _grouped(instances: Iterable[Instance]) -> list[tuple[tuple[str, int], list[Instance]]]:
    groups: dict[tuple[str, int], list[Instance]] = {}
    for each in instances:
        groups.setdefault((each.service, each.port), []).append(each)
    return sorted(groups.items(), key=lambda item: item[0])


class KubernetesConfigMap(StoreBackend):
    name = "kubernetes"
    fixture = "kubernetes_api"

    def __init__(self, folder: Path, process: object = None) -> None:
        super().__init__(folder, process)
        assert isinstance(process, FakeKubernetes | RealKubernetes)
        self._kubeconfig = process.kubeconfig(folder)
        self._map = f"contract-{_run}-{next(_numbers)}"

    def client(self) -> Client:
        store = KubernetesStore(KubernetesApi(kubeconfig=str(self._kubeconfig)), name=self._map)
        self.stack.push_async_callback(store.aclose)
        return store


class KubernetesServer(ServerBackend):
    name = "kubernetes"
    fixture = "fake_kubernetes"
    garbage = (
        *ServerBackend.garbage,
        http(b'{"kind": "EndpointSliceList", "items": []}', JSON),
        http(b'{"items": null, "metadata": {"resourceVersion": "7"}}', JSON),
        http(b'{"items": [{}], "metadata": {"resourceVersion": "7"}}', JSON),
        http(b'{"type": "MODIFIED", "object": {}}\n', JSON),
        http(b"", status=b"404 Not Found"),
    )

    @property
    def kubernetes(self) -> FakeKubernetes:
        assert isinstance(self.process, FakeKubernetes)
        return self.process

    async def open(self) -> None:
        self._writer = KubernetesApi(kubeconfig=str(self.kubernetes.kubeconfig(self.folder, token=self._token())))
        self.stack.push_async_callback(self._writer.aclose)

    def _token(self) -> str:
        return "t0ken"

    def port(self) -> int:
        return self.kubernetes.port

    def client(self, credentials: str | None = None) -> Discovery:
        path = self.kubernetes.kubeconfig(self.folder, port=self.proxy.port, token=credentials or self._token())
        return discovery(path, self.stack, timeout=1.0, watch_timeout=1.0)

    def direct(self) -> Discovery:
        return discovery(self.kubernetes.kubeconfig(self.folder, token=self._token()), self.stack)

    def store(self) -> Client | None:
        path = self.kubernetes.kubeconfig(self.folder, port=self.proxy.port, token=self._token())
        store = KubernetesStore(KubernetesApi(kubeconfig=str(path), timeout=1.0, watch_timeout=1.0))
        self.stack.push_async_callback(store.aclose)
        return store

    async def put(self, instance: Instance) -> None:
        await put_slice(self._writer, slice_of(instance.service, [instance]))

    async def put_all(self, instances: list[Instance]) -> None:
        await asyncio.gather(*(self.put(each) for each in instances))

    def restart(self) -> None:
        self.kubernetes.restart()

    def pause(self) -> None:
        self.kubernetes.pause()
        self.proxy.drop()

    def resume(self) -> None:
        self.kubernetes.resume()


class KubernetesWithTokens(KubernetesServer):
    name = "kubernetes with tokens"

    async def open(self) -> None:
        self.kubernetes.allow(self._token())
        await super().open()

    def new_credentials(self) -> str | None:
        credentials = secrets.token_hex(8)
        self.kubernetes.allow(*self.kubernetes.tokens, credentials)
        return credentials

    def revoke(self, credentials: str) -> None:
        self.kubernetes.allow(*self.kubernetes.tokens - {credentials})
        self.proxy.drop()  # a watch that is open goes on until its time is over
