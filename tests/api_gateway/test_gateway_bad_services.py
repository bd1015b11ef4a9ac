"""Whatever a service answers, or doesn't, its client gets a valid answer or a connection that ends: never a 500."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.config.gateway import GatewayConfig
from tests.api_gateway.gateway_support import SERVERS, RawUpstream, gateway_to, request, serving, talk

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22", "A3")]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"Content-Length: 2\r\n\r\nok"
NO_ANSWERS = {
    "nothing, then the end": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18,
    "half a status line": b"HTTP/1.1 20",
    "half a head": OK + b"X: y",
    "an empty line first": b"\r\n" + OK + LENGTH,
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + LENGTH,
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n" + LENGTH,
    "RTSP": b"RTSP/1.0 200 OK\r\n" + LENGTH,
    "status 0": b"HTTP/1.1 000 No\r\n" + LENGTH,
    "status 99": b"HTTP/1.1 099 No\r\n" + LENGTH,
    "status 600": b"HTTP/1.1 600 No\r\n" + LENGTH,
    "status 999": b"HTTP/1.1 999 No\r\n" + LENGTH,
    "status of two digits": b"HTTP/1.1 20 OK\r\n" + LENGTH,
    "status of letters": b"HTTP/1.1 abc OK\r\n" + LENGTH,
    "status negative": b"HTTP/1.1 -20 OK\r\n" + LENGTH,
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    "100 and the end": b"HTTP/1.1 100 Continue\r\n\r\n",
    "1xx without end": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 5000,
    "header name empty": OK + b": x\r\n" + LENGTH,
    "header name with a space": OK + b"X Y: x\r\n" + LENGTH,
    "header name with a space before its colon": OK + b"X : y\r\n" + LENGTH,
    "header name in Latin-1": OK + b"X\xe9: y\r\n" + LENGTH,
    "header without a colon": OK + b"X\r\n" + LENGTH,
    "header value with a NUL": OK + b"X: a\x00b\r\n" + LENGTH,
    "header value with a bare CR": OK + b"X: a\rb\r\n" + LENGTH,
    "header value with a control byte": OK + b"X: a\x01b\r\n" + LENGTH,
    "header folded": OK + b"X: a\r\n b\r\n" + LENGTH,
    "header line with a bare LF": OK + b"X: a\nY: b\r\n" + LENGTH,
    "head of 2 MiB": OK + b"X: " + b"a" * 2**21 + b"\r\n" + LENGTH,
    "20 000 headers": OK + b"X: y\r\n" * 20_000 + LENGTH,
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "length signed": OK + b"Content-Length: +2\r\n\r\nok",
    "length negative": OK + b"Content-Length: -2\r\n\r\nok",
    "length of letters": OK + b"Content-Length: two\r\n\r\nok",
    "length beyond 64 bits": OK + b"Content-Length: 18446744073709551618\r\n\r\nok",
    "length and chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "coding gzip": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "coding unknown": OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\n" + LENGTH,
    "204 chunked": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
}
BROKEN_OFF = {
    "body shorter than its length": OK + b"Content-Length: 20\r\n\r\nok",
    "chunk size of letters": CHUNKED + b"xyz\r\nok\r\n0\r\n\r\n",
    "chunk size negative": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"10000000000000002\r\nok\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED + b"2\r\nok0\r\n\r\n",
    "chunk with a bare LF": CHUNKED + b"2\nok\r\n0\r\n\r\n",
    "last chunk missing": CHUNKED + b"2\r\nok\r\n",
    "last chunk without its last line": CHUNKED + b"2\r\nok\r\n0\r\n",
    "long body shorter than its length": OK + b"Content-Length: 200000\r\n\r\nok",
}
"""Answers whose head is in order: the client may have had a part when they go wrong, and must see that they did."""
GOOD = {
    "until the end of the connection": (OK + b"\r\nok", b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n" + LENGTH, b"ok"),
    "no reason phrase": (b"HTTP/1.1 200\r\n" + LENGTH, b"ok"),
    "no reason phrase, but its space": (b"HTTP/1.1 200 \r\n" + LENGTH, b"ok"),
    "early hints first": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + LENGTH, b"ok"),
    "chunk extensions and trailers": (CHUNKED + b"2;x=y\r\nok\r\n0\r\nX: y\r\n\r\n", b"ok"),
    "reason phrase in Latin-1": (b"HTTP/1.1 200 Pi\xe8ce\r\n" + LENGTH, b"ok"),
}


async def _ask(port: int) -> tuple[int, bytes]:
    raw = await talk(port, request("GET /api/x"))
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", raw)
    return int(found[1]) if found else 0, raw


async def _ask_of_each(cases: dict[str, bytes], http: str, *, reset: bool) -> dict[str, tuple[int, bytes]]:
    """What a client gets for each case, of a service that answers so; `reset`: and cuts the connection at once."""
    current = b""

    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(current)
        await writer.drain()
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    answers = {}
    async with RawUpstream(misbehave) as upstream:
        untouched = {"instances": [upstream.url], "circuit_breaker": None, "outlier": None, "retry": None}
        gateway = APIGateway(config=GatewayConfig.model_validate({"services": {"up": untouched}}))
        gateway.configure_routes([{"path": "/api/*", "service": "up"}])
        async with serving(gateway, http) as port:
            for case, answer in cases.items():
                current = answer
                answers[case] = await _ask(port)
    return answers


@pytest.fixture(autouse=True)
def _no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A service's faults are a line in the log, and no traceback of ours."""
    yield
    tracebacks = [record for record in caplog.get_records("call") if record.exc_info and record.name != "uvicorn.error"]
    assert not tracebacks


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("http", SERVERS)
async def test_an_answer_that_is_none_is_502(http: str, reset: bool) -> None:
    answers = await _ask_of_each(NO_ANSWERS, http, reset=reset)

    wrong = {case: raw[:200] for case, (status, raw) in answers.items() if status != 502}
    assert not wrong
    assert all(raw.count(b"HTTP/1.1 ") == 1 for _, raw in answers.values())


@pytest.mark.parametrize("http", SERVERS)
async def test_an_answer_that_goes_wrong_later_never_looks_complete(http: str) -> None:
    answers = await _ask_of_each(BROKEN_OFF, http, reset=False)

    for case, (status, raw) in answers.items():
        complete = status == 200 and (raw.endswith(b"0\r\n\r\n") or b"content-length: 2\r\n" in raw.lower())
        assert status in (0, 200, 502), case
        assert not complete, case


@pytest.mark.parametrize("http", SERVERS)
async def test_an_odd_answer_that_is_valid_goes_through(http: str) -> None:
    answers = await _ask_of_each({case: answer for case, (answer, _) in GOOD.items()}, http, reset=False)

    for case, (status, raw) in answers.items():
        assert status == 200, case
        assert GOOD[case][1] in raw.partition(b"\r\n\r\n")[2], case


async def test_a_service_that_is_not_there_is_502() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with serving(gateway_to(address, max_retries=0)) as port:
        status, raw = await _ask(port)

    assert status == 502
    assert address.removeprefix("http://").encode() not in raw
