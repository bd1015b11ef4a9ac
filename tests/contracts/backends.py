"""The discovery backends that the contract suite runs over. A new backend is one more subclass here, in a list."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import pytest

from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.chained import ChainedDiscovery
from fastapi_mesh.discovery.etcd import EtcdRegistry
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.discovery.lists import watching
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.discovery.static import StaticDiscovery
from fastapi_mesh.service_mesh.backends.etcd import client as etcd_client
from tests.support.etcd import EtcdServer, new_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _pytest.mark import ParameterSet

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery, Registrar, Registration

Instances = tuple["Instance", ...]


class Kind(Protocol):
    """What the suites know of each kind of backend, of whatever port."""

    name: ClassVar[str]
    server: ClassVar[str | None]
    fixture: ClassVar[str | None]


def parameters(kinds: Iterable[type[Kind]]) -> list[ParameterSet]:
    """The parameters of a fixture over `kinds`, each with the marker of the server that it needs."""
    return [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.server(kind.server)] if kind.server else [])
        for kind in kinds
    ]


def process_of(request: pytest.FixtureRequest) -> object:
    """The server of the kind that `request` is parametrised with, running; None where it needs none."""
    fixture: str | None = request.param.fixture
    return request.getfixturevalue(fixture) if fixture else None


class Backend:
    """A backend under test, with a way to change what it knows from outside."""

    name: ClassVar[str]
    server: ClassVar[str | None] = None
    """The real server that it needs, as the marker `server` names it."""
    fixture: ClassVar[str | None] = None
    """The fixture that gives that server, running."""
    lists_services: ClassVar[bool] = True
    """Whether it is a ServiceList."""
    settle: ClassVar[float] = 1.0
    """Seconds within which a change must reach a watcher."""

    def __init__(self, folder: Path, process: object = None) -> None:
        """`process` is what `fixture` gives."""
        self.folder = folder
        self.process = process
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def open(self) -> None:
        """Make ready."""

    def view(self) -> Discovery:
        """What one more client sees; by default all share an object."""
        raise AssertionError("each backend says how it is looked at")

    async def put(self, instance: Instance) -> None:
        """Make `instance` known, in place of one of the same id."""
        raise AssertionError("each backend says how an instance gets in")

    async def put_all(self, instances: list[Instance]) -> None:
        """Make many known, in any order."""
        for each in instances:
            await self.put(each)

    async def remove(self, service: str, id: str) -> None:
        """Make an instance unknown."""
        raise AssertionError("each backend says how an instance gets out")


class RegistryBackend(Backend):
    """A backend with leases. `registrar` is a new client; `wipe` makes the registry forget all it knows."""

    lease = 0.8
    heartbeat = 0.1

    def __init__(self, folder: Path, process: object = None) -> None:
        super().__init__(folder, process)
        self._registrar: Registrar | None = None
        self._registered: dict[tuple[str, str], Registration] = {}

    def registrar(self) -> Registrar:
        raise AssertionError("each registry says how a client is made")

    async def wipe(self) -> None:
        raise AssertionError("each registry says how it forgets")

    async def put_all(self, instances: list[Instance]) -> None:
        self.lease = 60.0  # the first ones must not be gone before the last ones are there
        await super().put_all(instances)

    async def put(self, instance: Instance) -> None:
        if self._registrar is None:
            self._registrar = self.registrar()
        self._registered[instance.service, instance.id] = await self._registrar.register(instance)

    async def remove(self, service: str, id: str) -> None:
        await self._registered.pop((service, id)).withdraw()


class Static(Backend):
    name = "static"

    async def open(self) -> None:
        self._static = StaticDiscovery()
        self._known: dict[str, dict[str, Instance]] = {}

    def view(self) -> Discovery:
        return self._static

    async def put(self, instance: Instance) -> None:
        known = self._known.setdefault(instance.service, {})
        known[instance.id] = instance
        self._static.replace(instance.service, list(known.values()))

    async def put_all(self, instances: list[Instance]) -> None:
        for service in {each.service for each in instances}:
            self._static.replace(service, [each for each in instances if each.service == service])

    async def remove(self, service: str, id: str) -> None:
        del self._known[service][id]
        self._static.replace(service, list(self._known[service].values()))


class Memory(RegistryBackend):
    name = "memory"

    @cached_property
    def _registry(self) -> MemoryRegistry:
        return MemoryRegistry(lease=self.lease, heartbeat=self.heartbeat)

    def view(self) -> Discovery:
        return self._registry

    def registrar(self) -> Registrar:
        return self._registry

    async def wipe(self) -> None:
        for each in await self._registry.instances():
            await (await self._registry.register(each)).withdraw()  # the newer one takes its row with it


class Local(RegistryBackend):
    name = "local"

    def _client(self) -> LocalRegistry:
        """Each client is an object of its own, as in another process."""
        client = LocalRegistry(
            self.folder / "registry.db", lease=self.lease, heartbeat=self.heartbeat, poll_interval=0.02
        )
        self.stack.push_async_callback(client.aclose)
        return client

    def view(self) -> Discovery:
        return self._client()

    def registrar(self) -> Registrar:
        return self._client()

    async def wipe(self) -> None:
        def delete() -> None:
            with sqlite3.connect(self.folder / "registry.db", isolation_level=None) as connection:
                connection.execute("DELETE FROM instances")
            connection.close()

        await asyncio.to_thread(delete)


class LocalFileDeleted(Local):
    name = "local, whose file is deleted"

    async def wipe(self) -> None:
        for path in self.folder.glob("registry.db*"):
            path.unlink()


class ChainedBehindStatic(Memory):
    name = "chained, second source"

    def view(self) -> Discovery:
        return ChainedDiscovery([StaticDiscovery({"somebody-else": "http://127.0.0.1:1"}), self._registry])


class ChainedStaticFirst(Static):
    name = "chained, first source"

    def view(self) -> Discovery:
        return ChainedDiscovery([self._static, MemoryRegistry()])


class Etcd(RegistryBackend):
    name = "etcd"
    server = "etcd"
    fixture = "etcd_server"

    async def open(self) -> None:
        assert isinstance(self.process, EtcdServer)
        self.etcd = self.process
        self.space = Space(namespace=new_namespace())

    def _client(self) -> EtcdRegistry:
        """Each client is an object of its own, as in another process."""
        settings = DiscoveryConfig(backend="etcd", host="127.0.0.1", port=self.etcd.port)
        client = EtcdRegistry(etcd_client(settings), space=self.space, lease=self.lease, heartbeat=self.heartbeat)
        self.stack.push_async_callback(client.aclose)
        return client

    def view(self) -> Discovery:
        return self._client()

    def registrar(self) -> Registrar:
        return self._client()

    async def put_all(self, instances: list[Instance]) -> None:
        first, *others = instances
        await super().put_all([first])
        for number in range(0, len(others), 20):  # each is a few round trips
            await asyncio.gather(*(self.put(each) for each in others[number : number + 20]))

    async def wipe(self) -> None:
        await asyncio.to_thread(self.etcd.delete, self.space.folder("instances").decode())


class EtcdWhoseLeasesEnd(Etcd):
    name = "etcd, whose leases are revoked"

    async def wipe(self) -> None:
        await asyncio.to_thread(self.etcd.revoke_leases)


ALL: tuple[type[Backend], ...] = (Static, Memory, Local, ChainedStaticFirst, ChainedBehindStatic, Etcd)
REGISTRIES: tuple[type[RegistryBackend], ...] = (Memory, Local, LocalFileDeleted, Etcd, EtcdWhoseLeasesEnd)


class Seen:
    """Everything that one watch yields, collected in the background."""

    def __init__(self, discovery: Discovery, service: str) -> None:
        self.lists: list[Instances] = []
        self._discovery = discovery
        self._service = service
        self._supervisor = Supervisor()
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start(self._collect(), name="collector of a test")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.aclose()

    async def until(self, condition: Callable[[Instances], bool], timeout: float = 5.0) -> Instances:
        """Wait until the newest list fulfils `condition`."""
        async with asyncio.timeout(timeout):
            while not (self.lists and condition(self.lists[-1])):
                if self._task.done():
                    self._task.result()
                self._more.clear()
                await self._more.wait()
        return self.lists[-1]

    async def _collect(self) -> None:
        try:
            async with watching(self._discovery, self._service) as lists:
                async for instances in lists:
                    self.lists.append(instances)
                    self._more.set()
        finally:
            self._more.set()
