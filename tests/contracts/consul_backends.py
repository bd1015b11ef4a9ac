"""Consul as the contract suites see it: its registry, its config store, and what can happen to its server."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, cast

from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.configstore.consul import ConsulStore
from fastapi_mesh.discovery.consul import ConsulRegistry
from fastapi_mesh.discovery.consul_rows import registration
from fastapi_mesh.discovery.rows import Owner
from fastapi_mesh.wire.http import ControlClient
from tests.contracts.backends import RegistryBackend
from tests.contracts.config_backends import StoreBackend
from tests.contracts.server_backends import ServerBackend, http
from tests.support.consul import ANOTHER_NODE, MANAGEMENT, ConsulServer

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery, Registrar, Registration
    from tests.contracts.config_backends import Client

_numbers = itertools.count()


def namespace() -> str:
    """One of its own for each test: the server is shared."""
    return f"contract-{next(_numbers)}"


def registry(url: str, namespace: str, *, lease: float, heartbeat: float, **settings: Any) -> ConsulRegistry:
    token = settings.get("token")
    config = DiscoveryConfig(backend="consul", lease=lease, heartbeat=heartbeat, **settings)
    headers = {"X-Consul-Token": token} if token else None
    control = ControlClient(url, headers=headers, timeout=config.request_timeout)
    return ConsulRegistry(control, config, namespace=namespace)


def put_many(consul: ConsulServer, namespace: str, instances: list[Instance]) -> None:
    """Put `instances` into the catalog as those of another machine, many in one step."""
    owner = Owner("many", 1.0)
    operations: list[object] = []
    for number, each in enumerate(instances):
        body = registration(each, owner, number, namespace=namespace, lease=60.0, deregister_after=60.0)
        plain = {name: value for name, value in body.items() if name not in ("Name", "Check")}
        check = cast("dict[str, object]", body["Check"])
        lease = {"CheckID": check["CheckID"], "Name": "lease", "Status": check["Status"]}
        lease |= {"Node": ANOTHER_NODE, "ServiceID": body["ID"], "ServiceName": body["Name"]}
        service = {**plain, "Service": body["Name"]}
        operations.append({"Service": {"Verb": "set", "Node": ANOTHER_NODE, "Service": service}})
        operations.append({"Check": {"Verb": "set", "Check": lease}})
    consul.write_all(
        [
            ("/v1/catalog/register", {"Node": ANOTHER_NODE, "Address": "127.0.0.1"}),
            *(("/v1/txn", operations[start : start + 64]) for start in range(0, len(operations), 64)),
        ]
    )


class Consul(RegistryBackend):
    name = "consul"
    server = "consul"
    fixture = "consul_server"

    async def open(self) -> None:
        assert isinstance(self.process, ConsulServer)
        self.consul = self.process
        self.namespace = namespace()

    def _client(self) -> ConsulRegistry:
        """Each client is an object of its own, as in another process."""
        settings = {"lease": self.lease, "heartbeat": self.heartbeat, "consul": {"wait": 1.0}}
        client = registry(self.consul.url, self.namespace, **settings)
        self.stack.push_async_callback(client.aclose)
        return client

    def view(self) -> Discovery:
        return self._client()

    def registrar(self) -> Registrar:
        return self._client()

    async def put_all(self, instances: list[Instance]) -> None:
        await asyncio.to_thread(put_many, self.consul, self.namespace, instances)

    async def wipe(self) -> None:
        await asyncio.to_thread(self.consul.forget)


class ConsulKeys(StoreBackend):
    name = "consul"
    server = "consul"
    fixture = "consul_server"

    def client(self) -> Client:
        assert isinstance(self.process, ConsulServer)
        settings = DiscoveryConfig(backend="consul")
        store = ConsulStore(ControlClient(self.process.url), settings, namespace="contract")
        self.stack.push_async_callback(store.aclose)
        return store


class ConsulServerBackend(ServerBackend):
    name = "consul"
    server = "consul"
    fixture = "consul_server"
    garbage = (
        *ServerBackend.garbage,
        http(b"[{}]", b"content-type: application/json", b"x-consul-index: 7"),
        http(b"[", b"content-type: application/json", b"x-consul-index: 7"),
        http(b"[]", b"content-type: application/json", b"x-consul-index: nonsense"),
        http(b"No cluster leader", status=b"500 Internal Server Error"),
        http(b"", status=b"404 Not Found"),
    )
    token: str | None = None

    async def open(self) -> None:
        self.namespace = namespace()
        self._registered: dict[str, Registration] = {}
        self._past: ConsulRegistry | None = None

    @property
    def consul(self) -> ConsulServer:
        assert isinstance(self.process, ConsulServer)
        return self.process

    def port(self) -> int:
        return self.consul.port

    def client(self, credentials: str | None = None) -> Discovery:
        return self._client(self.proxy.url, token=credentials or self.token)

    def direct(self) -> Discovery:
        return self._client(self.consul.url, token=self.token)

    def registrar(self) -> Registrar | None:
        return self._client(self.proxy.url, token=self.token)

    def store(self) -> Client | None:
        headers = {"X-Consul-Token": self.token} if self.token else None
        store = ConsulStore(
            ControlClient(self.proxy.url, headers=headers, timeout=1.0),
            DiscoveryConfig(backend="consul", request_timeout=1.0, consul={"wait": 0.5}),
            namespace=self.namespace,
        )
        self.stack.push_async_callback(store.aclose)
        return store

    async def put(self, instance: Instance) -> None:
        if self._past is None:
            self._past = self._client(self.consul.url, lease=60.0, token=self.token)
        self._registered[instance.id] = await self._past.register(instance)

    async def put_all(self, instances: list[Instance]) -> None:
        await asyncio.to_thread(put_many, self.consul, self.namespace, instances)

    def restart(self) -> None:
        self.consul.restart()

    def pause(self) -> None:
        self.consul.pause()

    def resume(self) -> None:
        self.consul.resume()

    def _client(self, url: str, *, lease: float = 1.0, token: str | None = None) -> ConsulRegistry:
        client = registry(
            url, self.namespace, lease=lease, heartbeat=0.2, request_timeout=1.0, token=token, consul={"wait": 0.5}
        )
        self.stack.push_async_callback(client.aclose)
        return client


class ConsulWithTokens(ConsulServerBackend):
    name = "consul with ACLs"
    fixture = "consul_acl_server"
    token = MANAGEMENT

    async def open(self) -> None:
        await super().open()
        self._accessors: dict[str, str] = {}

    def new_credentials(self) -> str | None:
        rules = 'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }'
        token, self._accessors[token] = self.consul.token_for(rules)
        return token

    def revoke(self, credentials: str) -> None:
        self.consul.call("DELETE", f"/v1/acl/token/{self._accessors[credentials]}")
