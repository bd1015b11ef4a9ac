"""The HTTP protocol of a gateway's own server: what uvicorn's would lose, mix up or let pass."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fastapi_mesh.api_gateway.strict import StrictHttpProtocol
from tests.api_gateway.gateway_support import OK, RawUpstream, gateway_to, parts, request, serving, talk, values

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22")]


async def test_a_trailer_never_becomes_a_header() -> None:
    payload = request("POST /api/x", "Transfer-Encoding: chunked")
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        await talk(port, payload + b"3\r\nabc\r\n0\r\nAuthorization: Basic x\r\n\r\n")

    assert b"authorization" not in upstream.received[0].lower()


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_a_request_that_offers_an_upgrade_keeps_its_body_and_what_follows(framing: str) -> None:
    head = (
        f"POST /api/x HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n{framing}\r\n\r\n"
    )
    body = b"hello" if framing.startswith("C") else b"5\r\nhello\r\n0\r\n\r\n"
    payload = head.encode() + body + request("GET /api/next")
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        raw = await talk(port, payload)

    first, second = upstream.received
    assert b"hello" in first
    assert b"upgrade" not in first.lower()
    assert second.startswith(b"GET /api/next ")
    assert raw.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_behind_plain_httptools_a_request_whose_body_was_lost_is_refused(framing: str) -> None:
    head = request("POST /api/x", "Upgrade: h2c", framing).replace(b"Connection: close", b"Connection: close, Upgrade")
    body = b"hello" if framing.startswith("C") else b"5\r\nhello\r\n0\r\n\r\n"
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), "httptools") as port:
        raw = await talk(port, head + body)

    assert parts(raw)[0] == 400
    assert b"HTTP/1.1 200" not in raw
    assert not any(received.endswith((b"hello", b"0\r\n\r\n")) for received in upstream.received)


async def test_the_authority_of_an_absolute_form_counts() -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        await talk(port, request("GET http://other:81/api/x?y=1"))
        refused = await talk(port, request("GET http://user@other/api/x"))

    [received] = upstream.received
    assert received.startswith(b"GET /api/x?y=1 HTTP/1.1\r\nhost: other:81\r\n")
    assert parts(refused)[0] == 400


async def test_an_answer_under_way_is_completed_before_a_bad_request_ends_the_connection() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        writer.write(OK)
        await writer.drain()

    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/x HTTP/1.1\r\nHost: gw\r\n\r\n")
        await asked.wait()
        writer.write(b"\x00 no HTTP\r\n\r\n")
        await asyncio.sleep(0.01)
        go.set()
        async with asyncio.timeout(5):
            raw = await reader.read()
        writer.close()

    assert raw.count(b"HTTP/1.1 ") == 1
    assert parts(raw)[0] == 200
    assert raw.endswith(b"ok")


async def test_a_bad_chunk_never_gets_a_400_into_an_answer_that_has_begun() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        await reader.read()

    async with (
        RawUpstream(answer, reads_body=False) as upstream,
        serving(gateway_to(upstream.url), StrictHttpProtocol) as port,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /api/x HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        async with asyncio.timeout(5):
            raw = await reader.readuntil(b"half")
            writer.write(b"no chunk\r\n")
            with contextlib.suppress(ConnectionError):  # cut, as it should be
                raw += await reader.read()
        writer.close()

    assert raw.endswith(b"half")
    assert values(raw, b"content-length") == [b"100"]


@pytest.mark.parametrize("http", ["h11", "httptools", StrictHttpProtocol], ids=["h11", "httptools", "strict"])
async def test_nobody_but_a_websocket_client_gets_an_upgrade(http: object) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        raw = await talk(port, request("GET /api/x", "Upgrade: TLS/1.2").replace(b"close", b"close, Upgrade"))

    assert parts(raw)[0] == 200
    assert b"upgrade" not in upstream.received[0].lower()


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        ("GET", CHUNKED, b"abcde"),
        ("GET", OK, b"ok"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    ],
)
async def test_a_client_of_http_1_0_is_not_answered_in_chunks(method: str, answer: bytes, body: bytes) -> None:
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        raw = await talk(port, f"{method} /api/x HTTP/1.0\r\nHost: gw\r\n\r\n".encode())

    head, _, rest = raw.partition(b"\r\n\r\n")
    assert rest == body
    assert b"transfer-encoding" not in head.lower()
    assert values(raw, b"connection") == [b"close"]


async def test_a_service_that_never_says_100_continue_gets_the_body_all_the_same() -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        raw = await talk(port, request("POST /api/x", "Expect: 100-continue", "Content-Length: 5", body=b"hello"))

    assert upstream.received[0].endswith(b"\r\n\r\nhello")
    assert raw.endswith(b"ok")


async def test_a_client_of_http_1_0_gets_no_100_continue() -> None:
    payload = b"POST /api/x HTTP/1.0\r\nHost: gw\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), StrictHttpProtocol) as port:
        raw = await talk(port, payload)

    assert upstream.received[0].endswith(b"\r\n\r\nhello")
    assert parts(raw)[0] == 200
    assert raw.count(b"HTTP/1.") == 1
