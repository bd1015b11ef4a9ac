"""The body of an answer over the HTTP/1.1 wire: waiting, holding, back-pressure, duration."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.core.events import Event, TrailersDropped
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import BadServer, Peer, answering
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, start, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def wire(events: list[Event]) -> AsyncIterator[H1Wire]:
    made = H1Wire(observer=events.append)
    yield made
    await made.aclose()
    assert made.statistics()["open"] == 0


async def get(wire: H1Wire, server: BadServer, **context: Any) -> Response:
    return await wire(make_request(make_context(make_instance(server.port), **context)))


HEAD_4 = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Steps:
    """A script that sends one part after the other, each when the test says `step()`; then it waits or closes."""

    def __init__(self, *parts: bytes, close: bool = False) -> None:
        self.parts = parts
        self.close = close
        self.gate = asyncio.Semaphore(0)
        self.started = asyncio.Event()

    def step(self) -> None:
        self.gate.release()

    async def __call__(self, peer: Peer) -> None:
        await peer.read_head()
        self.started.set()
        for part in self.parts:
            await self.gate.acquire()
            await peer.send(part)
        if not self.close:
            await peer.wait_closed_by_client()


async def test_the_head_is_delivered_before_the_body_is_here(wire: H1Wire):
    script = Steps(HEAD_4, b"ab", b"cd")
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server)
        assert (response.status, response.at_end) == (200, False)
        script.step()
        assert await response.read() == b"ab"
        script.step()
        assert await response.read() == b"cd"
        assert response.at_end


@pytest.mark.spec("X-23")
async def test_events_of_a_stream_arrive_one_by_one(wire: H1Wire):
    parts = [b"data: %d\n\n" % number for number in range(5)]
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    script = Steps(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server)
        for part in parts:
            script.step()
            assert await response.read() == part
        script.step()
        assert await response.read() == b""
        assert response.at_end


async def test_silence_in_the_body_ends_it_after_the_idle_timeout(wire: H1Wire):
    script = Steps(HEAD_4, b"ab")
    async with BadServer(script) as server:
        script.step()
        script.step()
        response = await get(wire, server, timeouts=TimeoutPolicy(idle_timeout=0.1))
        assert await response.read() == b"ab"
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError) as caught:
            await response.read()

        assert caught.value.phase == "read"
        assert 0.05 < time.monotonic() - started < 20
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_the_idle_timeout_is_for_each_pause_and_not_for_the_time_between_reads(wire: H1Wire):
    script = Steps(HEAD_4, b"a", b"b", b"c", b"d")
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server, timeouts=TimeoutPolicy(idle_timeout=0.5))
        for part in (b"a", b"b"):
            reading = start(response.read())
            await asyncio.sleep(0.3)
            script.step()
            assert await reading == part
        script.step()
        await asyncio.sleep(0.6)
        assert await response.read() == b"c"
        script.step()
        assert await response.read() == b"d"


async def test_a_second_reader_at_the_same_time_is_told_so(wire: H1Wire):
    script = Steps(HEAD_4, b"abcd")
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server)
        source: Any = response._source
        reading = start(response.read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await source.read()
        script.step()
        assert await reading == b"abcd"


async def test_a_stream_ends_after_its_longest_duration_although_it_never_pauses(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.01)

    async with BadServer(script) as server:
        response = await get(wire, server, timeouts=TimeoutPolicy(max_stream_duration=0.2))
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError):
            await response.read_all()

        assert 0.1 < time.monotonic() - started < 20
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_a_stream_that_nobody_reads_ends_after_its_longest_duration_too(wire: H1Wire):
    script = Steps(HEAD_4)
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server, timeouts=TimeoutPolicy(max_stream_duration=0.05))
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        with pytest.raises(UpstreamTimeoutError):
            await response.read()


async def test_an_answer_that_is_complete_has_no_duration_to_exceed(wire: H1Wire):
    async with BadServer(answering(HEAD_4 + b"abcd")) as server:
        response = await get(wire, server, timeouts=TimeoutPolicy(max_stream_duration=0.01))
        await asyncio.sleep(0.05)

        assert await response.read() == b"abcd"
        assert wire.statistics()["idle"] == 1


@pytest.mark.spec("X-23")
async def test_a_reader_that_does_not_read_stops_the_instance(wire: H1Wire):
    size = 64 * 1024 * 1024
    sent = [0]

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent[0] < size:
            await peer.send(b"x" * 65536)
            sent[0] += 65536
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await get(wire, server)
        before = -1
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.1)
        exchange: Any = response._source
        held = sum(map(len, exchange.parts))
        assert 256 * 1024 < held <= 256 * 1024 + 512 * 1024
        assert sent[0] < 32 * 1024 * 1024  # the rest is in the kernel's buffers

        received = 0
        while part := await response.read():
            received += len(part)
            assert len(part) <= 256 * 1024 + 512 * 1024
        assert received == size


async def test_trailers_are_dropped_and_told(wire: H1Wire, events: list[Event]):
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"
    async with BadServer(answering(answer)) as server:
        response = await get(wire, server)

        assert await response.read_all() == b"ok"
        assert response.headers == [(b"transfer-encoding", b"chunked")]
    assert events == [TrailersDropped("users")]
    assert wire.statistics()["trailers_dropped"] == 1


# Holding short answers.


@pytest.fixture
def long_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is held is held for longer than any test waits, however busy the machine is."""
    monkeypatch.setattr("fastapi_mesh.wire.h1.body.HOLD_TIME", 60.0)


