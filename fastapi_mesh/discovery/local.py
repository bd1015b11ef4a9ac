"""A registry for all processes of one machine: one SQLite file with leases and heartbeats, and no server to run."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.lists import check_for_others, known_services, same
from fastapi_mesh.discovery.local_file import Reading, RegistryFile
from fastapi_mesh.discovery.rows import Owner, Row, RowRegistration, check_times
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import KnownService

T = TypeVar("T")

HOLD = 1.25
"""Heartbeats for which the last lists stay when the file was replaced: one, and the time to write it."""


class LocalRegistry:
    """The embedded registry. A Discovery and a Registrar; processes of one machine meet in the file at `path`.

    An instance whose last beat is `lease` seconds ago is gone, so a crashed process disappears by itself. A change
    reaches watchers after at most `poll_interval` seconds and a few milliseconds. Registries of different namespaces
    in one file don't see each other. `path` defaults to `default_path()`; `~` is expanded.

    All disk work is done in one thread of its own. Use one object in one event loop at a time; `aclose` it at the
    end. Nodes in containers meet only if they share the file, the machine and reachable addresses. Not for network
    file systems: SQLite's WAL mode needs shared memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        namespace: str = "default",
        lease: float = 15.0,
        heartbeat: float = 5.0,
        poll_interval: float = 0.2,
        clock: Clock | None = None,
    ) -> None:
        check_times(lease=lease, heartbeat=heartbeat, poll_interval=poll_interval)
        if not namespace or not namespace.isprintable():
            raise ConfigurationError(f"namespace: {namespace!r} must be a non-empty text of printable characters")
        self._lease = lease
        self._heartbeat = heartbeat
        self._poll_interval = poll_interval
        self._clock: Clock = clock or SystemClock()
        self._file = RegistryFile(
            default_path() if path is None else _expanded(path), namespace, now=self._clock.now, boot=_boot_id()
        )
        self._thread: ThreadPoolExecutor | None = None
        self._owner: Owner | None = None
        self._births = itertools.count(1)
        self._closed = False
        self._turn = asyncio.Lock()
        self._reading = Reading({}, 0)
        self._hold_until = 0.0
        self._version = 0
        self._polls = 0

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._file.path

    def statistics(self) -> dict[str, int]:
        """How often it looked for changes, saw some, and opened the file (more than once: it was replaced)."""
        return {"polls": self._polls, "changes": self._version, "opened": self._file.opened}

    async def open(self) -> None:
        """Open the file now, to learn at once what waiting can't mend; else the first use does.

        Raises ConfigurationError for a path that can't be used or a file that is not a registry, and
        ServiceDiscoveryError while it is locked.
        """
        self._closed = False
        await self._run(self._file.open)

    async def aclose(self) -> None:
        """Close the file and end the thread. Later uses raise ServiceDiscoveryError until `open`."""
        self._closed = True
        self._turn = asyncio.Lock()  # the next use may be in another event loop
        self._reading = Reading({}, 0)
        self._hold_until = 0.0
        thread, self._thread = self._thread, None
        if thread is None:
            return
        closing = thread.submit(self._file.close)
        thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def register(self, instance: Instance) -> RowRegistration:
        """See `Registrar.register`. Raises ConfigurationError for an instance that nobody could call."""
        if self._owner is None:  # not earlier: a server may fork its workers after the object was made
            self._owner = Owner(secrets.token_hex(8), time.monotonic())
        row = Row(check_for_others(instance), self._owner, next(self._births), self._lease, 0.0)
        try:
            await self._run(self._file.put, row)
        except asyncio.CancelledError:
            if self._thread is not None:  # nobody will withdraw what may have been stored
                self._thread.submit(self._file.remove, row)
            raise
        return RowRegistration(self, row, self._heartbeat)

    async def services(self) -> tuple[str, ...]:
        """The services that have an instance now, sorted."""
        return tuple(sorted(await self._lists()))

    async def instances(self) -> tuple[Instance, ...]:
        """All instances of the namespace, sorted by service and id."""
        lists = await self._lists()
        return tuple(each for service in sorted(lists) for each in lists[service])

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`. Raises what `open` raises."""
        lists = await self._lists()
        last: tuple[Instance, ...] | None = None
        while True:
            version, current = self._version, lists.get(service, ())
            if last is None or not same(current, last):
                last = current
                yield current
            else:
                await self._wait_change(version)
            lists = self._reading.lists

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`. Raises what `open` raises."""
        lists = await self._lists()
        last: tuple[KnownService, ...] | None = None
        while True:
            version, current = self._version, known_services(lists)
            if current != last:
                last = current
                yield current
            else:
                await self._wait_change(version)
            lists = self._reading.lists

    async def renew(self, row: Row) -> None:
        """Prolong the lease of `row`; stores it again if it is gone."""
        await self._run(self._file.renew, row)

    async def remove(self, row: Row) -> None:
        """Remove `row`, if it is there."""
        await self._run(self._file.remove, row)

    async def _wait_change(self, version: int) -> None:
        """Look every `poll_interval` until the lists change. Of all watchers only one does it, for the others too."""
        async with self._turn:
            if self._version == version:
                await self._clock.sleep(self._poll_interval)
                await self._lists()

    async def _lists(self) -> Mapping[str, tuple[Instance, ...]]:
        """Read the lists, at once.

        When the file was replaced under us, the last lists stay until every node had the time to register in the new
        one.
        """
        reading = await self._run(self._file.read)
        self._polls += 1
        now = self._clock.now()
        if reading is not self._reading:
            if self._reading.lists and self._reading.opened < reading.opened and not self._hold_until:
                self._hold_until = now + HOLD * self._heartbeat
            if now >= self._hold_until:
                self._reading = reading
                self._version += 1
                self._hold_until = 0.0
        return self._reading.lists

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        if self._closed:
            raise ServiceDiscoveryError(f"the registry {self.path} is closed")
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fastapi-mesh-registry")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def default_path(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """`fastapi-mesh/registry.db` in the user's state folder.

    That is XDG_STATE_HOME or ~/.local/state (XDG Base Directory Specification), ~/Library/Application Support on
    macOS, LOCALAPPDATA on Windows. Raises ConfigurationError for a user without a home.
    """
    if platform == "win32":
        folder = environment.get("LOCALAPPDATA") or "~/AppData/Local"
    elif platform == "darwin":
        folder = "~/Library/Application Support"
    else:
        folder = environment.get("XDG_STATE_HOME", "")
        if not os.path.isabs(folder):  # the specification says to ignore a relative one
            folder = "~/.local/state"
    return _expanded(Path(folder, "fastapi-mesh", "registry.db"))


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(
            f"discovery.path: {os.fspath(path)!r} needs a home folder, and this user has none; name the registry's "
            'file with MESH_DISCOVERY__PATH or discovery_config={"path": ...}'
        ) from None


def _boot_id() -> str:
    """What changes with every boot of the machine (Linux), else ""."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
