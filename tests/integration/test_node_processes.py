"""Nodes on real servers in processes of their own: when they register, and how they end."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.service_mesh.marker import find_nodes
from tests.support.process import free_port, process_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import ChildProcess, Processes

pytestmark = pytest.mark.anyio

TWO_REGISTERED = re.compile(r"registered orders/(?s:.*)registered orders/")
APP = "tests.integration.node_app:app"


class Registry:
    """The registry as others see it: each list of a service, with the time it was seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            "MESH_DISCOVERY__PATH": str(path),
            "MESH_DISCOVERY__LEASE": "1.2",
            "MESH_DISCOVERY__HEARTBEAT": "0.3",
            "MESH_DISCOVERY__POLL_INTERVAL": "0.05",
            "MESH_DRAIN_DELAY": "0.8",
        }

    @asynccontextmanager
    async def watch(self, service: str) -> AsyncIterator[Seen]:
        async with LocalRegistry(self.path, lease=1.2, heartbeat=0.3, poll_interval=0.02) as registry:
            seen = Seen()

            async def follow() -> None:
                async for instances in registry.watch(service):
                    seen.add([each.port for each in instances])

            task = asyncio.get_running_loop().create_task(follow())
            try:
                yield seen
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


class Seen:
    def __init__(self) -> None:
        self.lists: list[tuple[float, list[int]]] = []
        self._changed = asyncio.Event()

    def add(self, ports: list[int]) -> None:
        self.lists.append((time.monotonic(), ports))
        self._changed.set()

    async def wait(self, ports: list[int], timeout: float = 30.0) -> float:
        """Wait until the newest list is `ports`; when that was."""
        async with asyncio.timeout(timeout):
            while not self.lists or self.lists[-1][1] != ports:
                self._changed.clear()
                await self._changed.wait()
        return self.lists[-1][0]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.db")


async def get(port: int, path: str) -> tuple[int, str]:
    """Status and text, over a connection of its own."""

    def call() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def ended(child: ChildProcess, timeout: float = 30.0) -> int:
    return await asyncio.to_thread(child.wait, timeout)


@pytest.mark.spec("B37", "X-50")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_registers_when_its_port_accepts_and_on_sigterm_says_unready_leaves_waits_and_finishes_what_runs(
    processes: Processes, registry: Registry, loop: str
):
    async with registry.watch("orders") as seen:
        started = time.monotonic()
        child = processes.app(APP, "--loop", loop, environment={**registry.environment, "TEST_SLOW_STARTUP": "0.5"})
        registered = await seen.wait([child.port])
        assert (await get(child.port, "/health/ready"))[0] == 200  # at once, and no refused connection
        assert registered - started > 0.5
        running = asyncio.get_running_loop().create_task(get(child.port, "/slow/1.5"))
        await asyncio.sleep(0.2)

        child.signal(signal.SIGTERM)
        sent = time.monotonic()
        unready = served = 0.0
        while True:
            try:
                status, text = await get(child.port, "/health/ready")
            except OSError:
                closed = time.monotonic()
                break
            served = time.monotonic()
            if status == 503 and not unready:
                unready = served
                assert '"drain": "fail"' in text
            await asyncio.sleep(0.02)

        left = await seen.wait([])
        assert await running == (200, '"done"')
        assert sent < unready <= served < closed
        assert left < closed
        assert closed - sent > 0.8  # it answered for the drain delay
        assert await ended(child) == -signal.SIGTERM


@pytest.mark.spec("X-50")
async def test_a_second_signal_ends_the_drain_and_an_unregistered_node_has_none(
    processes: Processes, registry: Registry
):
    environment = {**registry.environment, "MESH_DRAIN_DELAY": "600"}
    hurried = processes.app(APP, environment=environment, name="hurried")
    async with registry.watch("orders") as seen:
        await seen.wait([hurried.port])
        hurried.signal(signal.SIGINT)
        await seen.wait([])
        hurried.signal(signal.SIGINT)
        await ended(hurried)

    alone = processes.app(APP, environment={**environment, "MESH_ENABLE_SERVICE_DISCOVERY": "false"}, name="alone")
    await alone.ready()
    alone.signal(signal.SIGTERM)
    await ended(alone)


@pytest.mark.parametrize("door", ["node_app", "lifespan_app"])
async def test_a_mesh_that_can_t_start_stops_uvicorn_with_exit_code_3_and_says_why(processes: Processes, door: str):
    path = "/proc/no/registry.db"
    child = processes.app(f"tests.integration.{door}:app", environment={"MESH_DISCOVERY__PATH": path})
    child.traceback_expected = door == "lifespan_app"  # Starlette prints one for whatever leaves a lifespan
    assert await ended(child) == 3
    start = child.log.index("fastapi-mesh: ")
    lines = child.log[start:].splitlines()[:4]
    assert "can't start" in lines[0]
    assert lines[1].startswith("  setting: ")
    assert path in lines[1]
    assert [line[:9] for line in lines[2:]] == ["  fix:   ", "  or:    "]
    assert "Application startup failed. Exiting." in child.log


async def test_a_refused_option_is_named_and_stops_uvicorn(processes: Processes):
    child = processes.app(APP, environment={"MTLS_ENABLED": "true"})
    assert await ended(child) == 3
    assert "  setting: enable_mtls (MTLS_ENABLED): mutual TLS is not part of this version" in child.log


