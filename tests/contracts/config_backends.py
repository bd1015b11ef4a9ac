"""The config stores that the contract suite runs over. A new backend is one more subclass here, in the list."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, cast

from fastapi_mesh.config.backends import StoreConfig
from fastapi_mesh.configstore import ConfigStore, ConfigWriter, Entry, FileStore, LocalStore, MemoryStore
from fastapi_mesh.configstore.etcd import EtcdStore
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.etcd_rows import Space
from fastapi_mesh.service_mesh.backends.etcd import client as etcd_client
from tests.support.etcd import EtcdServer, new_namespace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class Client(ConfigStore, ConfigWriter, Protocol):
    """What all of ours can."""


class StoreBackend:
    """A config store under test; `client` is one more program that uses it."""

    name: ClassVar[str]
    server: ClassVar[str | None] = None
    """The real server that it needs, as the marker `server` names it."""
    fixture: ClassVar[str | None] = None
    """The fixture that gives that server, running."""
    settle: ClassVar[float] = 1.0
    """Seconds within which a change must reach a watcher."""

    def __init__(self, folder: Path, process: object = None) -> None:
        """`process` is what `fixture` gives."""
        self.folder = folder
        self.process = process
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    def client(self) -> Client:
        raise AssertionError("each backend says how a client is made")


class Memory(StoreBackend):
    name = "memory"

    def __init__(self, folder: Path, process: object = None) -> None:
        super().__init__(folder, process)
        self._store = MemoryStore()

    def client(self) -> Client:
        return self._store


class Local(StoreBackend):
    name = "local"

    def client(self) -> Client:
        store = LocalStore(self.folder / "registry.db", poll_interval=0.02)
        self.stack.push_async_callback(store.aclose)
        return store


class File(StoreBackend):
    name = "file"

    def client(self) -> Client:
        return FileStore(self.folder / "settings", poll_interval=0.02)


class Etcd(StoreBackend):
    name = "etcd"
    server = "etcd"
    fixture = "etcd_server"

    def __init__(self, folder: Path, process: object = None) -> None:
        super().__init__(folder, process)
        assert isinstance(process, EtcdServer)
        self._settings = StoreConfig(backend="etcd", host="127.0.0.1", port=process.port)
        self._space = Space(namespace=new_namespace())

    def client(self) -> Client:
        store = EtcdStore(etcd_client(self._settings), space=self._space)
        self.stack.push_async_callback(store.aclose)
        return store


ALL: tuple[type[StoreBackend], ...] = (Memory, Local, File, Etcd)


class Watched:
    """Everything that one watch yields, collected in the background."""

    def __init__(self, store: ConfigStore, key: str) -> None:
        self.entries: list[Entry | None] = []
        self._store = store
        self._key = key
        self._supervisor = Supervisor()
        self._more = asyncio.Event()

    @property
    def texts(self) -> list[str | None]:
        return [entry and entry.text for entry in self.entries]

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start(self._collect(), name="collector of a test")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.aclose()

    async def until(self, condition: Callable[[list[str | None]], bool], timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition(self.texts):
                if self._task.done():
                    self._task.result()
                self._more.clear()
                await self._more.wait()

    async def _collect(self) -> None:
        try:
            async with aclosing(cast("AsyncGenerator[Entry | None, None]", self._store.watch(self._key))) as entries:
                async for entry in entries:
                    self.entries.append(entry)
                    self._more.set()
        finally:
            self._more.set()
