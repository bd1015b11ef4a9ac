"""A gateway's own health checks, which join its mesh's while it is open, and a look at the services behind it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.health.checks import Check, HealthChecks
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

CONNECT_TIMEOUT = 1.0
"""Seconds in which an instance must accept a connection."""
_MOST_INSTANCES = 3
"""Instances of a service that are tried at the same time; one that answers is enough."""


class GatewayHealth:
    """Registers checks with a mesh's, so that every page that shows its health has them; `close` takes them back."""

    def __init__(self, checks: HealthChecks) -> None:
        self._checks = checks
        self._ours: dict[Check, str] = {}

    def take(self, wanted: Iterable[Check]) -> None:
        """These checks from now on, and no others of ours."""
        wanted = tuple(wanted)
        for check in [each for each in self._ours if each not in wanted]:
            self._checks.unregister(self._ours.pop(check))
        for check in wanted:
            if check not in self._ours:
                name = self._ours[check] = self._free_name(check)
                self._checks.register(check, name=name)

    def close(self) -> None:
        self.take(())

    def _free_name(self, check: Check) -> str:
        """The function's name, with a number where the mesh or another gateway has that already."""
        name = str(getattr(check, "__name__", type(check).__name__))
        number, free = 1, name
        while free in self._checks.names:
            number += 1
            free = f"{name}-{number}"
        return free


async def check_services(mesh: ServiceMesh, names: Iterable[str]) -> dict[str, bool]:
    """Which services can be called: the circuit isn't open, and an instance accepts a connection within a second."""
    tasks = {
        name: mesh.supervisor.start(_answers(mesh, name), name=f"check-service-{name}") for name in dict.fromkeys(names)
    }
    try:
        return {name: await task for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()


async def _answers(mesh: ServiceMesh, name: str) -> bool:
    breaker = mesh.breaker_of(name)
    if breaker is not None and breaker.state == "open":
        return False
    usable = [each for each in await mesh.discover_services(name) if each.health != "unhealthy"]
    tasks = [
        mesh.supervisor.start(_accepts(each), name=f"check-instance-{each.id}") for each in usable[:_MOST_INSTANCES]
    ]
    try:
        for done in asyncio.as_completed(tasks):
            if await done:
                return True
        return False
    finally:
        for task in tasks:
            task.cancel()


async def _accepts(instance: Instance) -> bool:
    if instance.app is not None:  # in this process
        return True
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(instance.address, instance.port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
