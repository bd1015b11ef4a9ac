"""The HTTP/1.1 wire against an upstream that behaves, and one that doesn't: reuse, failures, times, closing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import (
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.h1 import H1Wire
from fastapi_mesh.wire.h1.body import Exchange
from fastapi_mesh.wire.h1.connection import H1Connection
from tests.support.badserver import OK, BadServer, Peer, answering, answering_once
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, start, until

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


async def get(
    wire: H1Wire, server: BadServer, *, method: bytes = b"GET", body: Any = b"", headers: Any = (), **context: Any
) -> Response:
    made = make_context(make_instance(server.port), **context)
    return await wire(make_request(made, method, headers=headers, body=body))


async def test_requests_one_after_the_other_share_a_connection(wire: H1Wire):
    async with BadServer(answering()) as server:
        for _ in range(5):
            response = await get(wire, server)
            assert (response.status, await response.read()) == (200, b"ok")
            assert response.at_end
            await response.aclose()

        assert len(server.peers) == 1
        statistics = wire.statistics()
    assert statistics["created"] == 1
    assert statistics["reused"] == 4
    assert (statistics["open"], statistics["idle"], statistics["in_use"]) == (1, 1, 0)


async def test_the_connection_is_free_as_soon_as_the_answer_is_here_although_nobody_has_read_it(wire: H1Wire):
    async with BadServer(answering()) as server:
        first = await get(wire, server)
        second = await get(wire, server)

        assert len(server.peers) == 1
        assert [await first.read(), await second.read()] == [b"ok", b"ok"]


async def test_requests_at_the_same_time_have_connections_of_their_own_and_the_last_used_is_taken_first(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_head()
            await gate.wait()
            await peer.send(OK)

    async with BadServer(script) as server:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(get(wire, server)) for _ in range(3)]
            await until(lambda: len(server.peers) == 3)
            assert wire.statistics()["in_use"] == 3
            gate.set()
        assert [await call.result().read() for call in calls] == [b"ok"] * 3
        for _ in range(4):
            await get(wire, server)

        heads = sorted(len(peer.heads) for peer in server.peers)
        assert heads == [1, 1, 5]


@pytest.mark.spec("X-22")
async def test_request_and_answer_pass_byte_for_byte(wire: H1Wire):
    answer = (
        b"HTTP/1.1 201 Made\r\nSet-Cookie: a=1\r\nX-B: \xe4\r\nset-cookie: b=2\r\ncontent-length: 3\r\n\r\n\0\xff\n"
    )

    async with BadServer(answering(answer)) as server:
        instance = make_instance(server.port, base_path=b"/base")
        headers = [(b"Host", b"shop"), (b"X-A", b"1"), (b"cookie", b"a"), (b"x-a", b"2"), (b"connection", b"x")]
        request = make_request(make_context(instance), b"PUT", b"/a%2F/?q=%20", headers=headers, body=b"\r\n\0")
        response = await wire(request)

        assert bytes(server.peers[0].received) == (
            b"PUT /base/a%2F/?q=%20 HTTP/1.1\r\n"
            b"Host: shop\r\nX-A: 1\r\ncookie: a\r\nx-a: 2\r\ncontent-length: 3\r\n\r\n\r\n\0"
        )
        assert request.headers == headers
    assert response.status == 201
    assert response.headers == [
        (b"Set-Cookie", b"a=1"),
        (b"X-B", b"\xe4"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"3"),
    ]
    assert await response.read() == b"\0\xff\n"


async def test_head_and_a_small_body_go_out_in_one_segment(wire: H1Wire):
    async def script(peer: Peer) -> None:
        first = await peer.read_some()
        assert first.endswith(b"\r\n\r\n" + b"x" * 1000)
        await peer.send(OK)

    async with BadServer(script) as server:
        await get(wire, server, method=b"POST", body=b"x" * 1000)


async def test_tcp_nodelay_is_set(wire: H1Wire):
    async with BadServer(answering()) as server:
        await get(wire, server)

        connection = next(iter(next(iter(wire._pools.values()))._all))
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_closing_a_response_early_closes_the_connection(wire: H1Wire):
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart")
        await peer.wait_closed_by_client()
        closed.set()

    async with BadServer(script) as server:
        response = await get(wire, server)
        outcomes: list[Outcome] = []
        response.on_close(lambda _, outcome, error: outcomes.append(outcome), None)
        await response.aclose()
        await response.aclose()
        await asyncio.wait_for(closed.wait(), 20)

        assert outcomes == [Outcome.ABANDONED]
        assert not response.at_end
        with pytest.raises(UpstreamConnectionError):
            await response.read()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_instance_will_close_is_closed_and_not_used_again(wire: H1Wire, answer: bytes):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        for _ in range(2):
            response = await get(wire, server)
            assert await response.read() == b"ok"
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

        assert len(server.peers) == 2
        assert wire.statistics()["idle"] == 0


async def test_a_body_without_length_ends_with_the_connection(wire: H1Wire):
    async with BadServer(answering_once(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)) as server:
        response = await get(wire, server)

        assert await response.read_all() == b"x" * 100_000
        assert response.at_end


async def test_an_answer_in_one_segment_is_whole_at_the_first_read(wire: H1Wire):
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    async with BadServer(answering(answer)) as server:
        response = await get(wire, server)

        assert not response.at_end
        assert await response.read() == b"abc"
        assert response.at_end
        assert await response.read() == b""


# Failures.


async def test_a_refused_connection_says_so_and_that_nothing_was_sent(wire: H1Wire):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        context = make_context(make_instance(unused.getsockname()[1]))
        with pytest.raises(UpstreamConnectionError) as caught:
            await wire(make_request(context, b"POST", body=b"x"))

    assert not caught.value.request_sent
    assert caught.value.service == "users"
    assert str(errno.ECONNREFUSED) in str(caught.value)
    assert wire.statistics()["open"] == 0


@pytest.mark.parametrize("address", ["no-such-host.invalid", "a..b", "x" * 300])
async def test_a_name_that_does_not_resolve_is_a_connection_error(wire: H1Wire, address: str):
    context = make_context(make_instance(80, address=address))

    with pytest.raises(UpstreamConnectionError) as caught:
        await wire(make_request(context))

    assert not caught.value.request_sent
    assert wire.statistics()["open"] == 0


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_new_connection_that_dies_without_an_answer_is_an_error_and_not_repeated(
    wire: H1Wire, how: str, method: bytes
):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        getattr(peer, how)()

    async with BadServer(script) as server:
        with pytest.raises(UpstreamConnectionError) as caught:
            await get(wire, server, method=method)

        assert len(server.peers) == 1
    assert (caught.value.request_sent, caught.value.response_started) == (True, False)
    assert not isinstance(caught.value, UpstreamProtocolError)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
async def test_a_body_that_ends_too_early_fails_after_what_there_was(wire: H1Wire, answer: bytes, how: str):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)
        await gate.wait()
        getattr(peer, how)()

    async with BadServer(script) as server:
        response = await get(wire, server)
        outcomes: list[tuple[Outcome, BaseException | None]] = []
        response.on_close(lambda _, outcome, error: outcomes.append((outcome, error)), None)
        assert await response.read() == b"half"
        gate.set()
        with pytest.raises(UpstreamConnectionError) as caught:
            await response.read()

        assert (caught.value.request_sent, caught.value.response_started) == (True, True)
        assert outcomes == [(Outcome.FAILED, caught.value)]
        assert not response.at_end


async def test_garbage_instead_of_an_answer_is_a_protocol_error(wire: H1Wire):
    async with BadServer(answering(b"SSH-2.0-OpenSSH_9.9\r\n")) as server:
        with pytest.raises(UpstreamProtocolError) as caught:
            await get(wire, server)

        assert (caught.value.request_sent, caught.value.response_started) == (True, False)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_garbage_between_the_chunks_fails_the_body(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        await gate.wait()
        await peer.send(b"zz\r\n")
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await get(wire, server)
        assert await response.read() == b"ab"
        gate.set()
        with pytest.raises(UpstreamProtocolError):
            await response.read()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_of_two_answers_to_one_request_the_second_is_never_taken_for_the_next_one(wire: H1Wire):
    async with BadServer(answering(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"), answering()) as server:
        for _ in range(2):
            response = await get(wire, server)
            assert await response.read() == b"ok"

        assert len(server.peers) == 2


async def test_an_answer_before_the_request_costs_the_idle_connection(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await gate.wait()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await peer.wait_closed_by_client()

    async with BadServer(script, answering()) as server:
        await get(wire, server)
        gate.set()
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        response = await get(wire, server)

        assert await response.read() == b"ok"
        assert wire.statistics()["open"] == 1


async def test_random_garbage_over_a_socket_ends_each_call_with_an_error_of_ours_or_an_answer(wire: H1Wire):
    chance = random.Random(11)
    words = [
        b"HTTP/1.1 200 OK\r\n",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
    ]

    async def script(peer: Peer) -> None:
        await peer.read_head()
        for _ in range(chance.randrange(1, 6)):
            await peer.send(chance.choice([*words, chance.randbytes(20), b"0\r\n\r\n", b"abc"]))
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            peer.reset()

    async with BadServer(script) as server:
        for _ in range(150):
            with contextlib.suppress(UpstreamConnectionError):
                response = await get(wire, server, hold=chance.random() < 0.5)
                await response.read_all()
                await response.aclose()
        await until(lambda: wire.statistics()["in_use"] == 0)


# Connections that died while idle.


async def stale_pair(wire: H1Wire, server: BadServer) -> None:
    """Leave one idle connection behind."""
    await (await get(wire, server)).read()
    assert wire.statistics()["idle"] == 1


def dying_on_the_second_request(how: str) -> Any:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        getattr(peer, how)()

    return script


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_stale_connection_is_replaced_for_an_idempotent_request_without_body(wire: H1Wire, how: str):
    async with BadServer(dying_on_the_second_request(how), answering()) as server:
        await stale_pair(wire, server)
        response = await get(wire, server, method=b"DELETE")

        assert response.status == 200
        assert len(server.peers) == 2
    assert wire.statistics()["stale_retries"] == 1


async def test_a_request_that_kills_its_connection_is_repeated_once_and_not_on_every_idle_one(wire: H1Wire):
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await gate.wait()
        await peer.send(OK)
        await peer.read_head()
        peer.reset()

    async def deadly(peer: Peer) -> None:
        await peer.read_head()
        peer.reset()

    async with BadServer(script, script, script, deadly) as server:
        calls = [start(get(wire, server)) for _ in range(3)]
        await until(lambda: len(server.peers) == 3)
        gate.set()
        await asyncio.gather(*calls)
        assert wire.statistics()["idle"] == 3
        with pytest.raises(UpstreamConnectionError):
            await get(wire, server)

        assert [len(peer.heads) for peer in server.peers].count(2) == 1
        assert len(server.peers) == 4
    assert wire.statistics()["stale_retries"] == 1


async def test_with_a_limit_a_stale_connection_is_replaced_too():
    wire = H1Wire(max_connections=1)
    async with BadServer(dying_on_the_second_request("reset"), answering()) as server:
        await stale_pair(wire, server)

        assert (await get(wire, server)).status == 200
    await wire.aclose()


@pytest.mark.parametrize(("method", "body"), [(b"POST", b""), (b"PATCH", b""), (b"PUT", b"x"), (b"GET", b"x")])
async def test_a_stale_connection_is_an_error_for_any_other_request(wire: H1Wire, method: bytes, body: bytes):
    async with BadServer(dying_on_the_second_request("close"), answering()) as server:
        await stale_pair(wire, server)
        with pytest.raises(UpstreamConnectionError) as caught:
            await get(wire, server, method=method, body=body)

        assert (caught.value.request_sent, caught.value.response_started) == (True, False)
        assert len(server.peers) == 1
    assert wire.statistics()["stale_retries"] == 0


async def test_a_connection_that_dies_after_the_first_byte_of_the_answer_is_not_stale(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        await peer.send(b"H")

    async with BadServer(script, answering()) as server:
        await stale_pair(wire, server)
        with pytest.raises(UpstreamConnectionError):
            await get(wire, server)

        assert len(server.peers) == 1


async def test_a_connection_closed_while_idle_is_not_used_at_all(wire: H1Wire):
    async with BadServer(answering_once(OK), answering()) as server:
        await stale_pair(wire, server)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        await until(lambda: wire.statistics()["open"] == 0)
        response = await get(wire, server, method=b"POST", body=b"x")

        assert response.status == 200
    assert wire.statistics()["stale_retries"] == 0


# Time.


async def test_a_connection_that_cannot_be_made_in_time():
    wire = H1Wire()
    with socket.socket() as full, socket.socket() as filler, socket.socket() as another:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (filler, another):  # the queue of a backlog of 0 takes one or two; then SYNs are dropped
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        instance = make_instance(full.getsockname()[1])
        for timeouts, timeout in ((TimeoutPolicy(connect_timeout=0.05), 5.0), (TimeoutPolicy(), 0.05)):
            with pytest.raises(UpstreamTimeoutError) as caught:
                await wire(make_request(make_context(instance, timeouts=timeouts, timeout=timeout)))
            assert (caught.value.phase, caught.value.request_sent) == ("connect", False)
            assert wire.statistics()["open"] == 0
    await wire.aclose()


async def test_an_instance_that_never_answers_costs_the_connection_at_the_deadline(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await get(wire, server, timeout=0.3)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

    assert (caught.value.phase, caught.value.request_sent, caught.value.service) == ("headers", True, "users")


async def test_a_head_that_drips_does_not_outlive_the_deadline(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await peer.send(b"a: b\r\n")
            await asyncio.sleep(0.005)

    async with BadServer(script) as server:
        with pytest.raises(UpstreamTimeoutError):
            await get(wire, server, timeout=0.1)


async def test_a_deadline_that_has_passed_sends_nothing(wire: H1Wire):
    async with BadServer(answering()) as server:
        await get(wire, server)
        with pytest.raises(UpstreamTimeoutError) as caught:
            await get(wire, server, timeout=-1.0)

        assert not caught.value.request_sent
        assert len(server.peers[0].heads) == 1
    assert wire.statistics()["idle"] in (0, 1)


class CountingLoop:
    """The running loop, counting the timers it is asked for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.timers: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, *args: Any) -> asyncio.TimerHandle:
        self.timers.append(delay)
        return self._loop.call_later(delay, *args)


