"""What an instance sends beyond its answer: the answer counts, the rest and the connection are dropped.

RFC 9112 section 6.3: the rest must not be processed, cached or forwarded as an answer of its own; that is how the
answer to one client becomes the making of another (section 11.1, response splitting).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.core.events import Event, ExcessDropped, TrailersDropped
from fastapi_mesh.core.message import Header, Response
from fastapi_mesh.wire.h1 import H1Wire
from tests.support.badserver import BadServer, Peer
from tests.support.calls import make_context, make_instance, make_request
from tests.wire.h1_support import LOOP_NAMES, LOOPS, Line, read_all, start, until, woken

pytestmark = pytest.mark.spec("X-22")

LENGTH = [(b"content-length", b"2")]
CHUNKED = [(b"transfer-encoding", b"chunked")]
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nset-cookie: evil=1\r\n\r\nevil"

# Name: request method, the answer, its status, headers and body.
ANSWERS: dict[str, tuple[bytes, bytes, int, list[Header], bytes]] = {
    "length": (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, LENGTH, b"ok"),
    "line ends": (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\r\n", 200, LENGTH, b"\r\n"),
    "empty": (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, [(b"content-length", b"0")], b""),
    "close": (
        b"GET",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        200,
        [*LENGTH, (b"connection", b"close")],
        b"ok",
    ),
    "1.0": (b"GET", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, LENGTH, b"ok"),
    "after 103": (
        b"GET",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        200,
        LENGTH,
        b"ok",
    ),
    "chunked": (b"GET", CHUNKED_HEAD + b"2\r\nok\r\n0\r\n\r\n", 200, CHUNKED, b"ok"),
    "chunked, extension": (b"GET", CHUNKED_HEAD + b"2\r\nok\r\n0;x\r\n\r\n", 200, CHUNKED, b"ok"),
    "chunked, trailers": (b"GET", CHUNKED_HEAD + b"2\r\nok\r\n0\r\na: b\r\n\r\n", 200, CHUNKED, b"ok"),
    "chunked, empty": (b"GET", CHUNKED_HEAD + b"0\r\n\r\n", 200, CHUNKED, b""),
    "204": (b"DELETE", b"HTTP/1.1 204 No Content\r\na: b\r\n\r\n", 204, [(b"a", b"b")], b""),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", 304, LENGTH, b""),
    "HEAD": (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", 200, LENGTH, b""),
    "HEAD, empty": (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, [(b"content-length", b"0")], b""),
    "HEAD, chunked": (b"HEAD", CHUNKED_HEAD, 200, CHUNKED, b""),
    "HEAD, no length": (b"HEAD", b"HTTP/1.1 200 OK\r\na: b\r\n\r\n", 200, [(b"a", b"b")], b""),
}
EXCESS = {
    "a letter": b"x",
    "a digit": b"5",
    "a NUL": b"\0",
    "a body": b"ok",
    "a line end": b"\r\n",
    "LF": b"\n",
    "CR": b"\r",
    "line ends": b"\r\n\r\n",
    "a line end and a letter": b"\r\nx",
    "an answer": EVIL,
    "an answer after a line end": b"\r\n" + EVIL,
    "the start of an answer": b"HTTP/1.1 200 OK\r\n",
    "a part of an answer's start": b"HTT",
    "101": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a chunk": b"2\r\nok\r\n",
    "an end of chunks": b"0\r\n\r\n",
    "an end of chunks with trailers": b"0\r\nset-cookie: evil=1\r\n\r\n",
    "a whole chunked body and an answer": b"4\r\nevil\r\n0\r\nset-cookie: evil=1\r\n\r\n" + EVIL,
    "much": b"x" * 300_000,
}


def check(line: Line, answer: str, segments: list[bytes]) -> None:
    method, own, status, headers, body = ANSWERS[answer]
    exchange = line.ask(method)
    for segment in segments:
        line.connection.data_received(segment)

    assert exchange.error is None
    assert exchange.complete
    assert woken(exchange)
    assert (exchange.status, exchange.headers, read_all(exchange)) == (status, headers, body)
    if answer == "line ends" and not b"".join(segments).removeprefix(own).strip(b"\r\n"):
        return  # nobody can tell these line ends from those of the body, and they do no harm
    assert line.transport.closed
    assert not line.idle


@pytest.mark.parametrize("excess", EXCESS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_with_excess_is_complete_without_it_and_costs_the_connection(answer: str, excess: str):
    line = Line()

    check(line, answer, [ANSWERS[answer][1] + EXCESS[excess]])

    if line.idle:
        assert answer == "line ends"
        return
    assert line.transport.closed == "abort"
    assert [event for event in line.events if not isinstance(event, TrailersDropped)] == [
        ExcessDropped("users", "10.0.0.1:80", True)
    ]
    assert line.counters.excess_dropped == 1


def test_a_connection_that_skipped_line_ends_gives_the_next_answer_as_it_is():
    line = Line()
    check(line, "line ends", [ANSWERS["line ends"][1] + b"\r\n\r\n"])

    exchange = line.ask()
    line.connection.data_received(ANSWERS["length"][1])

    assert (exchange.status, exchange.headers, read_all(exchange)) == (200, LENGTH, b"ok")


@pytest.mark.parametrize("answer", ANSWERS)
def test_excess_is_dropped_wherever_the_network_cuts_it(answer: str):
    wire = ANSWERS[answer][1] + EVIL

    check(Line(), answer, [wire[i : i + 1] for i in range(len(wire))])
    for cut in range(1, len(wire)):
        line = Line()
        check(line, answer, [wire[:cut], wire[cut:]])
        if line.transport.closed != "close":  # the service closes it, and nothing more is read
            assert line.counters.excess_dropped == 1


@given(
    st.sampled_from(sorted(ANSWERS)),
    st.lists(st.one_of(st.sampled_from(sorted(EXCESS.values())), st.binary(min_size=1, max_size=9)), min_size=1),
    st.lists(st.integers(1, 400), max_size=5),
)
def test_no_excess_changes_the_answer_before_it(answer: str, excess: list[bytes], cuts: list[int]):
    wire = ANSWERS[answer][1] + b"".join(excess)
    ends = [0, *sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]

    check(Line(), answer, [wire[a:b] for a, b in itertools.pairwise(ends)])


def test_bytes_on_an_idle_connection_close_it_at_that_moment():
    line = Line()
    line.ask()
    line.connection.data_received(ANSWERS["length"][1])
    assert line.idle

    line.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    assert line.pool.released == []
    assert line.transport.closed == "abort"
    assert line.events == [ExcessDropped("users", "10.0.0.1:80", True)]


def test_only_the_first_excess_of_a_service_is_told_as_the_first():
    line = Line()
    line.ask()
    line.connection.data_received(ANSWERS["length"][1] + b"x")
    line.connection._tell_excess("users")
    line.connection._tell_excess("orders")

    assert [(event.service, event.first) for event in line.events if isinstance(event, ExcessDropped)] == [
        ("users", True),
        ("users", False),
        ("orders", True),
    ]
    assert line.counters.excess_dropped == 3


# With sockets.


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


class Listener:
    """A server of plain sockets: what it sends is in the client's kernel when `send` returns, before the loop turns.

    `ends` are its ends of the connections, in their order.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.ends: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        end, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        end.setblocking(False)
        self.ends.append(end)
        return end

    def close(self) -> None:
        for each in (self._socket, *self.ends):
            each.close()