async def test_two_workers_are_reached_at_their_port_and_leave_together(processes: Processes, registry: Registry):
    child = processes.app(APP, "--workers", "2", environment=registry.environment)
    async with registry.watch("orders") as seen:
        await child.ready(TWO_REGISTERED)
        await seen.wait([child.port])
        pids = {(await get(child.port, "/pid"))[1] for _ in range(30)}
        before = len(seen.lists)
        await asyncio.sleep(0.8)  # two heartbeats of both
        assert len(pids) <= 2
        assert [ports for _, ports in seen.lists[before:]] in ([], [[child.port]])  # the later one may come only now
        assert child.log.count("this worker process is a node of its own") == 2

        child.signal(signal.SIGTERM)
        await seen.wait([])
        await ended(child)


def drain(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastapi_mesh", "drain", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.spec("X-50", "X-51")
async def test_the_command_drain_lets_workers_leave_that_are_instances_of_their_own_and_they_go_on_serving(
    processes: Processes, registry: Registry
):
    environment = {**registry.environment, "MESH_WORKER_INSTANCES": "true"}
    child = processes.app(APP, "--workers", "2", environment=environment)
    async with registry.watch("orders") as seen:
        await child.ready(TWO_REGISTERED)
        await seen.wait([child.port, child.port])
        pids = [str(pid) for pid in process_tree(child.pid)]
        workers = [node.pid for node in find_nodes() if str(node.pid) in pids]
        assert len(workers) == 2

        started = time.monotonic()
        done = await asyncio.to_thread(drain, *[f"--pid={pid}" for pid in workers])

        assert time.monotonic() - started > 0.8  # the drain delay
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(done.stdout.splitlines()) == [f"orders (process {pid}): has left" for pid in sorted(workers)]
        assert seen.lists[-1][1] == []
        assert (await get(child.port, "/health/ready"))[0] == 503
        assert (await get(child.port, "/pid"))[0] == 200
        child.signal(signal.SIGTERM)
        await ended(child)
        assert not [node for node in find_nodes() if node.pid in workers]


@pytest.mark.spec("X-51")
async def test_the_command_drain_says_whom_it_can_t_drain():
    none = await asyncio.to_thread(drain, "--service", "nobody-has-this-name")
    other = await asyncio.to_thread(drain, "--pid", "1")

    assert (none.returncode, none.stderr) == (1, "no node of nobody-has-this-name runs here as this user\n")
    assert (other.returncode, other.stderr) == (1, "process 1: no node of this user\n")


@pytest.mark.spec("X-50")
async def test_the_lifespan_door_registers_and_drains_too(processes: Processes, registry: Registry):
    child = processes.app("tests.integration.lifespan_app:app", environment=registry.environment)
    async with registry.watch("orders") as seen:
        await seen.wait([child.port])
        sent = time.monotonic()
        child.signal(signal.SIGTERM)
        await seen.wait([])
        assert await ended(child) == -signal.SIGTERM
        assert time.monotonic() - sent > 0.8  # the drain delay


async def test_without_a_lifespan_the_first_request_makes_it_a_node(processes: Processes, registry: Registry):
    child = processes.app(APP, "--lifespan", "off", environment=registry.environment)
    await child.ready()
    async with registry.watch("orders") as seen:
        await seen.wait([])
        assert (await get(child.port, "/pid"))[0] == 200
        await seen.wait([child.port])
        child.signal(signal.SIGTERM)
        await seen.wait([])
        assert await ended(child) == -signal.SIGTERM


async def test_a_mounted_application_is_a_node_from_its_first_request_on(processes: Processes, registry: Registry):
    child = processes.app("tests.integration.node_app:outer", environment=registry.environment)
    await child.ready()
    async with registry.watch("mounted") as seen:
        assert (await get(child.port, "/sub/health"))[0] == 200
        await seen.wait([child.port])
        assert (await get(child.port, "/health"))[0] == 404
        child.signal(signal.SIGTERM)
        await seen.wait([])
        await ended(child)


async def test_two_applications_with_two_meshes_in_one_process_live_and_end_apart(
    processes: Processes, registry: Registry
):
    ports = free_port(), free_port()
    environment = {**registry.environment, "TEST_PORT_ONE": str(ports[0]), "TEST_PORT_TWO": str(ports[1])}
    command = [sys.executable, "-m", "tests.integration.node_app"]
    child = processes.start(command, name="two", environment=environment)
    async with registry.watch("one") as one, registry.watch("two") as two:
        await one.wait([ports[0]])
        await two.wait([ports[1]])
        assert (await get(ports[0], "/known/two"))[1] == f'["two-127.0.0.1-{ports[1]}"]'
        assert 'handler="/pid"' not in (await get(ports[0], "/metrics"))[1]
        await get(ports[1], "/pid")
        assert 'handler="/pid"' in (await get(ports[1], "/metrics"))[1]
        assert 'handler="/pid"' not in (await get(ports[0], "/metrics"))[1]
        child.signal(signal.SIGTERM)
        await two.wait([])
        await one.wait([])
        await ended(child)


@pytest.mark.spec("X-57")
async def test_a_killed_node_leaves_when_its_lease_ends(processes: Processes, registry: Registry):
    child = processes.app(APP, environment=registry.environment)
    async with registry.watch("orders") as seen:
        await seen.wait([child.port])
        killed = time.monotonic()
        child.kill()
        assert await seen.wait([]) - killed > 0.5
