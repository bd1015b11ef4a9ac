"""A discovery backend of fixed instances: `ServiceMesh(services={...})`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.bell import Bell
from fastapi_mesh.discovery.lists import check, known_services, ordered, same
from fastapi_mesh.discovery.urls import parse
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from fastapi_mesh.core.instance import ASGIApp
    from fastapi_mesh.discovery.base import KnownService

    Target = str | ASGIApp | Instance
    Targets = Target | Sequence[Target]


class StaticDiscovery:
    """Knows what it is told: a service is one or several URLs, ASGI applications of this process, or Instances.

    Ids are `SERVICE-1`, `SERVICE-2`... in the given order; an Instance keeps its own. Raises ConfigurationError with
    all problems at once.

    >>> static = StaticDiscovery({"users": ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]})
    >>> [each.id for each in static.instances()]
    ['users-1', 'users-2']
    """

    def __init__(self, services: Mapping[str, Targets] | None = None) -> None:
        self._bell = Bell()
        self._lists: dict[str, tuple[Instance, ...]] = {}
        problems: list[str] = []
        for service, targets in (services or {}).items():
            try:
                self._lists[service] = _read(service, targets)
            except ConfigurationError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigurationError(problems=problems, source="services")

    def services(self) -> tuple[str, ...]:
        """The services with at least one instance, sorted."""
        return tuple(sorted(service for service, instances in self._lists.items() if instances))

    def instances(self) -> tuple[Instance, ...]:
        """All instances, sorted by service and id."""
        return tuple(each for service in self.services() for each in self._lists[service])

    def add(self, service: str, targets: Targets) -> tuple[Instance, ...]:
        """Add instances and return them; an address that is there already stays as it is."""
        known = self._lists.get(service, ())
        added = _read(service, targets, known)
        self._publish(service, (*known, *added))
        return added

    def replace(self, service: str, targets: Targets) -> tuple[Instance, ...]:
        """Replace all instances of `service`; an empty sequence removes it."""
        instances = _read(service, targets)
        self._publish(service, instances)
        return instances

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`; never raises."""
        last: tuple[Instance, ...] | None = None
        while True:
            version = self._bell.version
            current = self._lists.get(service, ())
            if last is None or not same(current, last):
                last = current
                yield current
            else:
                await self._bell.wait(version)

    async def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """See `ServiceList.watch_services`; never raises."""
        last: tuple[KnownService, ...] | None = None
        while True:
            version = self._bell.version
            current = known_services(self._lists)
            if current != last:
                last = current
                yield current
            else:
                await self._bell.wait(version)

    def _publish(self, service: str, instances: tuple[Instance, ...]) -> None:
        if instances:
            self._lists[service] = ordered(instances)
        else:
            self._lists.pop(service, None)
        self._bell.ring()


def _read(service: str, targets: Targets, known: Sequence[Instance] = ()) -> tuple[Instance, ...]:
    """The instances of `targets` that are not `known`, ordered. Raises ConfigurationError with one line per problem."""
    if not service or not service.isprintable():
        raise ConfigurationError(f"services: {service!r} is not a name of a service")
    key = f"services.{service}"
    if isinstance(targets, str | Instance) or not isinstance(targets, Sequence):
        listed = [(key, targets)]
    else:
        listed = [(f"{key}[{index}]", target) for index, target in enumerate(targets)]
    places: dict[object, str] = {_place(each): "" for each in known}
    ids = {each.id for each in known}
    found: list[Instance] = []
    problems: list[str] = []
    for key, target in listed:
        try:
            instance = _one(service, target, key, ids)
        except ConfigurationError as error:
            problems.extend(error.problems)
            continue
        earlier = places.setdefault(_place(instance), key)
        if earlier is not key:
            if earlier:  # not one that was known before
                problems.append(f"{key}: is the same address as {earlier}; list it once, and give it a weight instead")
        elif instance.id in ids:
            problems.append(f"{key}: the id {instance.id!r} is taken by another instance of {service!r}")
        else:
            ids.add(instance.id)
            found.append(instance)
    if problems:
        raise ConfigurationError(problems=problems, source="services")
    return ordered(found)


def _one(service: str, target: Target, key: str, ids: set[str]) -> Instance:
    if isinstance(target, Instance):
        try:
            return check(target if target.service == service else replace(target, service=service))
        except ConfigurationError as error:
            raise ConfigurationError(problems=[f"{key}: {problem}" for problem in error.problems]) from None
    number = len(ids) + 1
    while f"{service}-{number}" in ids:
        number += 1
    return parse(target, service=service, id=f"{service}-{number}", key=key)


def _place(instance: Instance) -> object:
    """What makes two targets the same one."""
    if instance.app is not None:
        return id(instance.app)
    return instance.scheme, instance.address, instance.port, instance.base_path
