"""A config store for all processes of one machine: a table in the SQLite file of the local registry."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from fastapi_mesh.configstore.base import Entry, check_key, check_text
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.local import default_path
from fastapi_mesh.discovery.local_database import adopt, connect, explained, identity_of, make, number, transaction
from fastapi_mesh.exceptions import ConfigStoreError, MeshError

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from fastapi_mesh.core.clock import Clock

T = TypeVar("T")

# Not a change of the registry's schema version: programs that don't know this table don't mind it.
_TABLE = """CREATE TABLE IF NOT EXISTS configuration (
    namespace TEXT NOT NULL, key TEXT NOT NULL, document TEXT NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID"""
_GET = "SELECT document, version FROM configuration WHERE namespace = ? AND key = ?"
_PUT = """INSERT INTO configuration VALUES (?, ?, ?, 1)
    ON CONFLICT DO UPDATE SET document = excluded.document, version = version + 1"""
_DELETE = "DELETE FROM configuration WHERE namespace = ? AND key = ?"
_KEYS = "SELECT key FROM configuration WHERE namespace = ? ORDER BY key"


class LocalStore:
    """Configuration in the file at `path`, by default the local registry's; see `LocalRegistry` for where that is.

    A change reaches watchers in all processes after at most `poll_interval` seconds and a few milliseconds. All disk
    work is done in one thread of its own. Use one object in one event loop at a time; `aclose` it at the end.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        namespace: str = "default",
        poll_interval: float = 0.25,
        clock: Clock | None = None,
    ) -> None:
        self._file = _StoreFile(default_path() if path is None else Path(path).expanduser().absolute(), namespace)
        self._interval = poll_interval
        self._clock: Clock = clock or SystemClock()
        self._thread: ThreadPoolExecutor | None = None
        self._polls = 0

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._file.path

    def statistics(self) -> dict[str, int]:
        """How often it looked for changes, and opened the file."""
        return {"polls": self._polls, "opened": self._file.opened}

    async def aclose(self) -> None:
        """Close the file and end the thread; the next use opens it again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            closing = thread.submit(self._file.close)
            thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def get(self, key: str) -> Entry | None:
        """See `ConfigStore.get`. Raises ConfigurationError for a file that is not a registry's."""
        return await self._run(self._file.get, check_key(key))

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        """See `ConfigStore.watch`."""
        entry = await self.get(key)
        yield entry
        while True:
            await self._clock.sleep(self._interval)
            self._polls += 1
            before, entry = entry, await self.get(key)
            if (entry and entry.text) != (before and before.text):
                yield entry

    async def put(self, key: str, text: str) -> None:
        """See `ConfigWriter.put`."""
        await self._run(self._file.put, check_key(key), check_text(key, text))

    async def delete(self, key: str) -> None:
        """See `ConfigWriter.delete`."""
        await self._run(self._file.delete, check_key(key))

    async def keys(self) -> tuple[str, ...]:
        """All keys of the namespace, sorted."""
        return await self._run(self._file.keys)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fastapi-mesh-config")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class _StoreFile:
    """The table, in a file that may be deleted or replaced meanwhile. Everything here waits for the disk."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self.opened = 0
        self._namespace = namespace
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._known: dict[str, Entry | None] = {}
        self._version: tuple[int, int] = (-1, 0)
        """`data_version`, which counts the writes of other connections only, and `_writes`."""
        self._writes = 0

    def get(self, key: str) -> Entry | None:
        """Read `key`; without any write to the file since the last time, that costs a few microseconds."""

        def read(connection: sqlite3.Connection) -> Entry | None:
            version = number(connection, "PRAGMA data_version"), self._writes
            if version != self._version:
                self._known.clear()
                self._version = version
            if key not in self._known:
                row = connection.execute(_GET, (self._namespace, key)).fetchone()
                self._known[key] = None if row is None else Entry(key, row[0], str(row[1]))
            return self._known[key]

        return self._attempt(read)

    def put(self, key: str, text: str) -> None:
        self._write(_PUT, self._namespace, key, text)

    def delete(self, key: str) -> None:
        self._write(_DELETE, self._namespace, key)

    def keys(self) -> tuple[str, ...]:
        return self._attempt(
            lambda connection: tuple(row[0] for row in connection.execute(_KEYS, (self._namespace,)).fetchall())
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._version = (-1, 0)

    def _write(self, statement: str, *values: str) -> None:
        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute(statement, values)
            self._writes += 1

        self._attempt(write)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, a second time with a new connection if the file turns out to be replaced or emptied."""
        for last in (False, True):
            try:
                return work(self._open())
            except sqlite3.Error as error:
                code: int = getattr(error, "sqlite_errorcode", 0)
                emptied = code == sqlite3.SQLITE_ERROR and "no such table" in str(error)
                if last or not (emptied or code == sqlite3.SQLITE_READONLY_DBMOVED):
                    self.close()
                    text = explained(self.path, error, code, "the config store")
                    raise ConfigStoreError(str(text)) from error
                self.close()
            except OSError as error:
                raise ConfigStoreError(f"the config store {self.path} can't be reached: {error}") from error
        raise AssertionError("the second attempt returns or raises")

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            if identity_of(self.path) == self._identity:
                return self._connection
            self.close()
        make(self.path)
        self._identity = identity_of(self.path)
        self._connection = connect(self.path)
        try:
            adopt(self._connection, self.path)
            if not number(self._connection, "SELECT count(*) FROM sqlite_master WHERE name = 'configuration'"):
                with transaction(self._connection):
                    self._connection.execute(_TABLE)
        except (sqlite3.Error, MeshError):
            self.close()
            raise
        self.opened += 1
        return self._connection
