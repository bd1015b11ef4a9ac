"""Bodies stream both ways in bounded memory, and each side's going away reaches the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request

from fastapi_mesh.api_gateway.forward import BROKEN, TruncatedResponseError
from tests.api_gateway.gateway_support import SERVERS, RawUpstream, gateway_to, parts, request, serving, talk

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22", "X-23")]

MIB = 1024 * 1024
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(params=SERVERS)
def http(request: pytest.FixtureRequest) -> str:
    return request.param


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_server_sent_events_arrive_one_by_one(http: str) -> None:
    step = asyncio.Queue[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        while event := await step.get():
            writer.write(chunk(event))
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with (
        RawUpstream(answer) as upstream,
        serving(gateway_to(upstream.url), http) as port,
        connected(port) as (reader, writer),
    ):
        writer.write(request("GET /api/events"))
        head = await reader.readuntil(b"\r\n\r\n")
        for number in range(3):
            event = b"data: %d\n\n" % number
            step.put_nowait(event)
            await reader.readuntil(b"\r\n")  # the chunk's size
            assert await reader.readexactly(len(event) + 2) == event + b"\r\n"
        step.put_nowait(b"")
        rest = await reader.read()

    assert b"text/event-stream" in head
    assert rest == b"0\r\n\r\n"


class Peak:
    """How much memory Python had at most in a block, above what it began with."""

    def __enter__(self) -> Peak:
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = tracemalloc.get_traced_memory()[1] - self._before
        tracemalloc.stop()


async def test_64_mib_go_down_to_a_slow_reader_in_bounded_memory(http: str) -> None:
    block = b"x" * MIB

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64):
            writer.write(block)
            await writer.drain()

    async with (
        RawUpstream(answer) as upstream,
        serving(gateway_to(upstream.url), http) as port,
        connected(port) as (reader, writer),
    ):
        writer.write(request("GET /api/big"))
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)  # the reader is slow: everything on the way must fill up and stop
        with Peak() as peak:
            size = 0
            while data := await reader.read(MIB):
                size += len(data)

    assert size == 64 * MIB
    assert peak.growth < 16 * MIB


async def test_64_mib_go_up_to_a_slow_service_in_bounded_memory(http: str) -> None:
    block = b"x" * MIB
    size = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal size
        await asyncio.sleep(0.2)
        while size < 64 * MIB:
            size += len(await reader.read(MIB))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with (
        RawUpstream(answer, reads_body=False) as upstream,
        serving(gateway_to(upstream.url), http) as port,
        connected(port) as (reader, writer),
    ):
        with Peak() as peak:
            writer.write(request("POST /api/big", f"Content-Length: {64 * MIB}"))
            for _ in range(64):
                writer.write(block)
                await writer.drain()
            raw = await reader.read()

    assert parts(raw)[0] == 200
    assert size == 64 * MIB
    assert peak.growth < 16 * MIB


def vanish(writer: asyncio.StreamWriter) -> None:
    """Go away as a killed process does: the peer gets a reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_client_that_goes_away_while_waiting_cancels_the_call(http: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)  # until the gateway closes

    gateway = gateway_to("http://127.0.0.1:1")
    async with RawUpstream(answer) as upstream:
        gateway.configure_services({"up": upstream.url})
        async with serving(gateway, http) as port:
            async with connected(port) as (_, writer):
                writer.write(request("GET /api/slow"))
                await until(lambda: upstream.received)
                vanish(writer)
                await asyncio.wait_for(upstream.closed.wait(), 20)
            await until(lambda: gateway.statistics()["disconnected"] == 1)
            [record] = gateway.life.mesh.records  # type: ignore[union-attr]

    assert record.outcome == "cancelled"
    assert len(record.attempts) == 1


async def test_a_client_that_goes_away_in_the_middle_of_an_answer_cancels_the_rest(http: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await reader.readexactly(1)

    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway, http) as port:
            async with connected(port) as (reader, writer):
                writer.write(request("GET /api/events"))
                await reader.readuntil(b"data: 1\n\n")
                vanish(writer)
                await asyncio.wait_for(upstream.closed.wait(), 20)
            await until(lambda: gateway.statistics()["disconnected"] == 1)

    assert gateway.life is None


async def test_a_client_that_goes_away_in_the_middle_of_its_upload_ends_it(http: str) -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway, http) as port:
            async with connected(port) as (_, writer):
                writer.write(request("POST /api/x", "Content-Length: 1000000", body=b"x" * 70000))
                await until(lambda: upstream.received)
                vanish(writer)
                await asyncio.wait_for(upstream.closed.wait(), 20)
            await until(lambda: gateway.statistics()["disconnected"] == 1)
            [record] = gateway.life.mesh.records  # type: ignore[union-attr]
            state = gateway.life.mesh.states.get("up").instances.value[0]  # type: ignore[union-attr, index]

    assert record.reason == "client-disconnected"
    assert state.failures_in_row == 0, "the client's fault is not the instance's"


async def test_a_client_that_goes_away_while_its_early_answer_streams_is_noticed(http: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))  # before the body has come
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        upstream.closed.set()

    async with RawUpstream(answer, reads_body=False) as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway, http) as port, connected(port) as (reader, writer):
            writer.write(request("POST /api/x", "Content-Length: 1000000", body=b"x" * 70000))
            await reader.readuntil(b"data: 1\n\n")
            vanish(writer)
            await asyncio.wait_for(upstream.closed.wait(), 20)
            await until(lambda: gateway.statistics()["disconnected"] == 1)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
