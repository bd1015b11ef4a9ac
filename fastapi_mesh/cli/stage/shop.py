"""The demo's shop: three services with two instances each and a gateway, as processes that meet in a registry."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.cli.stage.calls import Caller
from fastapi_mesh.cli.stage.ports import free_ports
from fastapi_mesh.cli.stage.processes import Child, end
from fastapi_mesh.config.environment import GATEWAY_NAMES, MESH_NAMES
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SERVICES = ("profile-service", "user-service", "order-service")
INSTANCES = 2
GATEWAY = "gateway"
LEASE, HEARTBEAT = 3.0, 1.0
"""Seconds; shorter than the defaults, so that nobody waits long to see a crashed instance leave the registry."""
DRAIN = 0.2
"""Seconds between leaving the registry and stopping; the default, 2 s, is for others than a demo."""
RECOVERY = 2.0
"""Seconds until an open circuit, of any service in any process, lets trial calls through; the default is 60 s."""
START_TIMEOUT = 60.0
LOOK_EVERY = 0.05

_FOREIGN = ("MESH_", "UVICORN_", "GATEWAY_", "WEB_CONCURRENCY")


class StartError(MeshError):
    """A process of the demo ended, or was not ready in time."""


@dataclass(frozen=True, slots=True)
class Node:
    """One instance of a service (or the gateway): which port is its, whatever process has it."""

    name: str
    service: str
    port: int


class Shop:
    """`start` the processes, `wait_ready`, play, and `end` whatever happened."""

    def __init__(
        self, apps: Path, *, registry: Path, logs: Path, gateway_port: int, services: Sequence[str] = SERVICES
    ) -> None:
        """`apps` is the folder with the applications, in which they run; `registry` a file, `logs` a folder."""
        ports = free_ports(INSTANCES * len(services))
        self.nodes = [
            Node(f"{service}-{number}", service, ports.pop(0))
            for service in services
            for number in range(1, INSTANCES + 1)
        ]
        self.gateway = Node(GATEWAY, GATEWAY, gateway_port)
        self.url = f"http://127.0.0.1:{gateway_port}"
        self.fault = apps / "order-service.fault"
        self.logs = {node.name: logs / f"{node.name}.log" for node in (self.gateway, *reversed(self.nodes))}
        self.children: dict[str, Child] = {}
        self._apps = apps
        self._all: list[Child] = []
        self._callers = {node.name: Caller(f"http://127.0.0.1:{node.port}") for node in (*self.nodes, self.gateway)}
        self._clock = SystemClock()
        self._registry = LocalRegistry(registry, lease=LEASE, heartbeat=HEARTBEAT)
        self._env = _environment(os.environ) | {
            "MESH_DISCOVERY__BACKEND": "local",
            "MESH_DISCOVERY__PATH": str(registry),
            "MESH_DISCOVERY__LEASE": str(LEASE),
            "MESH_DISCOVERY__HEARTBEAT": str(HEARTBEAT),
            "MESH_DRAIN_DELAY": str(DRAIN),
            "MESH_DEFAULTS__CIRCUIT_BREAKER__RECOVERY_TIMEOUT": str(RECOVERY),
        }

    def of(self, service: str) -> list[Node]:
        """The instances of a service."""
        return [node for node in self.nodes if node.service == service]

    def by_pid(self) -> dict[int, Node]:
        """Which process is which instance now."""
        return {self.children[node.name].pid: node for node in self.nodes}

    # Life

    def start(self) -> None:
        """Start all processes at once. Does not wait."""
        self.heal()
        for node in (*self.nodes, self.gateway):
            self.start_one(node)

    def start_one(self, node: Node) -> None:
        """Start the process of `node`, the first time or again."""
        target = "gateway:gateway" if node is self.gateway else f"{node.service.replace('-', '_')}:app"
        child = Child(node.name, target, node.port, log=self.logs[node.name], folder=self._apps, env=self._env)
        self._all.append(child)
        self.children[node.name] = child

    def kill(self, node: Node) -> None:
        """End the process of `node` with SIGKILL."""
        self.children[node.name].kill()

    async def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until every process answers that it is ready, and all instances are registered. Raises StartError."""
        end_of_time = time.monotonic() + timeout
        for node in (*self.nodes, self.gateway):
            await self._wait_serving(node, end_of_time)
        while missing := await self._unregistered():
            if time.monotonic() > end_of_time:
                raise StartError(f"{', '.join(missing)} did not register in time")
            await self._clock.sleep(LOOK_EVERY)

    async def wait_registered(self, node: Node, *, present: bool, timeout: float) -> bool:
        """Wait until `node` is (or is not) in the registry; False when the time was not enough."""
        end_of_time = time.monotonic() + timeout
        while (node.port in await self.registered()) is not present:
            if time.monotonic() > end_of_time:
                return False
            await self._clock.sleep(LOOK_EVERY)
        return True

    async def registered(self) -> set[int]:
        """The ports of what is registered now."""
        return {each.port for each in await self._registry.instances()}

    async def _unregistered(self) -> list[str]:
        registered = await self.registered()
        return [node.name for node in self.nodes if node.port not in registered]

    async def _wait_serving(self, node: Node, end_of_time: float) -> None:
        while not await self._callers[node.name].is_ready():
            for child in self.children.values():
                if child.exit_code is not None:
                    raise StartError(f"{child.name} ended with {child.exit_code} at its start:\n{child.end_of_log()}")
            if time.monotonic() > end_of_time:
                raise StartError(f"{node.name} was not ready in time:\n{self.children[node.name].end_of_log()}")
            await self._clock.sleep(LOOK_EVERY)

    def end(self) -> list[str]:
        """End every process that was ever started; returns the names of those that had to be killed for it."""
        self.heal()
        return [child.name for child in end(self._all)]

    @property
    def started(self) -> int:
        """How many processes were started."""
        return len(self._all)

    def left(self) -> list[str]:
        """Which processes still run."""
        return [f"{child.name} ({child.pid})" for child in self._all if child.exit_code is None]

    async def aclose(self) -> None:
        """Close the demo's own connections."""
        for caller in self._callers.values():
            await caller.aclose()
        await self._registry.aclose()

    # What the story needs

    @property
    def caller(self) -> Caller:
        """Calls the gateway, as a client outside of the mesh does."""
        return self._callers[GATEWAY]

    async def served(self, service: str) -> int:
        """How many requests the instances of `service` have answered, by their own count."""
        return sum([await self._callers[node.name].requests_served() for node in self.of(service)])

    def break_orders(self) -> None:
        """Plant the fault: every instance of order-service answers 500."""
        self.fault.touch()

    def heal(self) -> None:
        """Remove the fault."""
        self.fault.unlink(missing_ok=True)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings that are meant for other nodes, gateways and servers than the demo's."""
    names = {*MESH_NAMES, *GATEWAY_NAMES}
    return {name: value for name, value in env.items() if name not in names and not name.startswith(_FOREIGN)}
