"""A gateway that is its own server: its port, its limits, its port for metrics, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time

import pytest
from fastapi import FastAPI

from fastapi_mesh import ServiceMesh
from fastapi_mesh.api_gateway import APIGateway, listen
from fastapi_mesh.api_gateway.http_server import Limits, new_protocol
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk, values
from tests.api_gateway.standalone_support import standalone, started
from tests.support.process import free_port

pytestmark = pytest.mark.anyio


@pytest.mark.spec("S-016", "A12")
async def test_start_serves_on_its_port_and_stop_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with RawUpstream() as upstream:
        gateway = standalone(upstream.url)
        async with started(gateway) as port:
            raw = await talk(port, request("GET /api/x"))
            with pytest.raises(RuntimeError, match="running already"):
                await gateway.start()

    assert parts(raw)[0] == 200
    assert gateway.life is None


async def test_a_request_under_way_is_completed_when_it_stops() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")

    async with RawUpstream(slow) as upstream:
        gateway = standalone(upstream.url)
        async with started(gateway) as port:
            asked = asyncio.ensure_future(talk(port, request("GET /api/x")))  # noqa: TID251 - the test's own
            await arrived.wait()
            await gateway.stop()
            await asyncio.sleep(0.2)  # the listener is closed meanwhile
            go_on.set()
            assert parts(await asked)[2] == b"done"


async def test_stopping_one_gateway_ends_no_stream_of_another_on_the_same_mesh() -> None:
    go_on = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        writer.write(b"data: 2\n\n")
        writer.close()

    async with RawUpstream(events) as upstream, ServiceMesh("edge", services={"up": upstream.url}) as mesh:
        route = {"path": "/api/*", "service": "up"}
        staying = APIGateway("127.0.0.1", free_port(), service_mesh=mesh)
        staying.configure_routes([route])
        async with started(staying) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET /api/x"))
            await reader.readuntil(b"data: 1")
            leaving = APIGateway("127.0.0.1", free_port(), service_mesh=mesh)
            leaving.configure_routes([route])
            async with started(leaving):
                pass
            go_on.set()
            assert b"data: 2" in await reader.read()
            writer.close()
            await writer.wait_closed()


async def test_sockets_of_somebody_else_are_served(caplog: pytest.LogCaptureFixture) -> None:
    async with RawUpstream() as upstream:
        gateway = standalone(upstream.url)
        sockets = listen.bind("127.0.0.1", 0)
        port = sockets[0].getsockname()[1]
        task = asyncio.ensure_future(gateway.start(sockets))  # noqa: TID251 - the test's own
        while gateway.life is None:  # noqa: ASYNC110 - start() is the server's own loop
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert parts(await talk(port, request("GET /api/x")))[0] == 200
        await gateway.stop()
        await task


# What can't start


def fails(gateway: APIGateway, caplog: pytest.LogCaptureFixture) -> str:
    with pytest.raises(SystemExit) as end:
        asyncio.run(gateway.start())
    assert end.value.code == 3
    return caplog.text


def test_a_port_in_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        text = fails(standalone(port=port), caplog)

    assert f"setting: port: {port} on 127.0.0.1 is in use by another program" in text


@pytest.mark.spec("S-064")
def test_a_metrics_port_in_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        assert f"metrics_port: {port} on 127.0.0.1 is in use" in fails(standalone(metrics_port=port), caplog)


def test_a_host_that_is_not_ours_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = fails(standalone(host="192.0.2.1"), caplog)

    assert "host: '192.0.2.1' is no address of this machine" in text


def test_workers_can_not_be_made_from_inside(caplog: pytest.LogCaptureFixture) -> None:
    text = fails(standalone(workers=2), caplog)

    assert "fastapi-mesh gateway --config FILE --workers N" in text


def test_a_host_with_several_addresses_gets_one_port_for_all() -> None:
    sockets = listen.bind("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert all(each.proto == socket.IPPROTO_TCP for each in sockets), "asyncio sets TCP_NODELAY for these only"
    finally:
        listen.close(sockets)


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(ConfigurationError, match="can't be resolved"):
        listen.bind("no-such-host.invalid", 0)


def test_a_url_names_an_ipv6_address_in_brackets() -> None:
    (listener,) = listen.bind("::1", 0)
    try:
        assert listen.url_of(listener, "http").startswith("http://[::1]:")
    finally:
        listen.close([listener])


# Limits


@pytest.mark.spec("S-061", "B15")
async def test_a_connection_too_many_is_told_so_and_closed() -> None:
    async with RawUpstream() as upstream, started(standalone(upstream.url, max_connections=2)) as port:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)

        refused = await talk(port, request("GET /api/x").replace(b"Connection: close\r\n", b""))
        kept[0][1].write(request("GET /api/x"))
        served = await kept[0][0].read()

        assert (parts(refused)[0], values(refused, b"x-mesh-reason")) == (503, [b"too-many-connections"])
        assert values(refused, b"retry-after") == [b"1"]
        assert json.loads(parts(refused)[2])["reason"] == "too-many-connections"
        assert parts(served)[0] == 200, "those within the limit are served"
        await asyncio.sleep(0.05)
        assert parts(await talk(port, request("GET /api/x")))[0] == 200, "a place is free again"
        metrics = await talk(port, request("GET /metrics"))
        assert b'gateway_local_responses_total{path="__unmatched__",reason="too-many-connections"} 1.0' in metrics
        for _, writer in kept:
            writer.close()


@pytest.mark.spec("B15")
async def test_a_websocket_too_many_is_refused_in_its_handshake() -> None:
    handshake = request(
        "GET /api/x",
        "Upgrade: websocket",
        "Connection: upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ).replace(b"Connection: close\r\n", b"")
    async with started(standalone(max_connections=1)) as port:
        _, kept = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)

        assert parts(await talk(port, handshake))[0] == 503
        kept.close()


@pytest.mark.spec("S-061")
async def test_an_idle_connection_is_closed_after_the_keepalive_timeout() -> None:
    async with RawUpstream() as upstream, started(standalone(upstream.url, keepalive_timeout=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /api/x").replace(b"Connection: close\r\n", b""))
        await reader.readuntil(b"\r\n\r\nok")
        began = time.monotonic()

        assert await reader.read() == b""

        assert 0.15 < time.monotonic() - began < 4  # by default it is kept for longer
        writer.close()


@pytest.mark.parametrize(("pieces", "more"), [(1, 8000), (40, 8000), (1, 4100), (3, 4100)])
async def test_a_head_that_is_too_large_is_refused(pieces: int, more: int) -> None:
    async with RawUpstream() as upstream, started(standalone(upstream.url, max_header_size=2048)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"GET /api/x HTTP/1.1\r\nHost: gw\r\nX-Big: " + b"a" * more + b"\r\n\r\n"
        size = len(head) // pieces + 1
        for start in range(0, len(head), size):
            writer.write(head[start : start + size])
            await asyncio.sleep(0)
        raw = await reader.read()

        assert (parts(raw)[0], values(raw, b"x-mesh-reason")) == (431, [b"header-too-large"])
        assert values(raw, b"connection") == [b"close"]
        assert upstream.received == []
        writer.close()


async def test_a_head_within_its_size_before_a_large_body_is_served() -> None:
    body = b"b" * 300_000
    async with RawUpstream() as upstream, started(standalone(upstream.url, max_header_size=1024)) as port:
        raw = await talk(port, request("POST /api/x", f"Content-Length: {len(body)}", body=body))

        assert parts(raw)[0] == 200
        assert upstream.received[0].endswith(body)


async def test_heads_in_a_row_are_each_within_their_size() -> None:
    one = request("GET /api/x", "X-Pad: " + "a" * 700).replace(b"Connection: close\r\n", b"")
    async with RawUpstream() as upstream, started(standalone(upstream.url, max_header_size=1024)) as port:
        raw = await talk(port, one * 20 + request("GET /api/last"))

        assert raw.count(b"HTTP/1.1 200 OK") == 21


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"GET /api/x HTTP/1.1\r\nHost: g", 408, id="half-a-head"),
        pytest.param(b"\r\n", None, id="line-ends"),
    ],
)
async def test_a_head_must_come_in_time(sent: bytes, status: int | None) -> None:
    async with started(standalone(header_timeout=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        raw = await asyncio.wait_for(reader.read(), 3)

        assert (parts(raw)[0] if raw else None) == status
        writer.close()


@pytest.mark.parametrize("sent", [b"G", b"\r\n"], ids=["half-a-head", "line-ends"])
async def test_the_head_of_a_second_request_must_come_in_time_too(sent: bytes) -> None:
    async with RawUpstream() as upstream, started(standalone(upstream.url, header_timeout=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /api/x").replace(b"Connection: close\r\n", b""))
        await reader.readuntil(b"\r\n\r\nok")
        writer.write(sent)

        raw = await asyncio.wait_for(reader.read(), 3)

        assert raw == b"" or parts(raw)[0] == 408
        writer.close()


async def test_a_head_that_is_late_behind_a_slow_request_does_not_get_into_its_answer() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")

    async with RawUpstream(slow) as upstream, started(standalone(upstream.url, header_timeout=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /api/x").replace(b"Connection: close\r\n", b"") + b"GET /api/y HT")

        raw = await asyncio.wait_for(reader.read(), 3)

        first, _, rest = raw.partition(b"done")
        assert parts(first)[0] == 200
        assert rest == b"" or parts(rest)[0] == 408
        writer.close()


async def test_what_is_no_http_is_told_as_a_problem() -> None:
    async with started(standalone()) as port:
        raw = await talk(port, b"HELO there\r\n\r\n")

        assert (parts(raw)[0], values(raw, b"x-mesh-reason")) == (400, [b"invalid-request"])


@pytest.mark.parametrize("path", ["/api/x", "/nowhere"])
async def test_a_body_that_is_no_http_gets_one_answer_and_ends_the_call(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = b"3\r\nabc\r\nno chunk\r\n"
    protocol = new_protocol(Limits(None, 65_536, 30.0, lambda status, reason: None))
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), protocol) as port:
        head = request(f"POST {path}", "Transfer-Encoding: chunked").replace(b"Connection: close\r\n", b"")
        raw = await talk(port, head + chunks)

        assert (parts(raw)[0], raw.count(b"HTTP/1.1 4")) == (400, 1)
        assert values(raw, b"x-mesh-reason") == [b"invalid-request"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# The port of its own for metrics


@pytest.mark.spec("S-064", "B16")
async def test_metrics_have_a_port_of_their_own_and_are_on_no_other() -> None:
    metrics_port = free_port()
    async with RawUpstream() as upstream, started(standalone(upstream.url, metrics_port=metrics_port)) as port:
        await talk(port, request("GET /api/x"))

        metrics = await talk(metrics_port, request("GET /metrics"))
        assert parts(metrics)[0] == 200
        assert b'gateway_requests_total{method="GET",path="/api/*",status="200"} 1.0' in metrics
        assert parts(await talk(port, request("GET /metrics")))[0] == 404
        for path in ("/health", "/health/live", "/health/ready"):
            assert parts(await talk(metrics_port, request(f"GET {path}")))[0] == 200
            assert parts(await talk(port, request(f"GET {path}")))[0] == 200
        assert parts(await talk(metrics_port, request("GET /api/x")))[0] == 404
        assert parts(await talk(metrics_port, request("POST /metrics")))[0] == 405
    with pytest.raises(ConnectionRefusedError):
        await talk(metrics_port, request("GET /metrics"))


@pytest.mark.spec("B16")
async def test_without_one_metrics_are_on_the_gateways_port() -> None:
    async with started(standalone()) as port:
        assert parts(await talk(port, request("GET /metrics")))[0] == 200


@pytest.mark.spec("B15", "B16")
async def test_in_another_application_they_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    gateway = standalone(max_connections=5, metrics_port=free_port())
    app = FastAPI()
    app.include_router(gateway.router)
    async with serving(app, lifespan="on"):
        pass

    assert "max_connections, metrics_port: used by gateway.start() and `fastapi-mesh gateway` only" in caplog.text
    caplog.clear()
    other = APIGateway(services={"up": "http://127.0.0.1:1"})
    async with other.opened({}):
        assert "used by gateway.start()" not in caplog.text


# Signals


async def test_sighup_reloads(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "gateway.toml"
    text = '[services]\nup = "http://127.0.0.1:1"\n[[routes]]\npath = "{}"\nservice = "up"\n'
    file.write_text(text.format("/a"))
    gateway = APIGateway("127.0.0.1", free_port(), config_file=str(file), watch_config=False, max_retries=0)
    async with started(gateway) as port:
        file.write_text(text.format("/b"))
        os.kill(os.getpid(), signal.SIGHUP)
        while (await talk(port, request("GET /b")))[9:12] == b"404":  # noqa: ASYNC110 - another loop turn brings it
            await asyncio.sleep(0.02)

        file.write_text("no = [")
        os.kill(os.getpid(), signal.SIGHUP)
        while "are refused" not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.02)
        assert parts(await talk(port, request("GET /b")))[0] == 502
