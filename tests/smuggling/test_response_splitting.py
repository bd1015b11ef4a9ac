"""No client gets what a service sends after the end of another client's answer, and no cache keeps it."""

from __future__ import annotations

import asyncio
from itertools import cycle

import pytest

from fastapi_mesh.api_gateway.http_server import Limits, new_protocol
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, serving, talk

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22")]

EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncache-control: max-age=60\r\nset-cookie: evil=1\r\n\r\nevil"
OWN_SERVER = new_protocol(Limits(None, 65_536, 30.0, lambda status, reason: None))


def answer_to(method: bytes, target: bytes, kind: str = "length") -> bytes:
    """A cacheable answer whose body is the target."""
    head = b"HTTP/1.1 %b\r\ncache-control: max-age=60\r\nx-target: %b\r\n"
    if kind == "204":
        return head % (b"204 No Content", target) + b"\r\n"
    if kind == "chunked":
        head = head % (b"200 OK", target) + b"transfer-encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(target), target)
    else:
        close = b"connection: close\r\n" if kind == "close" else b""
        head = head % (b"200 OK", target) + close + b"content-length: %d\r\n\r\n" % len(target)
        body = target
    return head if method == b"HEAD" else head + body


async def ask(port: int, target: bytes, method: bytes = b"GET") -> bytes:
    return await talk(port, method + b" " + target + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")


@pytest.mark.parametrize("cache", [False, True])
async def test_of_many_requests_at_once_each_gets_the_answer_to_its_own(cache: bool) -> None:
    kinds = cycle(("length", "chunked", "close", "204"))

    async def split(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, target, _version = service.received[-1].split(b"\r\n")[0].split(b" ")
        writer.write(answer_to(method, target, next(kinds)) + EVIL)
        await writer.drain()
        return True

    async with RawUpstream(split) as service:
        route: dict[str, object] = {"path": "/api/*", "service": "up", "cache": cache}
        async with serving(gateway_to(service.url, [route]), OWN_SERVER) as port:

            async def check(number: int) -> None:
                target = b"/api/%d" % number
                raw = await ask(port, target, b"HEAD" if number % 5 == 4 else b"GET")
                assert raw.count(b"HTTP/1.1 20") == 1
                assert b"\r\nx-target: " + target + b"\r\n" in raw
                chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(target), target)
                assert raw.partition(b"\r\n\r\n")[2] in (b"", target, chunks)

            for _ in range(2):  # the second time from the cache, where there is one
                await asyncio.gather(*(check(number) for number in range(40)))


@pytest.mark.parametrize("cache", [False, True])
async def test_what_comes_after_a_complete_answer_costs_the_connection_at_once(cache: bool) -> None:
    late, ended = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        target = service.received[-1].split(b" ")[1]
        writer.write(answer_to(b"GET", target))
        if target != b"/api/first" or late.is_set():
            return True
        await late.wait()
        writer.write(EVIL)
        assert await reader.read() == b""  # closed by the gateway, without another request
        ended.set()
        return False

    async with RawUpstream(answer) as service:
        route: dict[str, object] = {"path": "/api/*", "service": "up", "cache": cache}
        async with serving(gateway_to(service.url, [route]), OWN_SERVER) as port:
            assert (await ask(port, b"/api/first")).endswith(b"/api/first")
            late.set()
            await asyncio.wait_for(ended.wait(), 5)

            assert (await ask(port, b"/api/second")).endswith(b"/api/second")
            assert (await ask(port, b"/api/first")).endswith(b"/api/first")
            assert service.connections == 2
