"""The rows of the local registry: written, renewed and read, in a file that may be damaged or replaced meanwhile.

Everything here waits for the disk, and is called by one thread at a time.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastapi_mesh.discovery.local_database import (
    adopt,
    connect,
    explained,
    identity_of,
    make,
    move_aside,
    number,
    transaction,
)
from fastapi_mesh.discovery.rows import Owner, Row, decode, encode, lists_of
from fastapi_mesh.exceptions import ConfigurationError, MeshError, ServiceDiscoveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from fastapi_mesh.core.instance import Instance

T = TypeVar("T")

logger = logging.getLogger("fastapi_mesh.discovery.local")

PURGE_INTERVAL = 5.0
"""Seconds between two purges by a process that only beats."""

SLACK = 1.0
"""Seconds by which a lease may look longer than it is; one that ends later was not written since this boot."""

_ALIVE = f"boot = :boot AND expires > :now AND expires <= :now + lease + {SLACK}"
_PURGE = f"DELETE FROM instances WHERE NOT ({_ALIVE})"
_READ = f"""SELECT service, id, owner, epoch, born, address, port, document, lease, expires FROM instances
    WHERE namespace = :namespace AND {_ALIVE}"""
_INSERT = """INSERT INTO instances VALUES (:namespace, :service, :id, :owner, :epoch, :born, :address, :port,
    :document, :boot, :lease, :expires)"""
_REPLACE = _INSERT.replace("INSERT", "INSERT OR REPLACE", 1)
_ROW = "namespace = :namespace AND service = :service AND id = :id AND owner = :owner"
_RENEW = f"UPDATE instances SET expires = :expires WHERE {_ROW} AND born = :born AND {_ALIVE}"
_REMOVE = f"DELETE FROM instances WHERE {_ROW} AND born = :born"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the file says: the list of each service. `opened` counts how often the file was opened until then."""

    lists: Mapping[str, tuple[Instance, ...]]
    opened: int


