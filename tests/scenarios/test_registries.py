"""Nodes in processes of their own that meet in a registry: they are killed and replaced, and so is the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastapi_mesh.service_mesh import ServiceMesh
from tests.scenarios.load import Tally, steady
from tests.scenarios.registries import ALL, OUTAGES, Registry, parameters, wait_instances
from tests.support.process import ChildProcess, Processes

pytestmark = pytest.mark.anyio

APP = "tests.scenarios.registry_app:app"
DRAIN = 1.2
"""Seconds for which a node that leaves goes on to serve: updates come within one."""


def opened(request: pytest.FixtureRequest, folder: Path, **times: float) -> Registry:
    kind: type[Registry] = request.param
    return kind(folder, request.getfixturevalue(kind.fixture) if kind.fixture else None, **times)


@pytest.fixture(params=parameters(ALL))
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return opened(request, tmp_path)


@pytest.fixture(params=parameters(each for each in ALL if each.server))
def beyond(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """A registry for more than one machine."""
    return opened(request, tmp_path, lease=2.0, heartbeat=0.5)


@pytest.fixture(params=parameters(OUTAGES))
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    registry = opened(request, tmp_path)
    yield registry
    registry.restart()  # it is shared by all tests


class Cluster:
    """Instances of `front` and `back`, and a gateway, and a mesh of this process that watches them."""

    def __init__(self, processes: Processes, registry: Registry, watcher: ServiceMesh, *, target: str = "back") -> None:
        """`target` is what the gateway is in front of."""
        self._processes = processes
        self._environment = {**registry.environment, "MESH_DRAIN_DELAY": str(DRAIN), "TARGET": target}
        self.watcher = watcher
        self.nodes: dict[str, list[ChildProcess]] = {}
        self.gateway: ChildProcess

    def start(self, name: str, port: int | None = None) -> ChildProcess:
        return self._processes.app(
            APP,
            *("--no-access-log", *(("--no-proxy-headers",) if name == "gateway" else ())),
            name=name,
            port=port,
            environment={**self._environment, "NODE": name},
        )

    async def begin(self, **count: int) -> None:
        self.nodes = {name: [self.start(name) for _ in range(number)] for name, number in count.items()}
        self.gateway = self.start("gateway")
        for child in (self.gateway, *(each for nodes in self.nodes.values() for each in nodes)):
            await child.ready()
        for name, nodes in self.nodes.items():
            await wait_instances(self.watcher, name, len(nodes))

    async def roll(self) -> None:
        """Replace all instances, one of each service at a time, each on the port of the one before."""
        for number in range(len(next(iter(self.nodes.values())))):
            await asyncio.gather(*[self._replace(name, number) for name in self.nodes])
            for name, nodes in self.nodes.items():
                await wait_instances(self.watcher, name, len(nodes))

    async def _replace(self, name: str, number: int) -> None:
        old = self.nodes[name][number]
        await asyncio.to_thread(old.stop)
        self.nodes[name][number] = await self.start(name, old.port).ready()


@asynccontextmanager
async def loaded(port: int, *, rate: float) -> AsyncIterator[Tally]:
    """Requests at a steady rate for the time of the block."""
    tally, until = Tally(), asyncio.Event()
    load = asyncio.ensure_future(  # noqa: TID251 - the test's own task
        steady(port, rate=rate, connections=16, until=until, tally=tally)
    )
    try:
        yield tally
    finally:
        until.set()
        await load
    print(f"\n{sum(tally.answered.values())} answered by {len(tally.instances)} processes, failed: {tally.failed}")


async def rolling_restart(
    processes: Processes, registry: Registry, services: tuple[str, ...], *, each: int, rounds: int, rate: float
) -> None:
    async with registry.mesh("watcher") as watcher:
        cluster = Cluster(processes, registry, watcher, target=services[0])
        await cluster.begin(**dict.fromkeys(services, each))
        async with loaded(cluster.gateway.port, rate=rate) as tally:
            for _ in range(rounds):
                await cluster.roll()
    assert tally.failed == {}
    assert len(tally.instances) >= each * rounds  # all but the first to go and the last to come, for certain


@pytest.mark.spec("X-50")
async def test_a_rolling_restart_under_load_fails_no_request(processes: Processes, registry: Registry) -> None:
    await rolling_restart(processes, registry, ("back",), each=2, rounds=1, rate=50)


@pytest.mark.soak
@pytest.mark.spec("X-50")
async def test_ten_rolling_restarts_of_two_times_three_under_200_rps(processes: Processes, registry: Registry) -> None:
    await rolling_restart(processes, registry, ("front", "back"), each=3, rounds=10, rate=200)


async def outage(
    processes: Processes,
    registry: Registry,
    services: tuple[str, ...],
    *,
    seconds: float,
    afterwards: float,
    rate: float,
) -> None:
    async with registry.mesh("watcher") as watcher:
        cluster = Cluster(processes, registry, watcher, target=services[0])
        await cluster.begin(**dict.fromkeys(services, 2))
        async with loaded(cluster.gateway.port, rate=rate) as tally:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(registry.kill)
            meanwhile = cluster.start("back")
            await asyncio.sleep(seconds)
            await meanwhile.ready()
            assert "the registry does not answer yet" in meanwhile.log

            await asyncio.to_thread(registry.restart)
            await wait_instances(watcher, "back", 3)
            async with registry.mesh("newcomer") as newcomer:  # which has no earlier list to keep
                await wait_instances(newcomer, "back", 3)
            await asyncio.sleep(afterwards)
            await wait_instances(watcher, "back", 3)
    assert tally.failed == {}


@pytest.mark.spec("X-57")
async def test_a_registry_that_is_killed_under_load_fails_no_request_and_a_node_started_meanwhile_joins(
    processes: Processes, mortal: Registry
) -> None:
    await outage(processes, mortal, ("back",), seconds=8.0, afterwards=0.5, rate=50)


@pytest.mark.soak
@pytest.mark.spec("X-57")
async def test_a_registry_that_is_killed_for_a_minute(processes: Processes, mortal: Registry) -> None:
    # Afterwards all that was kept for those who had to come back is given up.
    await outage(processes, mortal, ("front", "back"), seconds=60.0, afterwards=20.0, rate=200)


@pytest.mark.spec("S-102", "S-103", "S-112", "X-57")
async def test_a_killed_node_gets_one_more_attempt_and_leaves_the_registry_after_its_lease(
    processes: Processes, beyond: Registry
) -> None:
    async with beyond.mesh("caller") as caller:
        cluster = Cluster(processes, beyond, caller)
        cluster.nodes["back"] = [cluster.start("back") for _ in range(2)]
        for child in cluster.nodes["back"]:
            await child.ready()
        await wait_instances(caller, "back", 2)
        client = caller.get_client("back")
        assert {(await client.get("/item?size=1")).headers["x-instance"] for _ in range(4)} == {
            str(each.pid) for each in cluster.nodes["back"]
        }

        await asyncio.to_thread(cluster.nodes["back"][0].kill)

        attempts = []
        for _ in range(20):
            answer = await client.get("/item?size=1")
            assert answer.status_code == 200
            attempts.append(answer.extensions["fastapi_mesh"]["attempts"])
        assert sum(attempts) <= 21
        await wait_instances(caller, "back", 1, timeout=beyond.lease + 10.0)