@pytest.mark.parametrize(("timeout", "timers"), [(None, 0), (5.0, 1)])
async def test_a_request_has_one_timer_for_its_head_and_none_without_a_deadline(
    wire: H1Wire, timeout: float | None, timers: int
):
    async with BadServer(answering()) as server:
        await get(wire, server)
        loop = CountingLoop()
        next(iter(wire._pools.values())).loop = loop
        response = await get(wire, server, timeout=timeout)

        assert await response.read() == b"ok"
        assert len(loop.timers) == timers


# Cancellation and closing.


async def test_a_cancelled_call_closes_the_connection(wire: H1Wire):
    async with BadServer(Peer.wait_closed_by_client) as server:
        call = start(get(wire, server))
        await until(lambda: bool(server.peers))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)
        await until(lambda: wire.statistics()["open"] == 0)


async def test_a_call_cancelled_at_any_step_leaves_nothing_behind(wire: H1Wire):
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_head()
            await peer.send_cut(answer + b"okok", (10, len(answer), len(answer) + 2))

    async def call(server: BadServer) -> bytes:
        return await (await get(wire, server)).read_all()

    async with BadServer(script) as server:
        for turns in range(40):
            task = start(call(server))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            await until(lambda: wire.statistics()["in_use"] == 0)
        assert await call(server) == b"okok"


