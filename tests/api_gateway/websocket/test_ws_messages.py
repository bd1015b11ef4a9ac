"""Messages through a gateway, on every WebSocket protocol that uvicorn has, with every HTTP protocol."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
import os

import pytest
from websockets.asyncio.server import ServerConnection

from tests.api_gateway.gateway_support import SERVERS
from tests.api_gateway.websocket.ws_support import IMPLEMENTATIONS, Service, closed, connect, gateway_in_front

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24", "S-407")]

SIZES = [0, 1, 125, 126, 65_535, 65_536, 1_000_000]


@pytest.mark.parametrize("http", SERVERS)
@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_messages_pass_both_ways_unchanged(http: str, ws: str) -> None:
    async with Service() as service, gateway_in_front(service.url, http=http, ws=ws) as (_, port):
        async with connect(port) as client:
            for size in SIZES:
                for message in (os.urandom(size), "ä€😀x" * (size // 10) + "x" * (size % 10)):
                    await client.send(message)
                    assert await client.recv() == message
            assert client.protocol.close_code is None


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_fragments_become_one_message(ws: str) -> None:
    async def fragmented(connection: ServerConnection) -> None:
        got = await connection.recv()
        await connection.send([got[:1], "", got[1:3], got[3:]])  # type: ignore[list-item]
        await connection.send([b"a", b"", b"bc"])

    async with Service(fragmented) as service, gateway_in_front(service.url, ws=ws) as (_, port):
        async with connect(port) as client:
            await client.send(["ü", "", "bcd"])
            assert await client.recv() == "übcd"
            assert await client.recv() == b"abc"


async def test_many_messages_keep_their_order() -> None:
    async with Service() as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        sending = asyncio.get_running_loop().create_task(_send_all(client, 2000))
        got = [await client.recv() for _ in range(2000)]
        await sending
        assert got == [str(number) for number in range(2000)]


async def _send_all(client: object, count: int) -> None:
    for number in range(count):
        await client.send(str(number))  # type: ignore[attr-defined]


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_close_codes_and_reasons_reach_the_other_side(ws: str) -> None:
    async with Service() as service, gateway_in_front(service.url, ws=ws) as (_, port):
        for code in (1000, 1001, 1003, 1008, 1011, 1012, 3000, 4999):
            async with connect(port) as client:
                await client.send(f"close:{code}:grüße")
                assert await closed(client) == (code, "grüße")
            service.left.clear()
            async with connect(port) as client:
                await client.close(code, "tschüß")
            await service.close_code()
            assert service.closes[-1] == (code, "tschüß")


async def test_messages_sent_just_before_a_close_arrive() -> None:
    async def chatty(connection: ServerConnection) -> None:
        for number in range(100):
            await connection.send(str(number))
        await connection.close(4000, "")

    async with Service(chatty) as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        assert [await client.recv() for _ in range(100)] == [str(number) for number in range(100)]
        assert await closed(client) == (4000, "")


@pytest.mark.parametrize("compression", [True, False])
async def test_each_hop_negotiates_its_own_compression(compression: bool) -> None:
    async with Service(compression="deflate") as service:
        async with gateway_in_front(service.url, websocket={"compression": compression}) as (_, port):
            for client_offers in ("deflate", None):
                async with connect(port, compression=client_offers) as client:
                    offered = service.requests[-1].headers.get("Sec-WebSocket-Extensions")
                    accepted = client.response.headers.get("Sec-WebSocket-Extensions")  # type: ignore[union-attr]
                    assert (offered is not None) is compression
                    assert (accepted is not None) is (client_offers is not None)
                    for message in ("a" * 100_000, os.urandom(100_000), ""):
                        await client.send(message)
                        assert await client.recv() == message
