"""WebSockets of a gateway whose process ends, whose settings change, or that is stopped; many of them at once."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
import signal
import sys
import time

import pytest

from fastapi_mesh.api_gateway import APIGateway
from tests.api_gateway.gateway_support import gateway_to, serving
from tests.api_gateway.websocket.test_ws_flow import resident
from tests.api_gateway.websocket.ws_support import (
    IMPLEMENTATIONS,
    Service,
    closed,
    connect,
    gateway_in_front,
    refusal,
    until,
)
from tests.support.process import Processes, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]

MODULE = "tests.api_gateway.websocket.ws_gateway_app"


@pytest.mark.spec("X-50")
@pytest.mark.parametrize(
    ("target", "ws"),
    [
        ("gateway", "websockets-sansio"),
        pytest.param("gateway", "wsproto", marks=pytest.mark.soak),
        pytest.param("gateway", "websockets", marks=pytest.mark.soak),
        ("app", "websockets-sansio"),
    ],
)
async def test_a_signal_closes_all_with_1012_on_both_sides(target: str, ws: str, processes: Processes) -> None:
    async with Service() as service:
        child = processes.app(f"{MODULE}:{target}", "--ws", ws, environment={"WS_UPSTREAM": service.url})
        await child.ready()
        async with connect(child.port) as first, connect(child.port) as second:
            await first.send("x")
            assert await first.recv() == "x"
            child.signal(signal.SIGTERM)
            assert (await closed(first))[0] == 1012
            assert (await closed(second))[0] == 1012
            await until(lambda: len(service.closes) == 2, "the service has heard of both")
            assert [code for code, _ in service.closes] == [1012, 1012]
        assert await asyncio.to_thread(child.ended) in (0, -signal.SIGTERM)


@pytest.mark.spec("X-50")
async def test_a_gateway_that_serves_by_itself_closes_all_with_1012(processes: Processes) -> None:
    async with Service() as service:
        port = free_port()
        environment = {"WS_UPSTREAM": service.url, "WS_PORT": str(port)}
        child = processes.start([sys.executable, "-m", MODULE], port=port, environment=environment)
        await asyncio.to_thread(child.wait_listening)
        async with connect(port) as client:
            child.signal(signal.SIGTERM)
            assert (await closed(client))[0] == 1012
            await until(lambda: [code for code, _ in service.closes] == [1012], "the service has heard of it")
        assert await asyncio.to_thread(child.ended) in (0, -signal.SIGTERM)


@pytest.mark.spec("X-23")
async def test_stop_ends_sockets_and_streams_without_a_signal() -> None:
    async with Service() as service:
        gateway = APIGateway("127.0.0.1", free_port(), services={"up": service.url})
        gateway.configure_routes([{"path": "/api/*", "service": "up"}])
        serve = asyncio.get_running_loop().create_task(gateway.start())
        await until(lambda: gateway.life is not None, "it is open")
        await asyncio.sleep(0.1)
        async with connect(gateway.config.port) as client:
            await gateway.stop()
            assert (await closed(client))[0] == 1012
        async with asyncio.timeout(3):
            await serve
        assert [code for code, _ in service.closes] == [1012]


async def test_handshakes_are_refused_when_the_process_is_about_to_end() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port):
        assert gateway.life is not None
        gateway.life.mesh.life.end_streams()
        response = await refusal(port)
        assert (response.status_code, response.headers["X-Mesh-Reason"]) == (503, "draining")
        assert service.requests == []


@pytest.mark.spec("X-30")
@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_open_sockets_are_not_touched_by_new_routes_and_services(ws: str) -> None:
    async with Service() as before, Service() as after, gateway_in_front(before.url, ws=ws) as (gateway, port):
        async with connect(port) as old:
            gateway.configure_services({"up": after.url})
            gateway.configure_routes([{"path": "/other/*", "service": "up", "websocket": {"max_message": 5}}])
            assert (await refusal(port)).status_code == 404
            async with connect(port, "/other/ws") as new:
                for message in ("hello", "more"):
                    await old.send(message * 100)
                    assert await old.recv() == message * 100
                await new.send("short")
                assert await new.recv() == "short"
                assert (len(before.connections), len(after.connections)) == (1, 1)
            gateway.configure_routes([{"path": "/api/*", "service": "up", "websocket": False}])
            assert (await refusal(port)).status_code == 403
            await old.send("still")
            assert await old.recv() == "still"


async def test_settings_of_the_gateway_count_unless_a_route_has_its_own() -> None:
    routes: list[dict[str, object]] = [
        {"path": "/none", "service": "up"},
        {"path": "/own", "service": "up", "websocket": True},
        {"path": "/big", "service": "up", "websocket": {"max_message": 10}},
    ]
    async with Service() as service:
        gateway = gateway_to(service.url, routes, websocket={"enabled": False, "max_message": 3})
        async with serving(gateway) as port:
            assert (await refusal(port, "/none")).status_code == 403
            for path, limit in (("/own", 3), ("/big", 10)):
                async with connect(port, path) as client:
                    await client.send("x" * limit)
                    assert await client.recv() == "x" * limit
                    await client.send("x" * (limit + 1))
                    assert (await closed(client))[0] == 1009


async def test_a_closed_gateway_leaves_no_socket_open() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port), connect(port) as client:
        await gateway.aclose()
        assert (await closed(client))[0] in (1011, 1012)
        await service.close_code()


async def test_many_sockets_that_open_and_close_at_once_leave_nothing() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port):

        async def one(number: int) -> None:
            async with connect(port, compression=None) as client:
                await client.send(str(number))
                if number % 3:
                    assert await client.recv() == str(number)
                if number % 2:
                    client.transport.abort()

        await asyncio.gather(*(one(number) for number in range(100)))
        assert gateway.life is not None
        await until(lambda: gateway.life.websockets.statistics()["running"] == 0, "all are over")  # type: ignore[union-attr]
        assert gateway.life.websockets.statistics() == {"handshakes": 100, "refused": 0, "opened": 100, "running": 0}


@pytest.mark.soak
async def test_a_thousand_idle_sockets_cost_little(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    await idle(processes, 1000, capsys)


async def test_fifty_idle_sockets_cost_little(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    await idle(processes, 50, capsys)


async def idle(processes: Processes, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Open so many and leave them alone for a second; their pings, twenty times as many as usual, cost little."""
    async with Service() as service:
        environment = {
            "WS_UPSTREAM": service.url,
            "MESH_GATEWAY__WEBSOCKET__PING_INTERVAL": "1",
        }
        child = processes.app(f"{MODULE}:gateway", "--ws-ping-interval", "20", environment=environment)
        await child.ready()
        async with connect(child.port) as first:
            await first.send("x")
            await first.recv()
        before = resident(child.pid)
        clients = [await connect(child.port, compression=None) for _ in range(count)]
        per_socket = (resident(child.pid) - before) / count
        used = cpu_seconds(child.pid)
        await asyncio.sleep(1.0)
        used = cpu_seconds(child.pid) - used
        started = time.perf_counter()
        for client in clients:
            await client.send("still")
            assert await client.recv() == "still"
        took = time.perf_counter() - started
        with capsys.disabled():
            print(
                f"\n{count} idle sockets: {per_socket / 1024:.1f} KiB each, {used:.1%} of a core with "
                f"{count} pings/s; {took / count * 1e6:.0f} us for a message there and back"
            )
        assert per_socket < 100 * 1024
        assert used < 0.5
        await asyncio.gather(*(client.close() for client in clients))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    import os
    from pathlib import Path

    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
