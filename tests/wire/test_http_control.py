"""Tests of the plain client for control planes, against a server that sends prepared bytes."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import aclosing, asynccontextmanager, suppress

import httpx2
import pytest
import trustme

from fastapi_mesh.exceptions import (
    InvalidRequestError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.http import ControlClient, ControlResponse, _translated

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Consul-Index: 7\r\n\r\n{}"


@asynccontextmanager
async def server(*answers: bytes, tls: ssl.SSLContext | None = None, hang: bool = False):
    """Yields the base URL and the request heads; each connection gets the next answer, then is closed unless `hang`."""
    heads: list[bytes] = []
    left = list(answers)
    over = asyncio.Event()
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader, writer):
        handlers.add(asyncio.current_task())
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0
                )
                heads.append(head + await reader.readexactly(length))
                writer.write(left.pop(0))
                await writer.drain()
            if hang:
                await over.wait()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}", heads
    finally:
        over.set()
        listening.close()
        await listening.wait_closed()
        if handlers:
            await asyncio.wait(handlers)


@asynccontextmanager
async def control(url: str, **options):
    client = ControlClient(url, **options)
    try:
        yield client
    finally:
        await client.aclose()
        await client.aclose()


async def test_a_call_returns_status_headers_and_content_and_reuses_the_connection():
    async with server(OK, OK) as (url, heads), control(url, headers={"X-Token": "t"}) as client:
        answer = await client.request("GET", "/v1/health", params={"index": 7, "passing": True}, headers={"X-B": "b"})
        assert answer.status == 200
        assert answer.headers["x-consul-index"] == "7"
        assert answer.json() == {}
        await client.request("PUT", "/v1/register", json={"ID": "a"})

    assert heads[0].startswith(b"GET /v1/health?index=7&passing=true HTTP/1.1\r\n")
    assert b"x-token: t\r\n" in heads[0].lower()
    assert b"x-b: b\r\n" in heads[0].lower()
    assert json.loads(heads[1].partition(b"\r\n\r\n")[2]) == {"ID": "a"}
    assert b"x-token: t\r\n" in heads[1].lower()


async def test_every_status_is_an_answer():
    async with server(b"HTTP/1.1 503 No\r\ncontent-length: 3\r\n\r\nbad") as (url, _), control(url) as client:
        assert (await client.request("GET", "/"))[::2] == (503, b"bad")


def test_content_that_is_no_json_is_a_protocol_error():
    with pytest.raises(UpstreamProtocolError):
        ControlResponse(200, {}, b"<html>").json()


async def test_a_refused_connection_was_never_sent():
    async with server() as (url, _):
        pass
    async with control(url) as client:
        with pytest.raises(UpstreamConnectionError) as caught:
            await client.request("GET", "/")
    assert caught.value.request_sent is False


async def test_a_connection_that_closes_without_an_answer_may_have_been_executed():
    async with server(b"") as (url, _), control(url) as client:
        with pytest.raises(UpstreamConnectionError) as caught:
            await client.request("GET", "/")
    assert caught.value.request_sent is True
    assert not isinstance(caught.value, UpstreamProtocolError)


async def test_an_answer_that_is_no_http_is_a_protocol_error():
    async with server(b"SMTP ready\r\n\r\n") as (url, _), control(url) as client:
        with pytest.raises(UpstreamProtocolError):
            await client.request("GET", "/")


async def test_a_body_that_is_cut_is_a_lost_connection():
    async with server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab") as (url, _), control(url) as client:
        with pytest.raises(UpstreamConnectionError) as caught:
            await client.request("GET", "/")
    assert not isinstance(caught.value, UpstreamProtocolError)


async def test_a_silent_server_times_out():
    async with server(b"", hang=True) as (url, _), control(url) as client:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await client.request("GET", "/", timeout=0.3)
    assert caught.value.phase == "read"


async def test_a_header_that_can_t_be_sent_is_the_caller_s_fault():
    async with server(OK) as (url, _), control(url) as client:
        with pytest.raises(InvalidRequestError):
            await client.request("GET", "/", headers={"X": "a\nb"})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ConnectTimeout, {"phase": "connect", "request_sent": False}),
        (httpx2.PoolTimeout, {"phase": "connect", "request_sent": False}),
        (httpx2.WriteTimeout, {"phase": "write", "request_sent": True}),
        (httpx2.ReadTimeout, {"phase": "read", "request_sent": True}),
        (httpx2.ProxyError, {"request_sent": False}),
        (httpx2.ReadError, {"request_sent": True}),
        (httpx2.WriteError, {"request_sent": True}),
    ],
)
def test_each_error_of_httpx2_says_whether_the_request_can_have_arrived(error, expected):
    translated = _translated(error(""), "http://registry")
    assert {name: getattr(translated, name) for name in expected} == expected
    assert str(translated) == f"http://registry: {error.__name__}"


async def test_lines_arrive_as_they_come_until_the_iterator_is_closed():
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\na\nb\n\r\n1\r\nc\r\n1\r\n\n\r\n"
    async with server(answer, hang=True) as (url, heads), control(url) as client:
        lines = client.stream_lines("POST", "/v3/watch", json={"key": "a"}, params=[("x", "1")])
        async with aclosing(lines):
            assert [await anext(lines) for _ in range(3)] == ["a", "b", "c"]
    assert heads[0].startswith(b"POST /v3/watch?x=1 ")


async def test_a_watch_that_is_refused_says_so():
    answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\ndenied"
    async with server(answer) as (url, _), control(url) as client:
        with pytest.raises(ServiceUnavailableError) as caught:
            await anext(client.stream_lines("GET", "/watch"))
    assert (caught.value.status_code, caught.value.body) == (403, b"denied")


async def test_a_watch_that_stalls_or_dies_raises():
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\na\n\r\n"
    async with server(head, head, hang=True) as (url, _), control(url) as client:
        lines = client.stream_lines("GET", "/watch", idle_timeout=0.3)
        assert await anext(lines) == "a"
        with pytest.raises(UpstreamTimeoutError):
            await anext(lines)
    async with server(head) as (url, _), control(url) as client:
        lines = client.stream_lines("GET", "/watch")
        assert await anext(lines) == "a"
        with pytest.raises(UpstreamConnectionError):
            await anext(lines)


async def test_tls_uses_the_context_it_is_given_and_no_other():
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with server(OK, tls=tls) as (url, _), control(url, ssl_context=trusting) as client:
        assert (await client.request("GET", "/")).status == 200
    async with server(OK, tls=tls) as (url, _), control(url) as client:
        with pytest.raises(UpstreamConnectionError, match="certificate") as caught:
            await client.request("GET", "/")
    assert caught.value.request_sent is False


async def test_nothing_is_made_before_the_first_call():
    client = ControlClient("https://127.0.0.1:9")
    await client.aclose()
