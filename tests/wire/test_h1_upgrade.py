"""101 Switching Protocols over the HTTP/1.1 wire, and the byte stream after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamProtocolError, UpstreamTimeoutError
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import BadServer, Peer, answering
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, start

pytestmark = pytest.mark.anyio

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
ASK = [(b"upgrade", b"echo")]


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
async def wire() -> AsyncIterator[H1Wire]:
    made = H1Wire()
    yield made
    await made.aclose()
    assert made.statistics()["open"] == 0


async def ask(wire: H1Wire, server: BadServer, headers: Any = ASK, **context: Any) -> Response:
    made = make_context(make_instance(server.port), **context)
    return await wire(make_request(made, headers=headers))


async def echo(peer: Peer) -> None:
    await peer.read_head()
    await peer.send(SWITCH + b"hello")
    while data := await peer.read_some():
        await peer.send(data.upper())


@pytest.mark.parametrize("hold", [False, True])
async def test_after_101_the_connection_is_a_byte_stream(wire: H1Wire, hold: bool):
    async with BadServer(echo) as server:
        response = await ask(wire, server, hold=hold)
        stream = response.upgrade
        assert stream is not None
        assert (response.status, response.headers) == (
            101,
            [(b"Upgrade", b"echo"), (b"Connection", b"Upgrade")],
        )
        assert not response.at_end
        assert await stream.read() == b"hello"
        for word in (b"one", b"HTTP/1.1 200 OK\r\n\r\n", b"two"):
            await stream.write(word)
            assert await stream.read() == word.upper()
        assert b"connection: upgrade\r\n" in server.peers[0].heads[0]

        await stream.aclose()
        await stream.aclose()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        with pytest.raises(UpstreamConnectionError):
            await stream.write(b"x")
        with pytest.raises(UpstreamConnectionError):
            await stream.read()
        assert wire.statistics()["idle"] == 0


async def test_closing_the_response_closes_the_stream_and_what_was_written_still_goes_out(wire: H1Wire):
    async with BadServer(echo) as server:
        response = await ask(wire, server)
        outcomes: list[Outcome] = []
        response.on_close(lambda _, outcome, error: outcomes.append(outcome), None)
        assert response.upgrade is not None
        await response.upgrade.write(b"last words")
        await response.aclose()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert server.peers[0].received.endswith(b"last words")
        assert outcomes == [Outcome.ABANDONED]


async def test_when_the_instance_ends_the_stream_reading_comes_to_its_end(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        await peer.send(b"bye")

    async with BadServer(script) as server:
        response = await ask(wire, server)
        stream = response.upgrade
        assert stream is not None
        assert await response.read_all() == b"bye"
        assert response.at_end
        assert await stream.read() == b""
        with pytest.raises(UpstreamConnectionError):
            await stream.write(b"x")


async def test_a_reset_of_the_stream_is_an_error(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        await gate.wait()
        peer.reset()

    async with BadServer(script) as server:
        stream = (await ask(wire, server)).upgrade
        assert stream is not None
        reading = start(stream.read())
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(UpstreamConnectionError):
            await reading


async def test_a_quiet_stream_lives_longer_than_the_idle_timeout(wire: H1Wire):
    async with BadServer(echo) as server:
        stream = (await ask(wire, server, timeouts=TimeoutPolicy(idle_timeout=0.05), timeout=2.0)).upgrade
        assert stream is not None
        assert await stream.read() == b"hello"
        reading = start(stream.read())
        await asyncio.sleep(0.2)
        assert not reading.done()
        await stream.write(b"x")
        assert await reading == b"X"
        await stream.aclose()


async def test_a_stream_ends_after_its_longest_duration(wire: H1Wire):
    async with BadServer(echo) as server:
        stream = (await ask(wire, server, timeouts=TimeoutPolicy(max_stream_duration=0.1))).upgrade
        assert stream is not None
        assert await stream.read() == b"hello"
        with pytest.raises(UpstreamTimeoutError):
            await stream.read()


async def write_on(stream: Any) -> None:
    for _ in range(1000):
        await stream.write(b"x" * 65536)
    pytest.fail("64 MB were written to a peer that does not read")


async def test_a_peer_that_does_not_read_stops_the_writer_and_in_the_end_fails_it(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        await asyncio.sleep(60)

    async with BadServer(script) as server:
        stream = (await ask(wire, server, timeouts=TimeoutPolicy(idle_timeout=0.2))).upgrade
        assert stream is not None
        with pytest.raises(UpstreamTimeoutError) as caught:
            await write_on(stream)

        assert caught.value.phase == "write"


async def test_two_writers_wait_for_the_same_peer(wire: H1Wire):
    gate = asyncio.Event()
    size = 200 * 65536

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        await gate.wait()
        await peer.read_exactly(2 * size)
        await peer.send(b"all")

    async def write_all(stream: Any) -> None:
        for _ in range(200):
            await stream.write(b"x" * 65536)

    async with BadServer(script) as server:
        stream = (await ask(wire, server)).upgrade
        assert stream is not None
        writers = [start(write_all(stream)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert not any(writer.done() for writer in writers)
        gate.set()
        await asyncio.wait_for(asyncio.gather(*writers), 5)
        assert await stream.read() == b"all"
        await stream.aclose()


async def test_an_upgrade_request_with_a_stream_has_no_deadline_after_101(wire: H1Wire):
    async def body() -> AsyncIterator[bytes]:
        yield b"body"

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(SWITCH)
        while data := await peer.read_some():
            await peer.send(data.upper())

    async with BadServer(script) as server:
        context = make_context(make_instance(server.port), timeout=0.4)
        response = await wire(make_request(context, b"POST", headers=ASK, body=body()))
        await asyncio.sleep(0.5)
        assert response.upgrade is not None
        await response.upgrade.write(b"x")
        assert await response.upgrade.read() == b"X"
        await response.aclose()


async def test_a_writer_is_woken_when_the_stream_ends(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        await gate.wait()
        peer.reset()

    async with BadServer(script) as server:
        stream = (await ask(wire, server)).upgrade
        writing = start(write_on(stream))
        await asyncio.sleep(0.05)
        gate.set()
        with pytest.raises(UpstreamConnectionError):
            await writing


@pytest.mark.spec("X-23")
async def test_a_reader_that_does_not_read_stops_the_peer(wire: H1Wire):
    sent = [0]

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SWITCH)
        while True:
            await peer.send(b"x" * 65536)
            sent[0] += 65536

    async with BadServer(script) as server:
        response = await ask(wire, server)
        before = -1
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.1)
        assert sent[0] < 32 * 1024 * 1024
        assert response.upgrade is not None
        while sent[0] == before:
            assert len(await response.upgrade.read()) <= 768 * 1024
        await response.aclose()


async def test_an_upgrade_that_is_declined_is_an_ordinary_answer(wire: H1Wire):
    async with BadServer(answering()) as server:
        response = await ask(wire, server)

        assert (response.status, response.upgrade) == (200, None)
        assert await response.read() == b"ok"
        assert wire.statistics()["idle"] == 1


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([], SWITCH),
        (ASK, b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        (ASK, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n"),
        (ASK, b"HTTP/1.1 101 X\r\nUpgrade: echo\r\nConnection: upgrade\r\ncontent-length: 5\r\n\r\n"),
        (ASK, b"HTTP/1.1 101 X\r\nUpgrade: echo\r\nConnection: upgrade\r\ntransfer-encoding: chunked\r\n\r\n"),
    ],
)
async def test_101_that_was_not_asked_for_or_is_not_complete_is_refused(wire: H1Wire, headers: Any, answer: bytes):
    async with BadServer(answering(answer)) as server:
        with pytest.raises(UpstreamProtocolError):
            await ask(wire, server, headers)


async def test_closing_the_wire_ends_the_stream():
    wire = H1Wire()
    async with BadServer(echo) as server:
        stream = (await ask(wire, server)).upgrade
        assert stream is not None
        await wire.aclose()
        assert await stream.read() == b"hello"
        with pytest.raises(UpstreamConnectionError):
            await stream.read()
