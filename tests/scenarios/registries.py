"""The registries that the scenarios run over: what nodes must know, and what can happen. One class for each.

A new one is one more subclass and a place in `ALL`, and in `OUTAGES` if its server can be killed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import pytest

from fastapi_mesh.service_mesh import ServiceMesh
from tests.support.consul import ConsulServer
from tests.support.etcd import EtcdServer, new_namespace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from _pytest.mark import ParameterSet


class Registry:
    """A registry, and the settings with which nodes meet in it."""

    name: ClassVar[str]
    server: ClassVar[str | None] = None
    """The real server that it needs, as the marker `server` names it."""
    fixture: ClassVar[str | None] = None
    """The fixture that gives that server, running."""

    def __init__(self, folder: Path, process: object, *, lease: float = 3.0, heartbeat: float = 1.0) -> None:
        self.folder = folder
        self.process = process
        self.lease = lease
        self.heartbeat = heartbeat

    def settings(self) -> dict[str, object]:
        """`discovery_config` of a node."""
        raise AssertionError("each registry says where it is")

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables, also the backend."""
        settings = {"backend": self.name, "lease": self.lease, "heartbeat": self.heartbeat, **self.settings()}
        return {f"MESH_DISCOVERY__{name.upper()}": str(value) for name, value in settings.items()}

    def mesh(self, name: str) -> ServiceMesh:
        """A mesh in the test's own process."""
        return ServiceMesh(name, discovery_backend=self.name, discovery_config=self.settings())

    def kill(self) -> None:
        """Kill the server."""
        raise AssertionError("each server says how it dies")

    def restart(self) -> None:
        """Start it again; it may have lost what it knew."""
        raise AssertionError("each server says how it is started")


class Local(Registry):
    name = "local"

    def settings(self) -> dict[str, object]:
        return {"path": str(self.folder / "registry.db")}


class Consul(Registry):
    name = "consul"
    server = "consul"
    fixture = "consul_server"

    @property
    def consul(self) -> ConsulServer:
        assert isinstance(self.process, ConsulServer)
        return self.process

    def settings(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.consul.port}

    def kill(self) -> None:
        self.consul.kill()

    def restart(self) -> None:
        self.consul.restart()


class Etcd(Registry):
    name = "etcd"
    server = "etcd"
    fixture = "etcd_server"

    def __init__(self, folder: Path, process: object, *, lease: float = 3.0, heartbeat: float = 1.0) -> None:
        super().__init__(folder, process, lease=lease, heartbeat=heartbeat)
        self._prefix = new_namespace().replace(" ", "-")

    @property
    def etcd(self) -> EtcdServer:
        assert isinstance(self.process, EtcdServer)
        return self.process

    def settings(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.etcd.port, "etcd": {"prefix": self._prefix}}

    @property
    def environment(self) -> dict[str, str]:
        flat = {name: value for name, value in super().environment.items() if not name.endswith("__ETCD")}
        return {**flat, "MESH_DISCOVERY__ETCD__PREFIX": self._prefix}

    def kill(self) -> None:
        self.etcd.kill()

    def restart(self) -> None:
        self.etcd.restart()


ALL: tuple[type[Registry], ...] = (Local, Consul, Etcd)
OUTAGES: tuple[type[Registry], ...] = (Consul, Etcd)


def parameters(kinds: Iterable[type[Registry]]) -> list[ParameterSet]:
    return [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.server(kind.server)] if kind.server else [])
        for kind in kinds
    ]


async def wait_instances(mesh: ServiceMesh, service: str, count: int, timeout: float = 30.0) -> None:
    """Wait until `mesh` lists so many instances of `service`."""
    found: list[str] = []
    async with asyncio.timeout(timeout):
        while True:
            found = [each.id for each in await mesh.discover_services(service)]
            if len(found) == count:
                return
            await asyncio.sleep(0.02)