class RegistryFile:
    """The rows of one namespace in the file at `path`; opened at first use, opened anew when it was replaced.

    Times are monotonic seconds of the machine, which all its processes share and no change of the wall clock moves;
    like the processes that beat, they stand still while the machine sleeps. Rows of an earlier boot are dead.
    """

    def __init__(self, path: Path, namespace: str, *, now: Callable[[], float], boot: str) -> None:
        self.path = path
        self.opened = 0
        self._now = now
        self._fixed: dict[str, object] = {"namespace": namespace, "boot": boot}
        self._identity: tuple[int, int] | None = None
        self._adopted = False
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._next_purge = -math.inf
        self._forget_reading()

    def open(self) -> None:
        """Open the file, making it if needed. Raises ConfigurationError, ServiceDiscoveryError."""
        self._attempt(lambda connection: None)

    def put(self, row: Row) -> None:
        """Store `row`, in place of one of the same service, id and owner."""
        values = self._values(row)
        self._attempt(lambda connection: self._write(connection, (_PURGE, values), (_REPLACE, values)))

    def renew(self, row: Row) -> None:
        """Prolong the lease of `row`, or store it again if it is gone. One that was replaced stays replaced."""

        def write(connection: sqlite3.Connection) -> None:
            values = self._values(row)
            with transaction(connection):
                gone = connection.execute(_RENEW, values).rowcount == 0
                if gone or self._now() >= self._next_purge:
                    connection.execute(_PURGE, values)
                    self._next_purge = self._now() + PURGE_INTERVAL
                if gone:
                    connection.execute(f"{_INSERT} ON CONFLICT DO NOTHING", values)

        self._attempt(write)

    def remove(self, row: Row) -> None:
        """Remove `row`, unless another one has replaced it."""
        self._attempt(lambda connection: self._write(connection, (_REMOVE, self._values(row))))

    def read(self) -> Reading:
        """What the file says now; the same object as long as that is unchanged, which costs a few microseconds."""
        return self._attempt(self._read)

    def close(self) -> None:
        """Close the connections. The next use opens the file again."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
        self._forget_reading()

    def _forget_reading(self) -> None:
        self._reading = Reading({}, 0)
        self._seen: tuple[int, int] = (-1, -1)
        self._next_expiry = -math.inf
        self._decoded: dict[tuple[str, str, str], tuple[tuple[str, int, str], Instance | None]] = {}

    def _values(self, row: Row) -> dict[str, object]:
        now = self._now()
        return self._fixed | {
            "now": now,
            "service": row.instance.service,
            "id": row.instance.id,
            "owner": row.owner.token,
            "epoch": row.owner.epoch,
            "born": row.born,
            "address": row.instance.address,
            "port": row.instance.port,
            "document": encode(row.instance),
            "lease": row.lease,
            "expires": now + row.lease,
        }

    @staticmethod
    def _write(connection: sqlite3.Connection, *statements: tuple[str, Mapping[str, object]]) -> None:
        with transaction(connection):
            for statement, values in statements:
                connection.execute(statement, values)

    def _read(self, _: sqlite3.Connection) -> Reading:
        """Look twice before reading: did any other connection write at all, and anything but a longer lease?"""
        reader, now = self._reader, self._now()
        assert reader is not None, "opened together with the writer"
        version = number(reader, "PRAGMA data_version")
        if version == self._seen[0] and now < self._next_expiry:
            return self._reading
        with transaction(reader, "BEGIN"):
            generation = number(reader, "SELECT number FROM generation")
            if generation != self._seen[1] or now >= self._next_expiry:
                rows = reader.execute(_READ, self._fixed | {"now": now}).fetchall()
                self._next_expiry = min((row[-1] for row in rows), default=math.inf)
                self._reading = Reading(lists_of(self._rows(rows)), self.opened)
        self._seen = version, generation
        return self._reading

    def _rows(self, stored: list[tuple[str, str, str, float, int, str, int, str, float, float]]) -> Iterator[Row]:
        known, self._decoded = self._decoded, {}
        for service, id, owner, epoch, born, address, port, document, lease, expires in stored:
            key, content = (service, id, owner), (address, port, document)
            cached = known.get(key)
            if cached is None or cached[0] != content:
                cached = content, _decode(service, id, content)
            self._decoded[key] = cached
            if cached[1] is not None:
                yield Row(cached[1], Owner(owner, epoch), born, lease, expires)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, a second time if the file turns out to be damaged or replaced."""
        for last in (False, True):
            try:
                return work(self._open())
            except sqlite3.Error as error:
                code: int = getattr(error, "sqlite_errorcode", 0)
                damaged = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
                emptied = code == sqlite3.SQLITE_ERROR and self._adopted and "no such table" in str(error)
                if last or not (damaged or emptied or code == sqlite3.SQLITE_READONLY_DBMOVED):
                    raise explained(self.path, error, code) from error
                self.close()
                if damaged:
                    move_aside(self.path, self._identity, error, adopted=self._adopted)
            except OSError as error:
                raise ServiceDiscoveryError(f"the registry {self.path} can't be reached: {error}") from error
        raise AssertionError("the second attempt returns or raises")

    def _open(self) -> sqlite3.Connection:
        if self._writer is not None:
            if identity_of(self.path) == self._identity:
                return self._writer
            logger.warning("the registry %s was deleted or replaced; opening it anew", self.path)
            self.close()
        make(self.path)
        for _ in range(5):
            self._identity = identity_of(self.path)
            try:
                self._writer = connect(self.path)
                self._reader = connect(self.path)
                adopt(self._writer, self.path)
            except (sqlite3.Error, MeshError):
                self.close()
                raise
            if self._identity == identity_of(self.path):
                self.opened += 1
                self._adopted = True
                return self._writer
            self.close()
        raise ServiceDiscoveryError(f"the registry {self.path} is being replaced again and again")


def _decode(service: str, id: str, content: tuple[str, int, str]) -> Instance | None:
    address, port, document = content
    try:
        return decode(service, id, address, port, document)
    except ConfigurationError as error:
        logger.warning("ignoring an instance in the registry: %s", error)
        return None
