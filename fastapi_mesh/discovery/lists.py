"""Lists of instances: their order, when two say the same, and what an instance must have to be in one."""

from __future__ import annotations

import ipaddress
import math
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, get_args

from fastapi_mesh.core.closing import closing
from fastapi_mesh.core.instance import Health, Scheme
from fastapi_mesh.discovery.base import KnownService
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery

SCHEMES: frozenset[str] = frozenset(get_args(Scheme))
HEALTHS: frozenset[str] = frozenset(get_args(Health))

_by_id = attrgetter("id")


def ordered(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """The list as `Discovery.watch` promises it: sorted by id, one per id (the last given stays)."""
    return tuple(sorted({each.id: each for each in instances}.values(), key=_by_id))


def same(one: tuple[Instance, ...], other: tuple[Instance, ...]) -> bool:
    """Whether two lists say the same; an application object (`app`) is compared by identity."""
    return one is other or (one == other and all(a.app is b.app for a, b in zip(one, other, strict=True)))


def known_services(lists: Mapping[str, tuple[Instance, ...]]) -> tuple[KnownService, ...]:
    """The services of `lists` that have an instance, as `ServiceList.watch_services` promises them."""
    return tuple(
        KnownService(service, frozenset(tag for each in instances for tag in each.tags))
        for service, instances in sorted(lists.items())
        if instances
    )


@asynccontextmanager
async def watching(discovery: Discovery, service: str) -> AsyncIterator[AsyncIterator[tuple[Instance, ...]]]:
    """The iterator of `discovery.watch`, closed at the end of the block if it can be."""
    async with closing(discovery.watch(service)) as lists:
        yield lists


def is_wildcard(address: str) -> bool:
    """Whether `address` means every interface (0.0.0.0, ::), where a server can listen but nobody can connect to."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return address == ""


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine as only this machine calls it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_for_others(instance: Instance) -> Instance:
    """Return `instance` if other processes could call it. Raises ConfigurationError as `check` does."""
    if instance.scheme == "asgi":
        raise ConfigurationError(
            f"instance {instance.id!r} of {instance.service!r} is an application inside this process, which other "
            "processes can't call; give it to services={...}"
        )
    return check(instance)


def check(instance: Instance) -> Instance:
    """Return `instance` if callers could use it as it is. Raises ConfigurationError with one line per problem."""
    problems = [
        f"{name}: {getattr(instance, name)!r} must be a non-empty text of printable characters"
        for name in ("service", "id", "address")
        if not getattr(instance, name) or not getattr(instance, name).isprintable()
    ]
    if instance.scheme not in SCHEMES:
        problems.append(f"scheme: {instance.scheme!r} is none of {', '.join(sorted(SCHEMES))}")
    if instance.health not in HEALTHS:
        problems.append(f"health: {instance.health!r} is none of {', '.join(sorted(HEALTHS))}")
    if (instance.scheme == "asgi") != (instance.app is not None):
        problems.append("app: the scheme 'asgi' needs an application object, and no other scheme takes one")
    if instance.scheme != "asgi":
        if not 1 <= instance.port <= 65535:
            problems.append(f"port: {instance.port} is not between 1 and 65535")
        if is_wildcard(instance.address) and instance.address:
            problems.append(f"address: {instance.address} is where a server listens, not where it can be reached")
    if not (math.isfinite(instance.weight) and instance.weight > 0):
        problems.append(f"weight: {instance.weight} is not a positive number")
    if instance.base_path and not instance.base_path.startswith(b"/"):
        problems.append(f"base_path: {instance.base_path!r} does not start with '/'")
    if problems:
        raise ConfigurationError(problems=problems, source=f"instance {instance.id!r} of {instance.service!r}")
    return instance
