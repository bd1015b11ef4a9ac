"""How WebSockets through a gateway end when somebody breaks a rule, dies, or has had enough."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

from fastapi_mesh.api_gateway.websocket import closes
from fastapi_mesh.api_gateway.websocket.closes import Close, Ending
from tests.api_gateway.websocket.ws_support import (
    IMPLEMENTATIONS,
    Service,
    closed,
    connect,
    gateway_in_front,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]


def raw_frame(connection: ServerConnection, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
    """Send a frame that the library itself would not send."""
    connection.transport.write(Frame(opcode, data, fin).serialize(mask=False))


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_a_service_that_dies_is_told_to_the_client(ws: str) -> None:
    async def dies(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with Service(dies) as service, gateway_in_front(service.url, ws=ws) as (_, port), connect(port) as client:
        await client.send("x")
        assert await closed(client) == (1011, "the service is gone")


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_a_client_that_vanishes_is_known_to_the_service_at_once(ws: str) -> None:
    async with Service() as service, gateway_in_front(service.url, ws=ws) as (_, port):
        async with connect(port) as client:
            client.transport.abort()
            async with asyncio.timeout(10):
                await service.close_code()
        # uvicorn's newer protocols say 1005 for a connection that was cut; so a service on uvicorn is used to both.
        assert service.closes[-1][0] in (1005, 1006)


async def test_a_close_without_a_code_stays_one_to_the_service_and_is_normal_to_the_client() -> None:
    async with Service() as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        client.transport.write(Frame(Opcode.CLOSE, b"").serialize(mask=True))
        assert await service.close_code() == 1005

    async def silent_close(connection: ServerConnection) -> None:
        raw_frame(connection, Opcode.CLOSE, b"")
        await connection.wait_closed()

    async with Service(silent_close) as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        assert await closed(client) == (1000, "")


@pytest.mark.parametrize(
    ("opcode", "data", "told"),
    [
        pytest.param(Opcode.TEXT, b"\xff", 1007, id="no UTF-8"),
        pytest.param(Opcode.CLOSE, (1005).to_bytes(2), 1002, id="code 1005"),
        pytest.param(Opcode.CLOSE, (2999).to_bytes(2), 1002, id="code 2999"),
        pytest.param(Opcode.CLOSE, b"\x03", 1002, id="half a code"),
        pytest.param(Opcode.CLOSE, (1000).to_bytes(2) + b"\xff", 1007, id="reason is no UTF-8"),
        pytest.param(Opcode.CONT, b"x", 1002, id="continues nothing"),
    ],
)
async def test_a_service_that_breaks_a_rule_is_told_which_and_the_client_that_it_did(
    opcode: Opcode, data: bytes, told: int
) -> None:
    async def breaks(connection: ServerConnection) -> None:
        raw_frame(connection, opcode, data)
        await connection.wait_closed()

    async with Service(breaks) as service, gateway_in_front(service.url) as (_, port), connect(port) as client:
        assert (await closed(client))[0] == 1011
        assert await service.close_code() == told


@pytest.mark.parametrize("parts", [1, 11])
async def test_a_message_of_the_service_that_is_too_big_closes_both_sides_with_1009(parts: int) -> None:
    async def big(connection: ServerConnection) -> None:
        await connection.send("x" * 1000)
        whole = b"x" * 1001
        await connection.send(whole if parts == 1 else [whole[at : at + 91] for at in range(0, 1001, 91)])
        await connection.wait_closed()

    async with Service(big) as service:
        async with gateway_in_front(service.url, websocket={"max_message": 1000}) as (_, port), connect(port) as client:
            assert len(await client.recv()) == 1000
            assert (await closed(client))[0] == 1009
            assert await service.close_code() == 1009


@pytest.mark.parametrize("message", ["x" * 1001, "€" * 334, b"x" * 1001])
async def test_a_message_of_the_client_that_is_too_big_closes_both_sides_with_1009(message: str | bytes) -> None:
    async with Service() as service:
        async with gateway_in_front(service.url, websocket={"max_message": 1000}) as (_, port), connect(port) as client:
            await client.send("x" * 1000)
            assert len(await client.recv()) == 1000
            await client.send(message)
            assert (await closed(client))[0] == 1009
            assert await service.close_code() == 1009


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_a_client_that_breaks_a_rule_of_the_protocol_takes_nothing_with_it(ws: str) -> None:
    async with Service() as service, gateway_in_front(service.url, ws=ws) as (gateway, port):
        for opcode, data in ((Opcode.TEXT, b"\xff"), (Opcode.CONT, b"x"), (Opcode.CLOSE, b"\x03")):
            async with connect(port) as client:
                client.transport.write(Frame(opcode, data).serialize(mask=True))
                await closed(client)
            service.left.clear()
            await until(lambda: not service.connections, "the service has heard of it")
        await until(lambda: gateway.life.websockets.statistics()["running"] == 0, "all have ended")  # type: ignore[union-attr]
        async with connect(port) as client:
            await client.send("x")
            assert await client.recv() == "x"


async def test_a_service_that_does_not_answer_a_close_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_mesh.api_gateway.websocket.session.CLOSE_TIMEOUT", 0.2)
    stop = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()  # type: ignore[attr-defined]
        await stop.wait()
        connection.transport.abort()

    async with Service(deaf) as service, gateway_in_front(service.url) as (gateway, port):
        async with connect(port) as client:
            await client.close()
        await until(lambda: gateway.life.websockets.statistics()["running"] == 0, "it was left")  # type: ignore[union-attr]
        stop.set()


async def test_the_longest_life_of_a_stream_is_told_as_such() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port):
        gateway.configure_services({"up": {"instances": [service.url], "timeouts": {"max_stream_duration": 0.1}}})
        async with connect(port) as client:
            assert await closed(client) == (1001, "open for too long")


def test_which_codes_pass_and_what_stands_for_the_others() -> None:
    assert closes.from_client(1000, "x") == Ending(None, Close(1000, "x"))
    assert closes.from_client(1014, "") == Ending(None, Close(1014))
    assert closes.from_client(1005, "") == Ending(None, Close(1005))
    for code in (0, 999, 1004, 1006, 1015, 2999, 5000):
        assert closes.from_client(code, "x") == Ending(None, closes.CUT)
        assert closes.from_service(code, "x") == Ending(Close(1000), None)
    assert closes.from_service(4999, "x") == Ending(Close(4999, "x"), None)


def test_a_reason_fits_into_a_close_frame() -> None:
    assert closes.shortened("x" * 123) == "x" * 123
    assert closes.shortened("€" * 60) == "€" * 41


def test_an_ending_is_counted_by_the_code_of_whoever_has_one() -> None:
    assert closes.LOST.code == 1011
    assert closes.from_client(3001, "").code == 3001
    assert Ending(None, None).code == 1000