BREAKS = {
    "in a chunk": (CHUNKED, b"5\r\nwor"),
    "between chunks": (CHUNKED, b""),
    "before its length": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", b"wor"),
    "garbage": (CHUNKED, b"zz\r\n"),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_service_that_dies_in_its_answer_leaves_the_client_with_an_invalid_end(
    http: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BREAKS[how][0])
        await release.wait()
        writer.write(BREAKS[how][1])
        await writer.drain()

    release = asyncio.Event()
    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url, max_retries=0)
        async with serving(gateway, http) as port, connected(port) as (reader, writer):
            writer.write(request("GET /api/x"))
            await reader.readuntil(b"hello")
            release.set()
            rest = await reader.read()
            counted = gateway.statistics()["truncated"]

    assert b"0\r\n\r\n" not in rest, "no valid end of the chunks"
    assert counted == 1
    ours = [record for record in caplog.records if record.name == "fastapi_mesh.gateway"]
    assert len(ours) == 1


@pytest.mark.parametrize("length", [b"content-length: 10", b"transfer-encoding: chunked"])
async def test_no_middleware_in_between_can_make_a_broken_answer_look_complete(length: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + (b"hello" if b"len" in length else chunk(b"hello"))
        )
        await writer.drain()
        await release.wait()

    release = asyncio.Event()
    app = FastAPI()

    @app.middleware("http")
    async def passes(request: Request, call_next):  # type: ignore[no-untyped-def]
        return await call_next(request)

    async with RawUpstream(answer) as upstream:
        app.include_router(gateway_to(upstream.url, max_retries=0).router)
        async with serving(app) as port, connected(port) as (reader, writer):
            writer.write(request("GET /api/x"))
            await reader.readuntil(b"hello")
            release.set()
            rest = await reader.read()

    assert b"0\r\n\r\n" not in rest


async def test_the_error_of_a_broken_answer_leaves_the_application() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await writer.drain()
        await release.wait()

    release = asyncio.Event()
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            release.set()

    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url)
        async with gateway.opened({}):
            with pytest.raises(TruncatedResponseError, match="up broke off"):
                await gateway(scope("/api/x"), asyncio.Queue().get, send)

    assert sent == ["http.response.start", "http.response.body", BROKEN["type"]]


def scope(path: str, method: str = "GET", *headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(b"host", b"gw"), *headers],
        "client": ("127.0.0.1", 5),
    }


async def test_keep_alive_goes_on_after_an_answer_that_needed_a_watch(http: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.12)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        return True

    async with (
        RawUpstream(answer) as upstream,
        serving(gateway_to(upstream.url), http) as port,
        connected(port) as (reader, writer),
    ):
        for _ in range(2):
            writer.write(b"GET /api/x HTTP/1.1\r\nHost: gw\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"ok"


async def test_a_slow_client_gets_408_and_the_service_is_not_bothered(http: str) -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url, request_timeout=0.2, upstream_timeout=0.2)
        async with serving(gateway, http) as port:
            raw = await talk(port, request("POST /api/x", "Content-Length: 10", body=b"half"))

    status, headers, _ = parts(raw)
    assert (status, dict(headers)[b"x-mesh-reason"]) == (408, b"request-timeout")
    assert upstream.received == []


async def test_an_upload_may_take_longer_than_an_attempt(http: str) -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url, request_timeout=0.3, upstream_timeout=0.2, max_retries=0)
        async with serving(gateway, http) as port, connected(port) as (reader, writer):
            writer.write(request("POST /api/x", "Transfer-Encoding: chunked"))
            for _ in range(6):
                writer.write(chunk(b"x"))
                await asyncio.sleep(0.1)
            writer.write(b"0\r\n\r\n")
            raw = await reader.read()

    assert parts(raw)[0] == 200
    assert upstream.received[0].endswith(b"1\r\nx\r\n" * 6 + b"0\r\n\r\n")


async def test_an_upload_that_stalls_is_408_and_not_the_services_fault(http: str) -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        gateway.configure_services({"up": {"instances": [upstream.url], "timeouts": {"idle_timeout": 0.2}}})
        async with serving(gateway, http) as port, connected(port) as (reader, writer):
            writer.write(request("POST /api/x", "Transfer-Encoding: chunked", body=chunk(b"x")))
            raw = await reader.read()
            state = gateway.life.mesh.states.get("up").instances.value[0]  # type: ignore[union-attr, index]

    assert (parts(raw)[0], dict(parts(raw)[1])[b"x-mesh-reason"]) == (408, b"request-timeout")
    assert state.failures_in_row == 0


async def test_a_service_that_does_not_answer_after_an_upload_is_504(http: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url, request_timeout=0.3, upstream_timeout=0.2, max_retries=0)
        async with serving(gateway, http) as port:
            raw = await talk(port, request("POST /api/x", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"))

    assert parts(raw)[0] == 504


async def until(condition, timeout: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    """Wait until `condition()` is true: what is waited for happens in a server, which sets no event of ours."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
