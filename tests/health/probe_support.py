"""A mesh whose instances answer probes as the test says: fake clock, scripted wire, scripted discovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.policies import BalancingPolicy, ServicePolicy
from fastapi_mesh.config.probes import ProbePolicy
from fastapi_mesh.core.events import Event
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Request
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import Answer, Call, Reply, ScriptedWire


class Listed:
    """A discovery that knows what `set` said."""

    def __init__(self) -> None:
        self._live: Live[tuple[Instance, ...]] = Live(())

    def set(self, *instances: Instance) -> None:
        self._live.publish(instances)

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        while True:
            yield self._live.value or ()
            await self._live.wait_change()


def user(number: int, **more: object) -> Instance:
    return replace(Instance("users", f"users-{number}", "127.0.0.1", 9000 + number), **more)  # type: ignore[arg-type]


@dataclass
class Rig:
    """`answers` has what an instance's health page answers by instance id, 200 where nothing is said."""

    mesh: ServiceMesh
    clock: FakeClock
    wire: ScriptedWire
    listed: Listed
    answers: dict[str, Reply]
    events: list[Event]

    def probed(self) -> list[Call]:
        return [call for call in self.wire.calls if ("user-agent", "fastapi-mesh-probe") in _headers(call)]

    def called(self) -> list[str]:
        """The instances that calls went to."""
        return [call.instance for call in self.wire.calls if ("user-agent", "fastapi-mesh-probe") not in _headers(call)]

    def times(self, instance: str = "users-1") -> list[float]:
        """When an instance was probed, in seconds since the first time."""
        at = [call.at for call in self.probed() if call.instance == instance]
        return [each - at[0] for each in at]

    async def use(self) -> dict[str, InstanceState]:
        """Ask for the service, so that it is in use; its instances by id."""
        await self.mesh.discover_services("users")
        return {each.instance.id: each for each in self.mesh.states.get("users").instances.value or ()}

    async def health(self) -> dict[str, str]:
        return {each.id: each.health for each in await self.mesh.discover_services("users")}

    async def call(self, times: int) -> list[str]:
        """Make calls; the instances they went to."""
        before = len(self.called())
        for _ in range(times):
            await self.mesh.call_service("users", "/x", raw=True)
        return self.called()[before:]

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until_probed(self, count: int, *, step: float = 1.0, limit: float = 2000.0) -> None:
        """Turn the clock until there were `count` probes."""
        end = self.clock.now() + limit
        while len(self.probed()) < count:
            assert self.clock.now() < end, f"only {len(self.probed())} probes of {count}"
            await self.clock.advance(step)


def _headers(call: Call) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in call.headers]


@asynccontextmanager
async def rig(
    *instances: Instance,
    policy: ProbePolicy | None = ProbePolicy(path="/health"),  # noqa: B008  # it is frozen
    required: bool = False,
    answers: dict[str, Reply] | None = None,
    **sections: object,
) -> AsyncIterator[Rig]:
    clock, listed, events = FakeClock(), Listed(), list[Event]()
    said: dict[str, Reply] = {} if answers is None else answers

    def answer(request: Request) -> Reply:
        assert request.context.instance is not None
        if (b"user-agent", b"fastapi-mesh-probe") in request.headers:
            return said.get(request.context.instance.instance.id, 200)
        return Answer(200)

    wire = ScriptedWire(answer, clock=clock)
    listed.set(*instances)
    balancing = BalancingPolicy(health_check_required=required)
    own = ServicePolicy(health_check=policy, load_balancing=balancing, **sections)  # type: ignore[arg-type]
    mesh = ServiceMesh(
        "caller",
        discovery=listed,
        policies={"users": own},
        wire=wire,
        clock=clock,
        observers=[events.append],
        enable_tracing=False,
    )
    async with mesh:
        yield Rig(mesh, clock, wire, listed, said, events)
    assert mesh.probes.statistics() == {"services": 0, "instances": 0, "running": 0, "waiting": 0}
