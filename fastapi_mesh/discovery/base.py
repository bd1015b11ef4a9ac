"""Ports for discovery: watch a service's instances, and register one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.instance import Instance


class Discovery(Protocol):
    """Finds instances. One method is enough for a backend of your own."""

    def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """Yield the complete list of `service`'s instances: at once, and again whenever it changes.

        An unknown service is an empty list. The iterator never ends by itself; when the registry can't be reached it
        raises (the caller keeps the last list, waits and calls `watch` again). Each list is sorted by id, has no
        duplicate ids, and differs from the one before.
        """
        ...


@dataclass(frozen=True, slots=True)
class KnownService:
    """A service that has an instance, and all tags that any of its instances has."""

    name: str
    tags: frozenset[str] = frozenset()


@runtime_checkable
class ServiceList(Protocol):
    """Knows which services there are; a Discovery may be one. Dynamic routes of a gateway need it."""

    def watch_services(self) -> AsyncIterator[tuple[KnownService, ...]]:
        """Yield all services with an instance, sorted by name: at once, and again whenever they or their tags change.

        Ends and fails as `Discovery.watch` does: never by itself, and by raising when the registry can't be reached.
        """
        ...


class Registrar(Protocol):
    """Makes instances known."""

    async def register(self, instance: Instance) -> Registration:
        """Register `instance`, replacing one of the same id. Raises ServiceDiscoveryError when it can't be."""
        ...


@runtime_checkable
class Locating(Protocol):
    """A Registrar that knows the address of this machine as others see it."""

    async def own_address(self) -> str:
        """The address of a server here that listens on all interfaces. Raises ServiceDiscoveryError."""
        ...


class Registration(Protocol):
    """One registered instance, kept alive by `beat` until `withdraw`."""

    @property
    def interval(self) -> float:
        """Seconds between two beats; 0.0 when none are needed."""
        ...

    async def beat(self) -> None:
        """Renew the lease; registers anew if the registry has forgotten us."""
        ...

    async def withdraw(self) -> None:
        """Remove the instance at once. Safe to call twice."""
        ...
