"""A standalone gateway sends a head and the beginning of a body in one write, and no head late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from fastapi_mesh.api_gateway.http_server import Limits, new_protocol
from fastapi_mesh.api_gateway.joined import JoinedTransport
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk

pytestmark = pytest.mark.anyio

OWN_SERVER = new_protocol(Limits(None, 65_536, 30.0, lambda status, reason: None))
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Writes(asyncio.Transport):
    """Keeps what is written, each call by itself, and "closed"."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.calls.append(tuple(list_of_data))

    def is_closing(self) -> bool:
        return "closed" in self.calls

    def close(self) -> None:
        self.calls.append("closed")


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
async def joined(writes: Writes) -> JoinedTransport:
    return JoinedTransport(writes, asyncio.get_running_loop())


async def test_a_head_and_the_body_that_follows_it_are_one_write(joined: JoinedTransport, writes: Writes) -> None:
    for data in (HEAD, b"body", b"more"):
        joined.write(data)
    await asyncio.sleep(0)

    assert writes.calls == [(HEAD, b"body"), b"more"]


async def test_a_head_alone_goes_out_in_the_next_turn_of_the_loop(joined: JoinedTransport, writes: Writes) -> None:
    joined.write(HEAD)
    assert writes.calls == []

    await asyncio.sleep(0)
    assert writes.calls == [HEAD]

    joined.write(b"body")
    assert writes.calls == [HEAD, b"body"]


async def test_what_is_held_back_goes_out_before_the_connection_closes(joined: JoinedTransport, writes: Writes) -> None:
    joined.write(HEAD)
    joined.close()
    await asyncio.sleep(0)

    assert writes.calls == [HEAD, "closed"]
    assert joined.is_closing()


async def test_nothing_is_written_to_a_connection_that_was_closed_meanwhile(
    joined: JoinedTransport, writes: Writes
) -> None:
    joined.write(HEAD)
    writes.close()
    await asyncio.sleep(0)

    assert writes.calls == ["closed"]


async def test_the_head_of_a_stream_arrives_before_its_first_byte() -> None:
    go_on = asyncio.Event()

    async def stream(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await go_on.wait()
        writer.write(b"2\r\nok\r\n0\r\n\r\n")
        return True

    async with RawUpstream(stream) as upstream, serving(gateway_to(upstream.url), OWN_SERVER) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /api/events"))
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            go_on.set()
            assert (await reader.read()).endswith(b"2\r\nok\r\n0\r\n\r\n")
        writer.close()
        await writer.wait_closed()


async def test_answers_of_all_kinds_follow_each_other_on_one_connection() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, target, *_rest = upstream.received[-1].split(b" ")
        head = b"HTTP/1.1 204 No Content\r\n\r\n"
        if target != b"/api/204":
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(target)
        writer.write(head + (target if method == b"GET" and target != b"/api/204" else b""))
        return True

    lines = [b"HEAD /api/a", b"GET /api/b", b"GET /api/204", b"HEAD /api/c", b"GET /nowhere", b"GET /api/last"]
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), OWN_SERVER) as port:
        payload = b"".join(line + b" HTTP/1.1\r\nhost: a\r\n\r\n" for line in lines[:-1])
        raw = await talk(port, payload + lines[-1] + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

    statuses = [part.split(b" ")[0] for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"204", b"200", b"404", b"200"]
    assert parts(raw)[0] == 200
    assert raw.endswith(b"\r\n\r\n/api/last")
    assert b"\r\n\r\n/api/bHTTP/1.1 204 " in raw
