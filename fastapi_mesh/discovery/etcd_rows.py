"""What etcd holds of instances: the names of the keys, the documents under them, and the lists that they make."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote_to_bytes

from fastapi_mesh.discovery.rows import Owner, Row, encode, instance_of, lists_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.etcd_messages import KeyValue

logger = logging.getLogger("fastapi_mesh.discovery.etcd")

K = TypeVar("K")
Place = tuple[str, int, bytes]

_DEFAULTS: Mapping[str, object] = {
    "scheme": "http",
    "health": "healthy",
    "weight": 1.0,
    "tags": (),
    "metadata": {},
    "version": None,
    "zone": None,
    "base_path": "",
    "health_check": None,
}
"""What a document written by somebody else need not have."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where in etcd a namespace is, and after how many seconds of silence a watch of it is opened anew."""

    prefix: str = "fastapi-mesh"
    namespace: str = "default"
    watch_idle: float = 10.0

    def folder(self, kind: str) -> bytes:
        """What the keys of one kind begin with.

        >>> Space("shop/mesh", "prod").folder("instances")
        b'shop/mesh/prod/instances/'
        """
        return f"{self.prefix}/{escaped(self.namespace)}/{kind}/".encode()


def escaped(text: str) -> str:
    """`text` as one segment of a key: percent-encoded UTF-8 but for letters, digits and `_.-~` (RFC 3986, 2.3)."""
    return quote(text, safe="")


def key_of(row: Row) -> bytes:
    """The name of a row's key, after the folder: service, id, and who registered it."""
    return "/".join(map(escaped, (row.instance.service, row.instance.id, row.owner.token))).encode()


def document_of(row: Row) -> bytes:
    """The value of a row's key: JSON."""
    own = {"address": row.instance.address, "port": row.instance.port, "born": row.born}
    return json.dumps({**own, **json.loads(encode(row.instance))}, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Stored:
    """One key as understood. `created` is the revision of the store at which the key appeared."""

    instance: Instance
    owner: str
    born: int
    created: int

    @property
    def place(self) -> Place:
        return self.instance.address, self.instance.port, self.instance.base_path


def read(entry: KeyValue, folder: bytes) -> Stored | None:
    """What a key says; None, with a line in the log, where that is no instance.

    A key without a third segment, written by another program, belongs to an owner of its own.
    """
    try:
        segments = [unquote_to_bytes(each).decode() for each in entry.key[len(folder) :].split(b"/")]
        if not 2 <= len(segments) <= 3:
            raise ValueError("the key is not SERVICE/ID or SERVICE/ID/OWNER")
        given = json.loads(entry.value)
        address, port = str(given["address"]), int(given["port"])
        instance = instance_of(segments[0], segments[1], address, port, {**_DEFAULTS, **given})
        owner = segments[2] if len(segments) == 3 else f"key {entry.key!r}"
        return Stored(instance, owner, int(given.get("born", 0)), entry.created)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigurationError) as error:
        logger.warning("the key %r is no instance: %s: %s", entry.key, type(error).__name__, error)
        return None


class Rows:
    """The rows of a namespace, and the list that they make of each service, worked out when asked for."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Stored] = {}
        self._services: dict[str, dict[bytes, Stored]] = {}
        self._places: dict[Place, dict[bytes, Stored]] = {}
        self._lists: dict[str, tuple[Instance, ...]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def missing_in(self, others: Mapping[bytes, object]) -> set[bytes]:
        """The keys that are here and not there."""
        return self._rows.keys() - others.keys()

    def service_of(self, key: bytes) -> str:
        """Whose row is under `key`, which is here."""
        return self._rows[key].instance.service

    def sizes(self) -> dict[str, int]:
        """How many rows each service has."""
        return {service: len(rows) for service, rows in self._services.items()}

    def list_of(self, service: str) -> tuple[Instance, ...]:
        """The instances of `service` that count (`discovery.rows.lists_of`)."""
        found = self._lists.get(service)
        if found is None:
            places = {row.place for row in self._services.get(service, {}).values()}
            found = lists_of(row for place in places for row in self._at(place)).get(service, ())
            if found:  # names that nobody registered must not use memory for ever
                self._lists[service] = found
        return found

    def lists(self) -> dict[str, tuple[Instance, ...]]:
        """The lists of all services."""
        return {service: self.list_of(service) for service in self._services}

    def apply(self, changes: Mapping[bytes, Stored | None]) -> set[str]:
        """Put and remove rows; returns the services whose lists may be others now."""
        affected: set[str] = set()
        for key, row in changes.items():
            before = self._rows.get(key)
            if before == row:
                continue
            if before is not None:
                affected |= self._services_at(before.place)
                self._drop(key, before)
            if row is not None:
                self._rows[key] = row
                self._services.setdefault(row.instance.service, {})[key] = row
                self._places.setdefault(row.place, {})[key] = row
                affected |= self._services_at(row.place)
        for service in affected:
            self._lists.pop(service, None)
        return affected

    def _at(self, place: Place) -> Iterable[Row]:
        """The rows at one address. Who owns the key that appeared last has started last, by the clock of etcd."""
        there = self._places[place].values()
        started: dict[str, int] = {}
        for row in there:
            started[row.owner] = max(row.created, started.get(row.owner, 0))
        return (Row(row.instance, Owner(row.owner, started[row.owner]), row.born, 0.0, 0.0) for row in there)

    def _services_at(self, place: Place) -> set[str]:
        return {row.instance.service for row in self._places.get(place, {}).values()}

    def _drop(self, key: bytes, row: Stored) -> None:
        del self._rows[key]
        _remove(self._services, row.instance.service, key)
        _remove(self._places, row.place, key)


def _remove(table: dict[K, dict[bytes, Stored]], group: K, key: bytes) -> None:
    rows = table[group]
    del rows[key]
    if not rows:
        del table[group]
