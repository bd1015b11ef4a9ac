"""A slow side slows the other one down: what it doesn't take waits where it comes from, not in the gateway."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from tests.api_gateway.websocket.ws_support import Service, connect, gateway_in_front
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]

PIECE = b"x" * 64 * 1024
MIB = 1024 * 1024
APP = "tests.api_gateway.websocket.ws_gateway_app:gateway"


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def sent_until_stuck(connection: object, limit: int) -> int:
    """How much the other side takes before `send` gets stuck for half a second; `limit` at most."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < limit:
            async with asyncio.timeout(0.5):
                await connection.send(PIECE)  # type: ignore[attr-defined]
            sent += len(PIECE)
    return sent


@pytest.mark.parametrize("ws", ["websockets-sansio", pytest.param("wsproto", marks=pytest.mark.soak)])
async def test_memory_stays_small_while_a_client_does_not_read(ws: str, processes: Processes) -> None:
    sent: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def flood(connection: ServerConnection) -> None:
        sent.set_result(await sent_until_stuck(connection, 256 * MIB))

    async with Service(flood, write_limit=1024) as service:
        child = processes.app(APP, "--ws", ws, environment={"WS_UPSTREAM": service.url})
        await child.ready()
        async with connect(child.port, max_queue=1, compression=None) as client:
            client.transport.pause_reading()  # type: ignore[attr-defined]
            before = resident(child.pid)
            assert await sent < 64 * MIB  # the kernel's buffers on three sockets
            assert resident(child.pid) - before < 16 * MIB
            client.transport.abort()
        await asyncio.wait_for(service.left.wait(), 20)


@pytest.mark.parametrize("ws", ["websockets-sansio", pytest.param("wsproto", marks=pytest.mark.soak)])
async def test_memory_stays_small_while_a_service_does_not_read(ws: str, processes: Processes) -> None:
    stop = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()  # type: ignore[attr-defined]
        await stop.wait()
        connection.transport.abort()

    async with Service(deaf) as service:
        child = processes.app(APP, "--ws", ws, environment={"WS_UPSTREAM": service.url})
        await child.ready()
        async with connect(child.port, compression=None, write_limit=1024) as client:
            before = resident(child.pid)
            assert await sent_until_stuck(client, 256 * MIB) < 64 * MIB
            assert resident(child.pid) - before < 16 * MIB
            stop.set()
            client.transport.abort()


async def test_what_was_held_back_arrives_when_the_client_reads_again() -> None:
    count = 400

    async def flood(connection: ServerConnection) -> None:
        for number in range(count):
            await connection.send(number.to_bytes(2) + PIECE)

    async with Service(flood) as service, gateway_in_front(service.url) as (_, port):
        async with connect(port, max_queue=1, compression=None) as client:
            await asyncio.sleep(0.3)
            for number in range(count):
                message = await client.recv()
                assert message[:2] == number.to_bytes(2)
                assert len(message) == len(PIECE) + 2


async def test_a_flood_of_tiny_and_unfinished_messages_is_bounded() -> None:
    """Frames without content, and one message in thirty thousand pieces."""
    pieces = 30_000
    frames = (b"\x81\x00" * 10_000) + b"\x01\x00" + b"\x00\x01a" * pieces + b"\x80\x00"

    async def many(connection: ServerConnection) -> None:
        connection.transport.write(frames)
        await connection.wait_closed()

    async with Service(many) as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        for _ in range(10_000):
            assert await client.recv() == ""
        assert await client.recv() == "a" * pieces
