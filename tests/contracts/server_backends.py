"""The backends on servers that the suite of failures runs over. A new one is one more subclass here, in a list."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, ClassVar, Self, cast

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.directory import Directory
from tests.support.fault_proxy import PASS, Fault, FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from fastapi_mesh.configstore.base import ConfigStore, Entry
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery, Registrar
    from tests.contracts.config_backends import Client

HTML = b"<html><body>Please log in</body></html>"


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole HTTP/1.1 answer, for `Garbage`."""
    head = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), b"connection: close", *headers]
    return b"\r\n".join([*head, b"", body])


class ServerBackend:
    """A backend on a real server, seen through a proxy that plays faults.

    `client`, `registrar` and `store` go through the proxy; `put` changes what the server knows past it.
    Clients are made with short times, so that a server that hangs is noticed within about two seconds.
    """

    name: ClassVar[str]
    server: ClassVar[str | None] = None
    """The real server that it needs, as the marker `server` names it; None for one that runs in the test's process."""
    fixture: ClassVar[str | None] = None
    """The fixture that gives the running server."""
    garbage: ClassVar[tuple[bytes, ...]] = (
        b"\x00\x01\x02\x03 nonsense\r\n\r\n",
        http(HTML, b"content-type: text/html"),
        http(b'{"half": [', b"content-type: application/json"),
        http(b'"another shape"', b"content-type: application/json"),
        http(HTML, status=b"502 Bad Gateway"),
    )
    """Whole answers that are none, each sent to whatever is asked."""

    def __init__(self, folder: Path, process: object) -> None:
        self.folder = folder
        self.process = process
        self.stack = AsyncExitStack()
        self.proxy = FaultProxy(self.port())

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.proxy)
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def open(self) -> None:
        """Make ready."""

    # What each backend says

    def port(self) -> int:
        """Where the server listens on 127.0.0.1."""
        raise AssertionError("each backend says where its server is")

    def client(self, credentials: str | None = None) -> Discovery:
        """A new client through the proxy; with `credentials`, one made by `new_credentials`."""
        raise AssertionError("each backend says how a client is made")

    def direct(self) -> Discovery:
        """A new client past the proxy."""
        raise AssertionError("each backend says how a client is made")

    def registrar(self) -> Registrar | None:
        """One more client through the proxy that registers; None for a backend that can't."""
        return None

    def store(self) -> Client | None:
        """A new config store through the proxy; None for a backend that has none."""
        return None

    async def put(self, instance: Instance) -> None:
        """Make `instance` known to the server, for a minute at least, in place of one of the same id."""
        raise AssertionError("each backend says how an instance gets in")

    async def put_all(self, instances: list[Instance]) -> None:
        """Make many known, in any order."""
        for each in instances:
            await self.put(each)

    def restart(self) -> None:
        """Kill the server and start it again on its port; it may have lost what it knew. Waits until it answers."""
        raise AssertionError("each backend says how its server restarts")

    def pause(self) -> None:
        """Let the server hang: it accepts connections and answers nothing."""
        raise AssertionError("each backend says how its server hangs")

    def resume(self) -> None:
        raise AssertionError("each backend says how its server goes on")

    def new_credentials(self) -> str | None:
        """Credentials with which all of this works; None for a server that asks for none."""
        return None

    def revoke(self, credentials: str) -> None:
        """End what `new_credentials` gave; connections and watches that have it may go on for a second."""
        raise AssertionError("each backend with credentials says how they end")

    # Faults; a backend that isn't spoken to over TCP overrides them

    async def away(self) -> None:
        """Be gone: connections break, new ones are refused."""
        await self.proxy.refuse()

    async def back(self) -> None:
        await self.proxy.accept()

    def play(self, fault: Fault, *, anew: bool = True) -> None:
        """Let `fault` happen from now on; `anew` breaks the open connections, so that it happens to new requests."""
        self.proxy.fault = fault
        if anew:
            self.proxy.drop()

    def heal(self) -> None:
        """End the fault; connections that it has spoilt break, as they would when a firewall forgets them."""
        self.proxy.fault = PASS
        self.proxy.drop()


class Followed:
    """A directory that follows one service through a backend, and every list that it has published."""

    def __init__(self, discovery: Discovery, service: str = "users") -> None:
        self.supervisor = Supervisor()
        self._directory = Directory(discovery, self.supervisor)
        self._service = service
        self.lists: list[tuple[Instance, ...]] = []
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        live = self._directory.live(self._service)
        live.subscribe(self._seen)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._directory.aclose()
        await self.supervisor.aclose()

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.lists[-1]] if self.lists else []

    @property
    def failure(self) -> str | None:
        """Why the list can't be renewed at the moment."""
        return self._directory.failure(self._service)

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until `condition` holds; looked at after each list, and every few milliseconds."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._more.clear()
                try:
                    async with asyncio.timeout(0.02):
                        await self._more.wait()
                except TimeoutError:
                    continue

    async def until_ids(self, *ids: str, timeout: float = 30.0) -> None:
        try:
            await self.until(lambda: self.ids == list(ids), timeout)
        except TimeoutError:
            raise AssertionError(f"wanted {ids}, got {self.ids}; {self.failure}") from None

    def _seen(self, instances: tuple[Instance, ...]) -> None:
        self.lists.append(instances)
        self._more.set()


class FollowedKey:
    """A watch of one key that is begun again when it fails, as the mesh does, and every text that it has given."""

    def __init__(self, store: ConfigStore, key: str) -> None:
        self.texts: list[str | None] = []
        self._store = store
        self._key = key
        self._supervisor = Supervisor()

    async def __aenter__(self) -> Self:
        self._supervisor.keep(self._follow, name="key")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.aclose()

    @property
    def failure(self) -> str | None:
        return self._supervisor.degraded.get("key")

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - a failure sets no event
                await asyncio.sleep(0.01)

    async def _follow(self) -> None:
        async with aclosing(cast("AsyncGenerator[Entry | None, None]", self._store.watch(self._key))) as entries:
            async for entry in entries:
                text = entry and entry.text
                if not self.texts or self.texts[-1] != text:
                    self.texts.append(text)
                self._supervisor.recovered("key")


ALL: tuple[type[ServerBackend], ...] = ()
SECURED: tuple[type[ServerBackend], ...] = ()
"""Those whose server asks for credentials."""
