"""When the services of WebSockets are pinged, and when a WebSocket has been silent, idle or open for too long."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.asyncio.server import ServerConnection

from fastapi_mesh.api_gateway.websocket.closes import Ending
from fastapi_mesh.api_gateway.websocket.keepalive import IDLE, SILENT, TOO_OLD, KeepAlive
from fastapi_mesh.config.edge.websocket import WebSocketPolicy
from fastapi_mesh.testing.clock import FakeClock
from tests.api_gateway.websocket.ws_support import Service, closed, connect, gateway_in_front

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]


class Watched:
    """A session of which only its clock is of interest."""

    def __init__(self, **policy: object) -> None:
        self.clock = FakeClock()
        self.is_delivering = False
        self.pings: list[float] = []
        self.endings: list[Ending] = []
        self.answers = True
        self.alive = KeepAlive(self, WebSocketPolicy(**policy), self.clock)  # type: ignore[arg-type]
        self.began = self.clock.now()
        self.alive.start()

    def ping(self) -> None:
        self.pings.append(self.clock.now() - self.began)
        if self.answers:
            self.alive.heard = self.clock.now()

    def end(self, ending: Ending) -> None:
        self.endings.append(ending)


async def test_a_service_that_answers_is_pinged_at_intervals_and_left_open() -> None:
    watched = Watched(ping_interval=20, ping_timeout=20)
    await watched.clock.advance(205)
    assert len(watched.pings) in (10, 11)
    assert 0 <= watched.pings[0] <= 20
    steps = {round(later - earlier, 6) for earlier, later in zip(watched.pings, watched.pings[1:], strict=False)}
    assert steps == {20.0}
    assert watched.endings == []


async def test_sockets_that_were_opened_together_are_not_pinged_together() -> None:
    first = [Watched(ping_interval=20) for _ in range(200)]
    for watched in first:
        await watched.clock.advance(20)
    slots = [0] * 20
    for watched in first:
        slots[min(19, int(watched.pings[0]))] += 1
    assert max(slots) < 40


async def test_a_service_that_stays_silent_after_a_ping_is_given_up() -> None:
    watched = Watched(ping_interval=20, ping_timeout=5)
    watched.answers = False
    await watched.clock.advance(26)
    assert watched.endings == [SILENT]
    assert len(watched.pings) == 1


async def test_whatever_the_service_sends_counts_as_its_answer() -> None:
    watched = Watched(ping_interval=20, ping_timeout=5)
    watched.answers = False
    for _ in range(100):
        await watched.clock.advance(1)
        watched.alive.heard = watched.clock.now()
    assert watched.endings == []


async def test_a_service_is_not_judged_while_the_client_is_behind() -> None:
    watched = Watched(ping_interval=20, ping_timeout=5)
    watched.answers = False
    watched.is_delivering = True
    await watched.clock.advance(200)
    assert watched.endings == []
    watched.is_delivering = False
    await watched.clock.advance(26)
    assert watched.endings == [SILENT]


async def test_an_idle_socket_ends_after_its_time_and_pings_do_not_count_as_use() -> None:
    watched = Watched(ping_interval=20, idle_timeout=100)
    await watched.clock.advance(60)
    watched.alive.used = watched.clock.now()
    await watched.clock.advance(99)
    assert watched.endings == []
    await watched.clock.advance(1)
    assert watched.endings == [IDLE]


async def test_a_socket_has_a_longest_life() -> None:
    watched = Watched(ping_interval=0, max_lifetime=3600)
    await watched.clock.advance(3599)
    watched.alive.used = watched.clock.now()
    assert watched.endings == []
    await watched.clock.advance(1)
    assert watched.endings == [TOO_OLD]
    assert watched.pings == []


async def test_nothing_runs_where_nothing_is_limited() -> None:
    watched = Watched(ping_interval=0)
    await watched.clock.advance(1e6)
    assert (watched.pings, watched.endings) == ([], [])
    watched.alive.stop()


async def test_a_stopped_clock_stays_silent() -> None:
    watched = Watched(ping_interval=1, max_lifetime=10)
    watched.alive.stop()
    await watched.clock.advance(100)
    assert (watched.pings, watched.endings) == ([], [])


async def test_a_service_that_hangs_is_found_by_its_pings() -> None:
    async def hangs(connection: ServerConnection) -> None:
        connection.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):
            await connection.wait_closed()

    async with Service(hangs) as service:
        async with gateway_in_front(service.url, websocket={"ping_interval": 0.05, "ping_timeout": 0.05}) as (_, port):
            async with connect(port) as client:
                assert await closed(client) == (1011, "the service does not answer")
            for connection in list(service.connections):
                connection.transport.abort()


async def test_each_hop_has_its_own_pings() -> None:
    async with Service() as service:
        policy = {"ping_interval": 0.02, "ping_timeout": 20}
        async with gateway_in_front(service.url, websocket=policy, server={"ws_ping_interval": 0.02}) as (_, port):
            async with connect(port) as client:
                pong = await client.ping(b"mine")
                await asyncio.wait_for(pong, 10)
                await asyncio.sleep(0.2)
                await client.send("x")
                assert await client.recv() == "x"


async def test_the_limits_close_with_1001() -> None:
    async with Service() as service:
        for policy, reason in (
            ({"idle_timeout": 0.1}, "idle for too long"),
            ({"max_lifetime": 0.1}, "open for too long"),
        ):
            service.left.clear()
            async with gateway_in_front(service.url, websocket=policy) as (_, port), connect(port) as client:
                assert await closed(client) == (1001, reason)
                assert await service.close_code() == 1001
