"""The life of a node: who owns it, when it registers, and what a signal sets off."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.health.checks import HealthChecks
from fastapi_mesh.service_mesh.doors import adopt, explain_start, lifespan_of
from fastapi_mesh.service_mesh.life import WARN_AFTER, NodeLife
from fastapi_mesh.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio


class Node:
    """What NodeLife needs of a ServiceMesh, writing down what is done to it."""

    def __init__(self, **settings: object) -> None:
        self.config = MeshConfig(**{"service_name": "orders", **settings})  # type: ignore[arg-type]
        self.clock = FakeClock()
        self.supervisor = Supervisor(clock=self.clock)
        self.health = HealthChecks(clock=self.clock)
        self.metrics = None
        self.enabled = self.config.enabled
        self.service_name = self.config.service_name
        self.started = False
        self.ready = True
        self.registrations: tuple[object, ...] = ()
        self.events: list[object] = []
        self.fail: Exception | None = None
        self.life = NodeLife(self)  # type: ignore[arg-type] # a stand-in with what it uses

    async def start(self) -> None:
        if self.fail is not None:
            raise self.fail
        self.started = True
        self.events.append("start")

    async def stop(self) -> None:
        self.started = False
        await self.supervisor.aclose()
        self.supervisor.reopen()
        self.events.append("stop")

    async def register_service(self, *, address: str, port: int, health_check: str) -> None:
        self.registrations = ((address, port, health_check),)
        self.events.append(("register", address, port, health_check))

    async def deregister(self) -> None:
        self.registrations = ()
        self.events.append("deregister")
        if self.fail is not None:
            raise self.fail


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    yield node
    await node.life.close()
    await node.supervisor.aclose()


@pytest.fixture
def server() -> Iterator[list[int]]:
    """Stands for the server's own handler of SIGTERM and SIGINT; the numbers that reached it."""
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


async def until(condition: object) -> None:
    """Let real sockets and threads go on until `condition` holds."""
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def test_the_first_door_owns_it_and_the_others_leave_it_open(node):
    assert await node.life.open() is True
    assert await node.life.open() is False
    assert node.life.is_open
    await node.life.close()
    await node.life.close()
    assert not node.life.is_open
    assert node.events == ["start", "stop"]


async def test_a_mesh_started_by_hand_is_not_stopped_by_the_door(node):
    await node.start()
    assert await node.life.open() is True
    await node.life.close()
    assert "stop" not in node.events


async def test_a_failed_start_leaves_it_closed_and_the_signals_alone(node, server):
    before = signal.getsignal(signal.SIGTERM)
    node.fail = ConfigurationError("discovery.path: not writable")
    with pytest.raises(ConfigurationError):
        await node.life.open()
    assert not node.life.is_open
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.spec("B37")
async def test_it_registers_once_its_own_port_accepts_connections(server):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        node = Node(port=listener.getsockname()[1], address="127.0.0.1", health_path="/healthz")
        await node.life.open()
        node.life.serving()
        node.life.serving()
        for _ in range(20):
            await node.clock.advance(0.1)
            await asyncio.sleep(0.002)
        assert node.registrations == ()  # bound, but nobody accepts yet

        listener.listen()
        for _ in range(200):
            await node.clock.advance(0.5)
            await asyncio.sleep(0.005)
            if node.registrations:
                break
        assert node.events == ["start", ("register", "127.0.0.1", node.config.port, "/healthz")]
        await node.life.close()
        assert node.events[2:] == ["deregister", "stop"]