async def test_a_cancelled_read_closes_the_connection(wire: H1Wire):
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        response = await get(wire, server)
        reading = start(response.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)


async def test_closing_the_wire_fails_calls_in_progress_and_refuses_new_ones():
    wire = H1Wire()
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        started.set()
        await peer.wait_closed_by_client()

    async with BadServer(script) as server:
        call = start(get(wire, server))
        await started.wait()
        await wire.aclose()
        await wire.aclose()
        with pytest.raises(UpstreamConnectionError):
            await call
        with pytest.raises(UpstreamConnectionError):
            await get(wire, server)
        await asyncio.wait_for(server.peers[0].ended.wait(), 5)

    assert wire.statistics()["open"] == 0


async def test_two_may_close_the_wire_at_once_and_one_may_give_up():
    wire = H1Wire()
    async with BadServer(answering()) as server:
        await get(wire, server)
        closing = [start(wire.aclose()) for _ in range(3)]
        await asyncio.sleep(0)
        closing[0].cancel()
        await asyncio.wait(closing, timeout=2)

    assert [each.cancelled() for each in closing] == [True, False, False]
    assert all(each.exception() is None for each in closing[1:])


async def test_closing_the_wire_ends_an_attempt_to_connect():
    wire = H1Wire()
    with socket.socket() as full, socket.socket() as filler, socket.socket() as another:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (filler, another):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        call = start(wire(make_request(make_context(make_instance(full.getsockname()[1])))))
        await asyncio.sleep(0.01)

        await asyncio.wait_for(wire.aclose(), 5)

        with pytest.raises(UpstreamConnectionError):
            await call


async def test_closed_connections_leave_nothing_for_the_garbage_collector(wire: H1Wire):
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    async with BadServer(answering_once(answer)) as server:
        await get(wire, server)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(20):
                await (await get(wire, server)).read()
            await until(lambda: wire.statistics()["open"] == 0)
            gc.collect()
            left = [each for each in gc.garbage if isinstance(each, H1Connection | Exchange)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    assert left == []


async def test_an_invalid_request_does_not_touch_a_connection(wire: H1Wire):
    async with BadServer(answering()) as server:
        with pytest.raises(InvalidRequestError):
            await get(wire, server, headers=[(b"x", b"a\r\nb: c")])

        assert server.peers == []
