"""Request bodies over the HTTP/1.1 wire: streams, lengths, Expect, back-pressure, answers that come first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import pytest

from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.core.message import Header, Response
from fastapi_mesh.exceptions import (
    ClientDisconnectedError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import OK, BadServer, Peer, answering
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, Line, drive, start, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
async def wire() -> AsyncIterator[H1Wire]:
    made = H1Wire()
    yield made
    await made.aclose()
    assert made.statistics()["open"] == 0


async def post(
    wire: H1Wire,
    server: BadServer,
    body: bytes | AsyncIterable[bytes],
    headers: Sequence[Header] = (),
    **context: Any,
) -> Response:
    made = make_context(make_instance(server.port), **context)
    return await wire(make_request(made, b"POST", headers=headers, body=body))


class Source:
    """A body that knows what was asked of it; with `gate`, each part but the first waits for it."""

    def __init__(self, *parts: bytes, gate: asyncio.Semaphore | None = None, error: Exception | None = None) -> None:
        self.parts = parts
        self.gate = gate
        self.error = error
        self.asked = 0
        self.ended = ""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for part in self.parts:
                self.asked += 1
                if self.gate is not None and self.asked > 1:
                    await self.gate.acquire()
                yield part
            if self.error is not None:
                raise self.error
            self.ended = "exhausted"
        finally:
            self.ended = self.ended or "closed"


@pytest.mark.spec("X-23")
async def test_a_stream_without_length_is_chunked_and_keeps_the_connection(wire: H1Wire):
    bodies = []

    async def script(peer: Peer) -> None:
        while True:
            bodies.append((await peer.read_request())[1])
            await peer.send(OK)

    async with BadServer(script) as server:
        for _ in range(2):
            source = Source(b"one", b"", b"two" * 1000)
            response = await post(wire, server, source)
            assert (response.status, source.ended) == (200, "exhausted")

        assert bodies == [b"one" + b"two" * 1000] * 2
        assert b"3\r\none\r\n" + b"bb8\r\ntwotwo" in server.peers[0].received
        assert len(server.peers) == 1


async def test_a_stream_of_a_stated_length_goes_out_as_it_is(wire: H1Wire):
    async with BadServer(answering()) as server:
        for _ in range(2):
            await post(wire, server, Source(b"one", b"", b"two"), [(b"Content-Length", b"6")])

        assert bytes(server.peers[0].received).endswith(b"content-length: 6\r\n\r\nonetwo")
        assert len(server.peers) == 1


@pytest.mark.parametrize(("headers", "end"), [([], b"0\r\n\r\n"), ([(b"content-length", b"0")], b"")])
async def test_a_stream_may_be_empty(wire: H1Wire, headers: list[Header], end: bytes):
    async with BadServer(answering()) as server:
        assert (await post(wire, server, Source(), headers)).status == 200
        assert server.peers[0].received.endswith(b"\r\n\r\n" + end)
        assert wire.statistics()["idle"] == 1


@pytest.mark.parametrize("parts", [(b"12345", b"6"), (b"123456",), (b"1",), ()])
async def test_a_stream_that_is_not_as_long_as_stated_is_the_callers_fault(wire: H1Wire, parts: tuple[bytes, ...]):
    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(InvalidRequestError):
            await post(wire, server, Source(*parts), [(b"content-length", b"5")])
        await until(lambda: bool(server.peers))
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert len(bytes(server.peers[0].received).partition(b"\r\n\r\n")[2]) <= 5


async def test_a_large_body_in_memory_arrives(wire: H1Wire):
    body = bytes(range(256)) * 20_000
    bodies = []

    async def script(peer: Peer) -> None:
        while True:
            bodies.append((await peer.read_request())[1])
            await peer.send(OK)

    async with BadServer(script) as server:
        for _ in range(2):
            assert (await post(wire, server, body)).status == 200

        assert bodies == [body] * 2
        assert len(server.peers) == 1


class OddError(Exception):
    """What the wire has never heard of."""


@pytest.mark.parametrize(
    "error", [OddError("x"), ClientDisconnectedError("gone"), UpstreamConnectionError("of another call"), OSError("x")]
)
async def test_what_the_body_raises_reaches_the_caller_unchanged_and_closes_the_connection(
    wire: H1Wire, error: Exception
):
    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(type(error)) as caught:
            await post(wire, server, Source(b"part", error=error))
        await until(lambda: bool(server.peers))
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

    assert caught.value is error
    if isinstance(error, UpstreamConnectionError):
        assert (error.service, error.request_sent) == (None, False)


async def test_a_body_that_is_cancelled_by_itself_does_not_leave_the_caller_waiting(wire: H1Wire):
    async def body() -> AsyncIterator[bytes]:
        yield b"part"
        raise asyncio.CancelledError

    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(UpstreamConnectionError):
            await post(wire, server, body())


async def test_a_body_that_cannot_be_iterated_does_not_leave_the_caller_waiting(wire: H1Wire):
    body: Any = object()
    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(AttributeError):
            await post(wire, server, body)


async def test_a_cancelled_call_ends_its_body_and_the_connection(wire: H1Wire):
    source = Source(b"one", b"two", gate=asyncio.Semaphore(0))
    async with BadServer(Peer.wait_closed_by_client) as server:
        call = start(post(wire, server, source))
        await until(lambda: source.asked == 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: source.ended == "closed")
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_the_deadline_of_the_call_ends_an_upload_with_its_body_and_connection(wire: H1Wire):
    source = Source(b"one", b"two", gate=asyncio.Semaphore(0))
    async with BadServer(Peer.wait_closed_by_client) as server:
        with pytest.raises(UpstreamTimeoutError):
            await post(wire, server, source, timeout=5.0, call_timeout=0.3)

        assert source.ended == "closed"
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"6")]])
async def test_the_time_of_an_attempt_begins_when_its_stream_was_sent(wire: H1Wire, headers: list[Header]):
    """A client that sends slowly must not look like an instance that answers slowly."""

    async def slow() -> AsyncIterator[bytes]:
        for part in (b"one", b"two"):
            await asyncio.sleep(0.2)
            yield part

    async def silent(peer: Peer) -> None:
        await peer.read_request()
        await peer.wait_closed_by_client()

    async with BadServer(answering()) as quick, BadServer(silent) as server:
        assert (await post(wire, quick, slow(), headers, timeout=0.3)).status == 200
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError) as caught:
            await post(wire, server, slow(), headers, timeout=0.3)

    assert caught.value.phase == "headers"
    assert 0.65 < time.monotonic() - started < 20


async def test_an_upload_on_a_stale_connection_is_not_repeated(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_head()

    async with BadServer(script, answering()) as server:
        await post(wire, server, b"x")
        source = Source(b"one", b"two", gate=asyncio.Semaphore(0))
        with pytest.raises(UpstreamConnectionError) as caught:
            await post(wire, server, source)

        assert caught.value.request_sent
        assert source.ended == "closed"


# Answers that come before the body is complete.


@pytest.mark.parametrize("how", ["head first", "all at once"])
async def test_an_early_answer_stops_the_upload_and_costs_the_connection(wire: H1Wire, how: str):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\n")
        if how == "head first":
            await gate.wait()
        await peer.send(b"long")
        await peer.wait_closed_by_client()

    source = Source(b"one", b"two", gate=asyncio.Semaphore(0))
    async with BadServer(script) as server:
        response = await post(wire, server, source)
        assert (response.status, source.asked, source.ended) == (413, 2, "closed")
        gate.set()
        assert await response.read_all() == b"long"
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert wire.statistics()["idle"] == 0
        assert b"two" not in server.peers[0].received


async def test_an_early_answer_stops_the_upload_of_a_body_in_memory(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await post(wire, server, b"x" * 50_000_000)

        assert (response.status, await response.read()) == (401, b"no")
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        assert len(server.peers[0].received) < 50_000_000


async def test_an_answer_to_a_complete_body_is_not_early_although_the_stream_has_not_said_its_end(wire: H1Wire):
    async with BadServer(answering()) as server:
        source = Source(b"12345", b"", gate=asyncio.Semaphore(0))
        response = await post(wire, server, source, [(b"content-length", b"5")])

        assert (response.status, source.ended) == (200, "closed")
        assert wire.statistics()["idle"] == 1
        await post(wire, server, b"x")
        assert len(server.peers) == 1


async def test_an_early_answer_reset_in_its_body_is_an_error_of_the_body(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nlo")
        await asyncio.sleep(0.05)
        peer.reset()

    async with BadServer(script) as server:
        response = await post(wire, server, Source(b"x", b"y", gate=asyncio.Semaphore(0)))
        assert response.status == 413
        with pytest.raises(UpstreamConnectionError):
            await response.read_all()


# Expect: 100-continue.

EXPECT = [(b"Expect", b"100-continue")]


async def test_the_body_waits_for_100_continue(wire: H1Wire):
    source = Source(b"body")

    async def script(peer: Peer) -> None:
        await peer.read_head()
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.asked == 0
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.asked == 0
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await peer.read_until(b"0\r\n\r\n") == b"4\r\nbody\r\n0\r\n\r\n"
        await peer.send(OK)
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await post(wire, server, source, EXPECT)

        assert (response.status, source.ended) == (200, "exhausted")
        assert b"Expect: 100-continue\r\n" in server.peers[0].heads[0]
        assert wire.statistics()["idle"] == 1


def test_a_100_that_comes_before_anybody_waits_for_it_is_not_lost():
    """uvloop may deliver it before the task that sends the body has begun; each one lost costs a second."""
    line = Line()
    exchange = line.ask(b"POST")

    line.connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")

    drive(exchange.wait_continue(1.0))  # fails if it has to wait


async def test_a_final_answer_instead_of_100_means_the_body_is_never_read(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_closed_by_client()

    source = Source(b"body")
    async with BadServer(script) as server:
        response = await post(wire, server, source, EXPECT)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert (response.status, source.asked) == (417, 0)
        assert server.peers[0].received == server.peers[0].heads[0]
        assert wire.statistics()["idle"] == 0


async def test_without_100_the_body_is_sent_after_a_second(wire: H1Wire):
    async with BadServer(answering()) as server:
        started = time.monotonic()
        response = await post(wire, server, Source(b"body"), EXPECT)

        assert response.status == 200
        assert 0.9 < time.monotonic() - started < 20


async def test_100_that_nobody_waits_for_is_passed_over(wire: H1Wire):
    async with BadServer(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as server:
        assert (await post(wire, server, Source(b"body"))).status == 200
        assert (await post(wire, server, b"body", EXPECT)).status == 200
        assert len(server.peers) == 1


# Back-pressure.


@pytest.mark.spec("X-23")
async def test_an_instance_that_does_not_read_stops_the_body(wire: H1Wire):
    part = b"x" * 65536
    produced = [0]
    gate = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            produced[0] += len(part)
            yield part

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await gate.wait()
        received = 0
        while received < 1000 * len(part):
            received += len(await peer.read_some())
        await peer.send(OK)

    async with BadServer(script) as server:
        call = start(post(wire, server, body(), [(b"content-length", b"%d" % (1000 * len(part)))], timeout=30))
        before = -1
        while before != produced[0]:
            before = produced[0]
            await asyncio.sleep(0.1)
        connection = next(iter(next(iter(wire._pools.values()))._all))
        assert connection.transport.get_write_buffer_size() <= 256 * 1024
        assert produced[0] < 32 * 1024 * 1024  # the rest is in the kernel's buffers

        gate.set()
        assert (await call).status == 200
        assert produced[0] == 1000 * len(part)


@pytest.mark.parametrize("in_memory", [True, False])
async def test_an_instance_that_takes_no_more_for_the_idle_timeout_is_a_write_timeout(wire: H1Wire, in_memory: bool):
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await asyncio.sleep(60)

    async with BadServer(script) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await post(
                wire,
                server,
                b"x" * 100_000_000 if in_memory else body(),
                timeouts=TimeoutPolicy(idle_timeout=0.2),
                timeout=None,
            )

    assert (caught.value.phase, caught.value.request_sent, caught.value.service) == ("write", True, "users")


async def test_an_instance_that_dies_during_the_upload_ends_it(wire: H1Wire):
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.read_some()
        peer.reset()

    async with BadServer(script) as server:
        with pytest.raises(UpstreamConnectionError) as caught:
            await post(wire, server, body())

    assert caught.value.request_sent


async def test_up_and_down_at_the_same_time_do_not_block_each_other(wire: H1Wire):
    """The answer's head comes while the instance still reads; then the body is complete before the answer is."""
    size = 20 * 65536

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.read_exactly(size)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(20):
            await peer.send(b"y" * 65536)
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await post(wire, server, b"x" * size)
        assert await response.read_all() == b"y" * size
        assert wire.statistics()["idle"] == 1
