"""The pool of connections to one instance: its limit and queue, expiry, and what cancelled callers leave behind."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import OK, BadServer, Peer, answering
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, start, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
async def limited() -> AsyncIterator[H1Wire]:
    """A wire with one connection to each instance."""
    wire = H1Wire(max_connections=1)
    yield wire
    await wire.aclose()
    assert wire.statistics()["open"] == wire.statistics()["waiting"] == 0


async def get(wire: H1Wire, server: BadServer, target: bytes = b"/", timeout: float | None = 5.0) -> Response:
    return await wire(make_request(make_context(make_instance(server.port), timeout=timeout), target=target))


class Gated:
    """A script that answers only when the test says so; `order` are the targets in the order they came."""

    def __init__(self) -> None:
        self.order: list[bytes] = []
        self.gate = asyncio.Semaphore(0)
        self.answer = OK

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.read_head()
            self.order.append(head.split()[1])
            await self.gate.acquire()
            await peer.send(self.answer)


async def test_callers_beyond_the_limit_wait_in_order_and_share_the_connection(limited: H1Wire):
    script = Gated()
    async with BadServer(script) as server:
        calls = []
        for number in range(5):
            calls.append(start(get(limited, server, b"/%d" % number)))
            await asyncio.sleep(0)
        await until(lambda: script.order == [b"/0"])
        assert (limited.statistics()["open"], limited.statistics()["waiting"]) == (1, 4)
        for _ in calls:
            script.gate.release()
        await asyncio.gather(*calls)

        assert script.order == [b"/0", b"/1", b"/2", b"/3", b"/4"]
        assert len(server.peers) == 1
    assert limited.statistics()["reused"] == 4


async def test_the_limit_is_for_each_instance_by_itself(limited: H1Wire):
    script = Gated()
    async with BadServer(script) as one, BadServer(script) as other:
        calls = [start(get(limited, one)), start(get(limited, other))]
        await until(lambda: len(script.order) == 2)
        script.gate.release()
        script.gate.release()
        await asyncio.gather(*calls)


async def test_when_a_connection_dies_the_next_in_the_queue_makes_one(limited: H1Wire):
    script = Gated()
    script.answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    async with BadServer(script) as server:
        calls = [start(get(limited, server)) for _ in range(4)]
        for _ in calls:
            script.gate.release()
        responses = await asyncio.gather(*calls)

        assert [await response.read() for response in responses] == [b"ok"] * 4
        assert len(server.peers) == 4
    assert limited.statistics()["reused"] == 0


async def test_waiting_in_the_queue_ends_at_the_deadline_with_nothing_sent(limited: H1Wire):
    script = Gated()
    async with BadServer(script) as server:
        first = start(get(limited, server))
        await until(lambda: bool(script.order))
        with pytest.raises(UpstreamTimeoutError) as caught:
            await get(limited, server, timeout=0.05)
        assert (caught.value.phase, caught.value.request_sent) == ("connect", False)
        assert limited.statistics()["waiting"] == 0
        script.gate.release()
        assert (await first).status == 200


async def test_a_cancelled_caller_leaves_the_queue(limited: H1Wire):
    script = Gated()
    async with BadServer(script) as server:
        first = start(get(limited, server, b"/0"))
        await until(lambda: bool(script.order))
        gone, last = start(get(limited, server, b"/1")), start(get(limited, server, b"/2"))
        await until(lambda: limited.statistics()["waiting"] == 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert limited.statistics()["waiting"] == 1
        script.gate.release()
        script.gate.release()
        await asyncio.gather(first, last)

        assert script.order == [b"/0", b"/2"]


async def test_a_caller_cancelled_at_the_moment_of_its_turn_passes_it_on(limited: H1Wire):
    """Both when the turn is a connection and when it is the right to make one."""
    for answer in (OK, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"):
        script = Gated()
        script.answer = answer
        async with BadServer(script) as server:
            first = start(get(limited, server, b"/0"))
            await until(lambda script=script: bool(script.order))
            pool = next(pool for pool in limited._pools.values() if pool._port == server.port)
            gone, last = start(get(limited, server, b"/1")), start(get(limited, server, b"/2"))
            await until(lambda pool=pool: pool.waiting == 2)
            turn = next(iter(pool._queue))
            script.gate.release()
            script.gate.release()
            await until(turn.done)
            assert gone.cancel()
            await asyncio.gather(first, last)
            with pytest.raises(asyncio.CancelledError):
                await gone

            assert script.order == [b"/0", b"/2"]
            assert pool.open <= 1


async def test_a_failed_connect_passes_the_turn_on(limited: H1Wire):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        instance = make_instance(unused.getsockname()[1])
        calls = [start(limited(make_request(make_context(instance)))) for _ in range(3)]
        done, _ = await asyncio.wait(calls, timeout=5)

    assert len(done) == 3
    assert all(isinstance(call.exception(), UpstreamConnectionError) for call in done)
    assert limited.statistics()["open"] == 0


async def test_closing_the_wire_fails_those_who_wait_in_the_queue():
    wire = H1Wire(max_connections=1)
    script = Gated()
    async with BadServer(script) as server:
        calls = [start(get(wire, server)) for _ in range(3)]
        await until(lambda: wire.statistics()["waiting"] == 2)
        await wire.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(result, UpstreamConnectionError) for result in results)


async def test_many_cancelled_and_failed_callers_leave_the_count_right(limited: H1Wire):
    answers = iter([OK, b"garbage", OK, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"] * 100)

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_head()
            await peer.send(next(answers))

    async def call(server: BadServer) -> None:
        response = await get(limited, server)
        await response.read()
        await response.aclose()

    async with BadServer(script) as server:
        calls = [start(call(server)) for _ in range(60)]
        for number, each in enumerate(calls):
            if number % 3 == 0:
                await asyncio.sleep(0)
                each.cancel()
        done, waiting = await asyncio.wait(calls, timeout=5)
        assert not waiting
        kinds = {type(each.exception()) for each in done if not each.cancelled()}
        assert kinds >= {type(None)}
        await until(lambda: limited.statistics()["in_use"] == 0)
        assert limited.statistics()["waiting"] == 0


# Expiry.


async def expiring(wire: H1Wire, server: BadServer, condition: Callable[[], bool]) -> float:
    """Seconds until `condition` holds after one request."""
    await (await get(wire, server)).read()
    assert wire.statistics()["idle"] == 1
    started = time.monotonic()
    while not condition():
        await asyncio.sleep(0.005)
        assert time.monotonic() - started < 5
    return time.monotonic() - started


async def test_an_idle_connection_is_closed_after_its_time():
    wire = H1Wire(keepalive_expiry=0.1)
    async with BadServer(answering()) as server:
        took = await expiring(wire, server, lambda: wire.statistics()["open"] == 0)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert 0.09 < took < 3.0
        assert wire._pools == {}
        assert (await get(wire, server)).status == 200
        assert len(server.peers) == 2
    await wire.aclose()


async def test_a_connection_past_its_time_is_not_used_even_if_it_was_not_swept_yet():
    wire = H1Wire(keepalive_expiry=60.0)
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=5\r\ncontent-length: 2\r\n\r\nok"
    async with BadServer(answering(answer)) as server:
        await get(wire, server)
        connection = next(iter(next(iter(wire._pools.values()))._idle))
        assert connection.expires - time.monotonic() == pytest.approx(0.8, abs=0.1)
        connection.expires = time.monotonic() - 0.01
        await get(wire, server, timeout=5)

        assert len(server.peers) == 2
    await wire.aclose()


async def test_a_longer_keep_alive_of_the_instance_does_not_extend_ours():
    wire = H1Wire()
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=600\r\ncontent-length: 2\r\n\r\nok"
    async with BadServer(answering(answer)) as server:
        await get(wire, server)
        connection = next(iter(next(iter(wire._pools.values()))._idle))

        assert connection.expires - time.monotonic() == pytest.approx(4.0, abs=0.1)
    await wire.aclose()


async def test_the_surplus_of_a_burst_ages_out_while_one_connection_stays_in_use():
    wire = H1Wire(keepalive_expiry=0.2)
    async with BadServer(answering()) as server:
        await asyncio.gather(*(get(wire, server) for _ in range(10)))
        assert wire.statistics()["open"] > 1
        ended = time.monotonic() + 0.5
        while time.monotonic() < ended:
            await get(wire, server)
            await asyncio.sleep(0.01)

        assert wire.statistics()["open"] == 1
    await wire.aclose()