@pytest.mark.usefixtures("long_hold")
async def test_a_short_answer_that_is_held_is_delivered_when_it_is_whole(wire: H1Wire):
    script = Steps(HEAD_4, b"ab", b"cd")
    async with BadServer(script) as server:
        call = start(get(wire, server, hold=True))
        script.step()
        script.step()
        await asyncio.sleep(0.02)
        assert not call.done()
        script.step()
        response = await call

        assert await response.read() == b"abcd"
        assert response.at_end


async def test_a_held_answer_is_delivered_50_ms_after_its_head_at_the_latest(wire: H1Wire):
    script = Steps(HEAD_4, b"ab", b"cd")
    async with BadServer(script) as server:
        script.step()
        script.step()
        started = time.monotonic()
        response = await get(wire, server, hold=True)

        assert 0.04 < time.monotonic() - started < 20
        assert await response.read() == b"ab"
        script.step()
        assert await response.read() == b"cd"


@pytest.mark.usefixtures("long_hold")
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_death_while_the_answer_is_held_is_an_error_of_the_call(wire: H1Wire, how: str):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send_cut(HEAD_4 + b"ab", (len(HEAD_4),))
        getattr(peer, how)()

    async with BadServer(script) as server:
        with pytest.raises(UpstreamConnectionError) as caught:
            await get(wire, server, hold=True)

    assert (caught.value.request_sent, caught.value.response_started) == (True, True)


async def test_a_death_after_the_hold_is_an_error_of_the_body(wire: H1Wire):
    script = Steps(HEAD_4 + b"ab", b"", close=True)
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server, hold=True)
        assert await response.read() == b"ab"
        script.step()
        with pytest.raises(UpstreamConnectionError):
            await response.read()


@pytest.mark.usefixtures("long_hold")
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 65537\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_long_answers_and_those_without_length_are_not_held(wire: H1Wire, head: bytes):
    script = Steps(head)
    async with BadServer(script) as server:
        script.step()
        response = await get(wire, server, hold=True)

        assert not response.at_end
        await response.aclose()


@pytest.mark.usefixtures("long_hold")
async def test_the_deadline_still_counts_while_an_answer_is_held(wire: H1Wire):
    script = Steps(HEAD_4)
    async with BadServer(script) as server:
        script.step()
        with pytest.raises(UpstreamTimeoutError):
            await get(wire, server, hold=True, timeout=0.02)


async def test_a_caller_is_woken_once_for_an_answer_in_one_segment(wire: H1Wire):
    async with BadServer(answering(HEAD_4 + b"abcd")) as server:
        await get(wire, server)
        for hold in (False, True):
            context = make_context(make_instance(server.port), hold=hold)
            turns = 0
            call = wire(make_request(context)).__await__()
            waits = []
            try:
                while True:
                    waiter = next(call)
                    waits.append(waiter)
                    waiter._asyncio_future_blocking = False
                    await until(waiter.done)
                    turns += 1
            except StopIteration as stop:
                response = stop.value

            assert turns == 1
            assert await response.read() == b"abcd"
            assert response.at_end
