"""etcd in the suite of failures: plain, and with users."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.configstore.etcd import EtcdStore
from fastapi_mesh.discovery.etcd import EtcdRegistry
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.service_mesh.backends.etcd import client as etcd_client
from tests.contracts.server_backends import ServerBackend, http
from tests.support.etcd import EtcdServer, new_namespace

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Registrar
    from fastapi_mesh.discovery.etcd_client import EtcdClient
    from tests.contracts.config_backends import Client


class Etcd(ServerBackend):
    name = "etcd"
    server = "etcd"
    fixture = "etcd_server"
    garbage = (
        *ServerBackend.garbage,
        http(b'{"kvs": [{"key": "!"}], "header": {"revision": "9"}}'),
        http(b'{"kvs": {}, "header": {"revision": "many"}}'),
        http(b'{"result": {"created": true, "header": 5}}'),
    )

    async def open(self) -> None:
        assert isinstance(self.process, EtcdServer)
        self.etcd = self.process
        self.space = Space(namespace=new_namespace(), watch_idle=1.0)
        self._writer: EtcdRegistry | None = None

    def port(self) -> int:
        assert isinstance(self.process, EtcdServer)
        return self.process.port

    def client(self, credentials: str | None = None) -> EtcdRegistry:
        return self._registry(self.proxy.port, credentials)

    def direct(self) -> EtcdRegistry:
        return self._registry(self.port())

    def registrar(self) -> Registrar:
        return self._registry(self.proxy.port)

    def store(self) -> Client:
        store = EtcdStore(self._client(self.proxy.port), space=self.space)
        self.stack.push_async_callback(store.aclose)
        return store

    async def put(self, instance: Instance) -> None:
        if self._writer is None:
            self._writer = self._registry(self.port(), lease=300.0)
        await self._writer.register(instance)

    async def put_all(self, instances: list[Instance]) -> None:
        for number in range(0, len(instances), 20):
            await asyncio.gather(*(self.put(each) for each in instances[number : number + 20]))

    def restart(self) -> None:
        self.etcd.restart()

    def pause(self) -> None:
        self.etcd.pause()

    def resume(self) -> None:
        self.etcd.resume()

    def _registry(self, port: int, credentials: str | None = None, lease: float = 1.5) -> EtcdRegistry:
        registry = EtcdRegistry(self._client(port, credentials), space=self.space, lease=lease, heartbeat=0.3)
        self.stack.push_async_callback(registry.aclose)
        return registry

    def _client(self, port: int, credentials: str | None = None) -> EtcdClient:
        who = {}
        if credentials is not None:
            name, _, password = credentials.rpartition(":")
            who = {"username": name or "root", "password": password}
        return etcd_client(
            DiscoveryConfig.model_validate(
                {"backend": "etcd", "host": "127.0.0.1", "port": port, "request_timeout": 1.0, **who}
            )
        )


class EtcdWithUsers(Etcd):
    name = "etcd with users"
    fixture = "etcd_users_server"

    async def open(self) -> None:
        await super().open()
        self._own = self.new_credentials()

    def new_credentials(self) -> str:
        return ":".join(self.etcd.user(f"{self.space.prefix}/"))

    def revoke(self, credentials: str) -> None:
        self.etcd.call("auth/user/delete", {"name": credentials.partition(":")[0]})

    def _client(self, port: int, credentials: str | None = None) -> EtcdClient:
        return super()._client(port, credentials or self._own)
