"""What a registry with leases stores of one instance, and which of several rows count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.lists import check, ordered
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.core.instance import Health, Scheme


WORKER = "worker"
"""Metadata key of a worker process that is an instance of its own: its process id."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who registers: one registry object of one process. A later `epoch` (monotonic seconds) is a later start."""

    token: str
    epoch: float


@dataclass(frozen=True, slots=True)
class Row:
    """One registration; `born` counts those of its owner. `expires` is in monotonic seconds."""

    instance: Instance
    owner: Owner
    born: int
    lease: float
    expires: float


class RowKeeper(Protocol):
    """A registry that keeps rows with leases."""

    async def renew(self, row: Row) -> None:
        """Prolong the lease of `row`; stores it again if it is gone."""
        ...

    async def remove(self, row: Row) -> None:
        """Remove `row`, if it is there and no other has replaced it."""
        ...


class RowRegistration:
    """One registration as a row of `registry`. Its methods raise what the registry's do."""

    __slots__ = ("_registry", "_row", "_withdrawn", "interval")

    def __init__(self, registry: RowKeeper, row: Row, interval: float) -> None:
        self._registry = registry
        self._row = row
        self._withdrawn = False
        self.interval = interval

    async def beat(self) -> None:
        """See `Registration.beat`."""
        if not self._withdrawn:
            await self._registry.renew(self._row)

    async def withdraw(self) -> None:
        """See `Registration.withdraw`."""
        self._withdrawn = True
        await self._registry.remove(self._row)


def check_times(**times: float) -> None:
    """Refuse times that are not positive, and a heartbeat that comes too late for its lease (ConfigurationError)."""
    problems = [
        f"discovery.{name}: {value} is not a positive number of seconds"
        for name, value in times.items()
        if not (math.isfinite(value) and value > 0)
    ]
    if not problems and times["heartbeat"] >= times["lease"]:
        problems.append(
            f"discovery.heartbeat: {times['heartbeat']:g} s is not shorter than discovery.lease "
            f"({times['lease']:g} s), so every instance would expire; lower heartbeat or raise lease"
        )
    if problems:
        raise ConfigurationError(problems=problems, source="discovery")


def lists_of(rows: Iterable[Row]) -> dict[str, tuple[Instance, ...]]:
    """The list of each service, of those rows that count.

    Nothing is deleted when a registration takes the place of another, it only counts more; so several workers on one
    port don't push each other out at every beat, and when one of them goes another one's row counts at once.

    - Of several owners at one address, port and base path the one that started last is there: a process restarted on
      its port replaces the one that crashed before its lease is over, whatever service that was.
    - Of several rows of a service at one such place, or with one id, the last counts.

    Instances inside one process (`asgi`) have no address to compare. Workers that are instances of their own (the
    metadata `worker`) are told apart at one place.
    """
    by_age = sorted(rows, key=lambda row: (row.owner.epoch, row.owner.token, row.born))
    tenant = {place_of(row.instance): row.owner for row in by_age}
    there = [row for row in by_age if tenant[place_of(row.instance)] == row.owner]
    last_there = {(row.instance.service, place_of(row.instance)): row for row in there}
    last_named = {(row.instance.service, row.instance.id): row for row in last_there.values()}
    lists: dict[str, list[Instance]] = {}
    for row in last_named.values():
        lists.setdefault(row.instance.service, []).append(row.instance)
    return {service: ordered(instances) for service, instances in lists.items()}


def place_of(instance: Instance) -> object:
    """What only one process can have: of two instances with it, one has taken over from the other."""
    if instance.app is not None:
        return id(instance.app)
    return instance.address, instance.port, instance.base_path, instance.metadata.get(WORKER)


def encode(instance: Instance) -> str:
    """The JSON document of everything about an instance but service, id, address and port."""
    return json.dumps(
        {
            "scheme": instance.scheme,
            "health": instance.health,
            "weight": instance.weight,
            "tags": list(instance.tags),
            "metadata": dict(instance.metadata),
            "version": instance.version,
            "zone": instance.zone,
            "base_path": instance.base_path.decode("latin-1"),
            "health_check": instance.health_check,
        }
    )


def decode(service: str, id: str, address: str, port: int, document: str) -> Instance:
    """The instance of a stored row; raises ConfigurationError when the document is not one that `encode` made.

    Members that are unknown here, written by a later version, are ignored.
    """
    try:
        plain = json.loads(document)
    except ValueError as error:
        raise ConfigurationError(f"row {id!r} of {service!r} is unreadable: {type(error).__name__}: {error}") from None
    return instance_of(service, id, address, port, plain)


def instance_of(service: str, id: str, address: str, port: int, document: Mapping[str, object]) -> Instance:
    """The instance of a document that is read already; see `decode`."""
    plain = cast("dict[str, Any]", document)  # what is in it is found out below
    try:
        instance = Instance(
            service,
            id,
            address,
            port,
            scheme=cast("Scheme", str(plain["scheme"])),
            health=cast("Health", str(plain["health"])),
            weight=float(plain["weight"]),
            tags=tuple(str(tag) for tag in plain["tags"]),
            metadata=MappingProxyType({str(key): str(value) for key, value in plain["metadata"].items()}),
            version=_optional(plain["version"]),
            zone=_optional(plain["zone"]),
            base_path=str(plain["base_path"]).encode("latin-1"),
            health_check=_optional(plain["health_check"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"row {id!r} of {service!r} is unreadable: {type(error).__name__}: {error}") from None
    return check(instance)


def _optional(value: object) -> str | None:
    return None if value is None else str(value)