async def test_an_application_that_registered_itself_is_not_registered_twice(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = Node(port=listener.getsockname()[1], address="127.0.0.1")
        await node.life.open()
        node.registrations = (("by-hand", 1, "/"),)
        node.life.serving()
        await until(node.life._registering.done)
        assert node.events == ["start"]
        await node.life.close()


async def test_a_registration_that_can_t_succeed_is_said_and_not_tried_again(server, caplog):
    class Refused(Node):
        async def register_service(self, **options: object) -> None:
            raise ConfigurationError("address: 'x y' is no address")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = Refused(port=listener.getsockname()[1], address="127.0.0.1")
        await node.life.open()
        node.life.serving()
        await until(node.life._registering.done)
        assert "orders is not registered: address: 'x y' is no address" in caplog.text
        await node.life.close()


async def test_a_registration_on_its_way_is_finished_before_it_is_withdrawn(server):
    class Slow(Node):
        async def register_service(self, **options: object) -> None:
            self.events.append("registering")
            await self.clock.sleep(0.5)
            await super().register_service(**options)  # type: ignore[arg-type] # passes them on

    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = Slow(port=listener.getsockname()[1], address="127.0.0.1")
        await node.life.open()
        node.life.serving()
        await until(lambda: "registering" in node.events)
        closing = asyncio.get_running_loop().create_task(node.life.close())
        await node.clock.advance(0.6)
        await closing
        assert [each if isinstance(each, str) else each[0] for each in node.events] == [
            "start",
            "registering",
            "register",
            "deregister",
            "stop",
        ]


@pytest.mark.spec("B37")
async def test_where_a_process_can_t_see_its_sockets_the_first_request_tells_the_port(server, monkeypatch):
    monkeypatch.setattr("fastapi_mesh.discovery.address.own_listeners_known", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = Node()
        await node.life.open()
        node.life.serving()
        await node.clock.advance(2)
        assert node.registrations == ()
        node.life.saw_server(("/run/server.sock", None))
        node.life.saw_server(listener.getsockname())
        await node.clock.advance(1)
        await until(lambda: node.registrations)
        assert node.registrations == (("127.0.0.1", listener.getsockname()[1], "/health"),)
        await node.life.close()


async def test_a_signal_after_the_mesh_was_stopped_by_hand_passes(node, server):
    await node.life.open()
    node.registrations = ((),)
    await node.supervisor.aclose()
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert server == [signal.SIGTERM]


def test_without_any_server_the_signal_still_ends_the_process_after_the_drain():
    code = """
import asyncio, signal
from tests.service_mesh.test_life import Node
from fastapi_mesh.core.clock import SystemClock

async def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node = Node(drain_delay=0.05)
    node.clock = SystemClock()
    await node.life.open()
    node.registrations = ((),)
    signal.raise_signal(signal.SIGINT)
    print("ignored", flush=True)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(10)
    print("not reached", flush=True)

asyncio.run(main())
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (-signal.SIGTERM, ["ignored"], "")


@pytest.mark.parametrize(
    "settings", [{"service_name": None}, {"enable_service_discovery": False}, {"enabled": False}], ids=str
)
async def test_what_has_no_name_or_wants_no_discovery_or_is_switched_off_does_not_register(settings, server):
    node = Node(**settings)
    await node.life.open()
    node.life.serving()
    assert node.supervisor.statistics()["tasks"] == 0
    await node.life.close()


async def test_a_port_that_never_answers_is_said_after_ten_seconds(caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        node = Node(port=unused.getsockname()[1], address="127.0.0.1")
        await node.life.open()
        node.life.serving()
        await node.clock.advance(WARN_AFTER + 0.1)
        (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert line.startswith(
            f"orders is not registered yet: nothing accepts connections on port {node.config.port}; set address= and"
        )
        await node.life.close()


@pytest.mark.spec("X-50")
async def test_a_signal_turns_readiness_deregisters_waits_and_only_then_reaches_the_server(node, server):
    await node.life.open()
    node.registrations = (("127.0.0.1", 8000, "/health"),)
    assert node.life.ready

    signal.raise_signal(signal.SIGTERM)
    assert node.life.draining
    assert not node.life.ready
    assert server == []
    await node.clock.advance(0)
    assert node.events[-1] == "deregister"
    await node.clock.advance(1.9)
    assert server == []
    await node.clock.advance(0.2)
    assert server == [signal.SIGTERM]


@pytest.mark.spec("X-50")
async def test_a_second_signal_reaches_the_server_at_once_and_the_first_one_never_comes_after_it(node, server):
    await node.life.open()
    node.registrations = (("127.0.0.1", 8000, "/health"),)
    signal.raise_signal(signal.SIGTERM)
    await node.clock.advance(0.5)
    signal.raise_signal(signal.SIGINT)
    assert server == [signal.SIGINT]
    await node.clock.advance(5)
    assert server == [signal.SIGINT]
    signal.raise_signal(signal.SIGINT)
    assert server == [signal.SIGINT, signal.SIGINT]


@pytest.mark.spec("X-50")
async def test_without_a_registration_the_signal_passes_at_once(node, server):
    await node.life.open()
    signal.raise_signal(signal.SIGTERM)
    assert server == [signal.SIGTERM]
    assert not node.life.ready


async def test_a_registry_that_fails_delays_the_signal_no_further(node, server, caplog):
    await node.life.open()
    node.registrations = (("127.0.0.1", 8000, "/health"),)
    node.fail = ServiceDiscoveryError("registry gone")
    signal.raise_signal(signal.SIGTERM)
    await node.clock.advance(2.1)
    assert server == [signal.SIGTERM]
    assert "the lease has to run out: registry gone" in caplog.text


async def test_two_nodes_of_one_process_both_leave_before_the_server_hears(server):
    one, two = Node(), Node()
    await one.life.open()
    await two.life.open()
    one.registrations = two.registrations = ((),)
    signal.raise_signal(signal.SIGTERM)
    await two.clock.advance(2.1)
    assert (two.events[-1], one.events[-1], server) == ("deregister", "deregister", [])
    await one.clock.advance(2.1)
    assert server == [signal.SIGTERM]
    await one.life.close()
    await two.life.close()


async def test_the_handlers_are_given_back_in_whatever_order_nodes_close(server):
    before = signal.getsignal(signal.SIGTERM)
    one, two = Node(), Node()
    await one.life.open()
    await two.life.open()
    await one.life.close()
    signal.raise_signal(signal.SIGTERM)  # through the open one, and past the closed one below it
    assert server == [signal.SIGTERM]
    await two.life.close()
    signal.raise_signal(signal.SIGTERM)
    assert server == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGINT) is not None
    assert signal.getsignal(signal.SIGTERM) in (before, one.life._signals._handle)


def test_a_loop_that_ended_without_closing_it_can_be_followed_by_another():
    node = Node()

    async def request() -> bool:
        return await node.life.open()

    assert [asyncio.run(request()) for _ in range(3)] == [True, True, True]
    assert node.events == ["start", "stop", "start", "stop", "start"]
    node.life._signals.restore()


class Application:
    def __init__(self) -> None:
        self.state = SimpleNamespace()


async def test_the_lifespan_door_opens_publishes_and_closes(node):
    app = Application()
    async with lifespan_of(node, app) as state:  # type: ignore[call-overload]
        assert state == {"mesh": node}
        assert app.state.mesh is node
        assert node.life.is_open
    assert node.events == ["start", "stop"]


async def test_a_lifespan_of_ones_own_runs_inside_and_its_state_is_kept(node):
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def inner(app: object) -> AsyncIterator[dict[str, object]]:
        node.events.append("inner starts")
        yield {"db": 1}
        node.events.append("inner ends")

    app = Application()
    async with lifespan_of(node, inner)(app) as state:  # type: ignore[call-overload]
        assert state == {"mesh": node, "db": 1}
    assert node.events == ["start", "inner starts", "inner ends", "stop"]


async def test_a_second_mesh_for_the_same_application_is_refused_with_the_way_out(node):
    app = Application()
    other = Node()
    async with lifespan_of(node, app):  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match=r"already has another mesh; give the same object to both doors"):
            adopt(other, app)  # type: ignore[arg-type]
    adopt(other, app)  # type: ignore[arg-type] # the first one is closed
    assert app.state.mesh is other


async def test_a_failed_start_in_a_lifespan_says_below_its_traceback_what_to_do(node):
    node.fail = ConfigurationError("discovery.backend: 'consul' is not part of this version (0.1)")
    with pytest.raises(ConfigurationError) as caught:
        async with lifespan_of(node, Application()):  # type: ignore[call-overload]
            raise AssertionError("it must not start")
    assert "".join(caught.value.__notes__).count("\n") == 3


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            ConfigurationError("mesh: wrong"),
            [
                "fastapi-mesh: orders can't start",
                "  setting: mesh: wrong",
                "  fix:     correct what is named above, in code, in the environment (MESH_...) or in the file",
                "  or:      leave the setting out, so that its default counts; the configuration reference has it",
            ],
        ),
        (
            ConfigurationError(problems=["a: one", "b: two"], source="mesh.toml"),
            [
                "fastapi-mesh: orders can't start with the settings of mesh.toml",
                "  setting: a: one",
                "  setting: b: two",
            ],
        ),
        (
            ServiceDiscoveryError("the registry doesn't answer"),
            [
                "fastapi-mesh: orders can't start",
                "  reason:  ServiceDiscoveryError: the registry doesn't answer",
                "  fix:     start_policy='degraded' (MESH_START_POLICY) starts without it, unready until it is there",
            ],
        ),
        (
            PermissionError(13, "Permission denied", "/var/mesh.db"),
            [
                "fastapi-mesh: orders can't start",
                "  reason:  PermissionError: [Errno 13] Permission denied: '/var/mesh.db'",
                "  fix:     make /var/mesh.db accessible to this process",
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_words_for_a_failed_start_are_what_which_setting_and_two_ways_out(error, lines):
    assert explain_start("orders", error).splitlines()[: len(lines)] == lines