async def take_request(end: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = await asyncio.get_running_loop().sock_recv(end, 65536)
        assert part
        head += part
    return head


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    yield made
    made.close()


@asynccontextmanager
async def opened(wire: H1Wire) -> AsyncIterator[H1Wire]:
    yield wire
    await wire.aclose()
    assert wire.statistics()["open"] == 0


async def get(wire: H1Wire, port: int, method: bytes = b"GET") -> Response:
    return await wire(make_request(make_context(make_instance(port)), method))


TRAILERS = CHUNKED_HEAD + b"2\r\nok\r\n0\r\na: b\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"


@pytest.mark.anyio
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_the_next_request_does_not_get_what_waits_in_the_kernel(listener: Listener, method: bytes):
    events: list[Event] = []
    async with opened(H1Wire(observer=events.append)) as wire:
        first = start(get(wire, listener.port))
        end = await listener.accept()
        await take_request(end)
        end.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await (await first).read_all() == b"ok"
        assert wire.statistics()["idle"] == 1

        end.send(EVIL)  # it is there, and the loop has not turned since
        second = start(get(wire, listener.port, method))
        other = await listener.accept()
        await take_request(other)
        other.send(GOOD)

        assert await (await second).read_all() == b"good"
        assert events == [ExcessDropped("users", f"127.0.0.1:{listener.port}", True)]
        assert wire.statistics()["open"] == 1


@pytest.mark.anyio
async def test_who_waits_for_the_connection_does_not_get_what_waits_in_the_kernel(listener: Listener):
    """The excess is there before the connection is handed from one request to the next, in the same turn."""

    def observe(event: Event) -> None:
        if isinstance(event, TrailersDropped):
            listener.ends[0].send(EVIL)

    async with opened(H1Wire(max_connections=1, observer=observe)) as wire:
        first = start(get(wire, listener.port))
        end = await listener.accept()
        await take_request(end)
        second = start(get(wire, listener.port))
        await until(lambda: wire.statistics()["waiting"] == 1)

        end.send(TRAILERS)
        other = await listener.accept()
        await take_request(other)
        other.send(GOOD)

        assert await (await first).read_all() == b"ok"
        assert await (await second).read_all() == b"good"
        assert wire.statistics()["excess_dropped"] == 1


@pytest.mark.anyio
async def test_a_request_that_must_not_be_repeated_does_not_meet_an_end_that_is_already_there(listener: Listener):
    async with opened(H1Wire()) as wire:
        first = start(get(wire, listener.port))
        end = await listener.accept()
        await take_request(end)
        end.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await (await first).read_all() == b"ok"

        end.close()
        second = start(get(wire, listener.port, b"POST"))
        other = await listener.accept()
        await take_request(other)
        other.send(GOOD)

        assert await (await second).read_all() == b"good"
        assert wire.statistics()["excess_dropped"] == 0


@pytest.mark.anyio
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("answer", ["length", "chunked", "HEAD", "304"])
async def test_over_a_socket_each_answer_is_its_own(answer: str, secure: bool):
    method, wire_bytes, status, _, body = ANSWERS[answer]

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(wire_bytes + EVIL)
        await peer.wait_closed_by_client()

    ca = trustme.CA()
    trusted = ssl.create_default_context()
    ca.configure_trust(trusted)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(own)
    async with (
        BadServer(script, tls=own if secure else None) as server,
        opened(H1Wire(ssl_context=trusted)) as wire,
    ):
        for _ in range(3):
            instance = make_instance(server.port, scheme="https" if secure else "http")
            response = await wire(make_request(make_context(instance), method))
            assert (response.status, await response.read_all()) == (status, body)

        assert len(server.peers) == 3
        assert wire.statistics()["excess_dropped"] == 3


@pytest.mark.anyio
async def test_connections_over_tls_are_used_again():
    """What a handshake leaves in the kernel (TLS 1.3's tickets) is no excess."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_head()
            await peer.send(GOOD)

    ca = trustme.CA()
    trusted = ssl.create_default_context()
    ca.configure_trust(trusted)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(own)
    async with BadServer(script, tls=own) as server, opened(H1Wire(ssl_context=trusted)) as wire:
        for _ in range(20):
            response = await wire(make_request(make_context(make_instance(server.port, scheme="https"))))
            assert await response.read_all() == b"good"

        assert len(server.peers) == 1
