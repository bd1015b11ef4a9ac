"""The local registry's SQLite database as a file: made, recognised, connected to, and moved aside when damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ConfigurationError, MeshError, ServiceDiscoveryError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger("fastapi_mesh.discovery.local")

APPLICATION_ID = 0x464D6573
"""`PRAGMA application_id`: "FMes". A SQLite file with another one belongs to somebody else."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID_AT = 68
"""Where a SQLite file has its magic string (at 0) and its application id (https://sqlite.org/fileformat.html, 1.3)."""

SCHEMA_VERSION = 1
"""`PRAGMA user_version`."""

REGISTRY = "the registry"
"""What this file is called in messages, unless somebody else keeps something in it too."""

BUSY_TIMEOUT = 2.0
"""Seconds that a write waits for other processes' writes; each takes well under a millisecond."""

# The triggers number every change that readers must see, whoever makes it; a beat only touches `expires`.
_SCHEMA = (
    """CREATE TABLE instances (
        namespace TEXT NOT NULL, service TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, epoch REAL NOT NULL,
        born INTEGER NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL, document TEXT NOT NULL,
        boot TEXT NOT NULL, lease REAL NOT NULL, expires REAL NOT NULL,
        PRIMARY KEY (namespace, service, id, owner)
    ) WITHOUT ROWID""",
    "CREATE TABLE generation (number INTEGER NOT NULL)",
    "INSERT INTO generation VALUES (1)",
    "CREATE TRIGGER added AFTER INSERT ON instances BEGIN UPDATE generation SET number = number + 1; END",
    "CREATE TRIGGER removed AFTER DELETE ON instances BEGIN UPDATE generation SET number = number + 1; END",
    """CREATE TRIGGER changed AFTER UPDATE OF namespace, service, id, address, port, document ON instances
    BEGIN UPDATE generation SET number = number + 1; END""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the existing file; transactions are begun by hand (`transaction`)."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )


def identity_of(path: Path) -> tuple[int, int] | None:
    """What changes when another file is put at `path`; None when there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def refused(path: Path, why: str, what: str = REGISTRY) -> ConfigurationError:
    """The error for a file that waiting won't make usable."""
    return ConfigurationError(
        f"discovery.path: {what} {path} {why}; choose another file with MESH_DISCOVERY__PATH "
        'or discovery_config={"path": ...}'
    )


def make(path: Path) -> None:
    """Make the folder and an empty file that only this user can read.

    An existing file is not opened here: closing it would drop SQLite's locks on it in this process (fcntl).
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        found = _status_of(path)
    except (OSError, ValueError) as error:
        raise refused(path, f"can't be made: {error}") from error
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise refused(path, "is a folder" if stat.S_ISDIR(found.st_mode) else "is not a regular file")
    if found is not None and found.st_size == 1:  # SQLite takes it for empty, and would write over it
        raise refused(path, "is not a registry")
    if not (os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)):
        raise refused(path, "can't be written by this user")


def _status_of(path: Path) -> os.stat_result | None:
    """What the file is; None when another process has just moved it aside."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def adopt(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema in an empty file; refuse a file that is somebody else's, or a later version's."""
    with transaction(connection, "BEGIN"):  # one view of the file: another process may be making it right now
        ours = _is_ours(connection, path)
    if not ours:
        with transaction(connection):
            if not _is_ours(connection, path):
                for statement in _SCHEMA:
                    connection.execute(statement)
    connection.execute("PRAGMA synchronous = NORMAL")  # nothing is lost by a power cut that a beat doesn't bring back
    end = time.monotonic() + BUSY_TIMEOUT
    while str(connection.execute("PRAGMA journal_mode").fetchone()[0]) != "wal":
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError:  # locked: SQLite does not wait for this one by itself
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise refused(path, "is not on a local disk that SQLite's WAL mode works on")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    application = number(connection, "PRAGMA application_id")
    version = number(connection, "PRAGMA user_version")
    if application == version == 0 and number(connection, "SELECT count(*) FROM sqlite_master") == 0:
        return False
    if application != APPLICATION_ID:
        raise refused(path, "is a SQLite database of something else")
    if version > SCHEMA_VERSION:
        raise refused(
            path,
            f"was made by a later version of fastapi-mesh (schema {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade this one",
        )
    return True


@contextlib.contextmanager
def _only_one_process(path: Path) -> Iterator[None]:
    """Keep other processes out, where the platform has file locks; they end with the process that holds them."""
    if sys.platform == "win32":
        yield
        return
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ServiceDiscoveryError(f"the registry {path} is being repaired by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _may_be_ours(path: Path) -> bool:
    """Whether the file's header says that it is a registry, or there is nothing in it that could be somebody's.

    Only for a file that SQLite can't read: closing it here drops this process' locks on it.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_APPLICATION_ID_AT + 4)
    except FileNotFoundError:
        return True  # another process has moved it aside
    return not header or (
        header.startswith(_MAGIC) and header[_APPLICATION_ID_AT:] == APPLICATION_ID.to_bytes(4, "big")
    )


def move_aside(path: Path, identity: tuple[int, int] | None, error: sqlite3.Error, *, adopted: bool) -> None:
    """Put a damaged file out of the way, unless another process has done so; raises ConfigurationError if it can't be.

    Nothing is lost: every node registers anew with its next beat. The journal goes first, for SQLite would play it
    into the new file. A file that is not a registry is left alone, with a ConfigurationError, unless there was one
    at this path before (`adopted`): then it is what is left of that one.
    """
    try:
        if not adopted and not _may_be_ours(path) and identity_of(path) == identity:
            raise refused(path, f"is not a registry ({error})")
        with _only_one_process(path):
            if identity_of(path) != identity:
                return  # another process was quicker
            aside = f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            logger.error(
                "the registry %s is damaged (%s); it is kept as %s, and a new one is made, in which every node "
                "registers with its next heartbeat",
                path,
                error,
                aside,
            )
            for ending in ("-wal", "-shm", "-journal", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{path}{ending}", path.with_name(f"{aside}{ending}"))
    except OSError as trouble:
        raise refused(path, f"is damaged ({error}) and can't be moved aside: {trouble}") from error


def explained(path: Path, error: sqlite3.Error, code: int, what: str = REGISTRY) -> MeshError:
    """The error of ours that says what SQLite's means; `what` is what the caller keeps in the file."""
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ServiceDiscoveryError(f"{what} {path} is locked by another process: {error}")
    if code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return refused(path, f"can't be written: {error}", what)
    return ServiceDiscoveryError(f"{what} {path} failed: {error}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Commit at the end of the block, roll back when it fails."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself after some errors
            connection.execute("ROLLBACK")
        raise


def number(connection: sqlite3.Connection, query: str) -> int:
    """The one number that `query` gives."""
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
