"""What a gateway does with the answers under way when its process is about to end."""

from __future__ import annotations

import asyncio

import pytest

from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-23")]

CHUNKED = b"transfer-encoding: chunked\r\n"
ENDLESS = b"content-type: text/event-stream\r\n" + CHUNKED


def head(headers: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n"


async def ask_and_end(headers: bytes, first: bytes, last: bytes) -> tuple[bytes, dict[str, int], bool]:
    """The body a client gets when the streams are told to end between `first` and `last`; the gateway's counts, and
    whether its connection to the service was closed.
    """
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(headers) + first)
        begun.set()
        reading = asyncio.get_running_loop().create_task(reader.read(1))
        going_on = asyncio.get_running_loop().create_task(go_on.wait())
        await asyncio.wait((reading, going_on), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            upstream.closed.set()
        reading.cancel()
        going_on.cancel()
        writer.write(last)

    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway) as port:
            client = asyncio.get_running_loop().create_task(talk(port, request("GET /api/x")))
            await begun.wait()
            await asyncio.sleep(0.1)  # the first part is on its way through
            assert gateway.life is not None
            gateway.life.mesh.life.end_streams()
            await asyncio.wait((client,), timeout=0.3)
            closed = upstream.closed.is_set()
            go_on.set()
            raw = await client
            return parts(raw)[2], gateway.statistics(), closed


async def test_an_event_stream_gets_its_last_chunk_and_the_service_is_left() -> None:
    body, counts, closed = await ask_and_end(ENDLESS, b"3\r\na\n\n\r\n", b"3\r\nb\n\n\r\n0\r\n\r\n")
    assert body == b"3\r\na\n\n\r\n0\r\n\r\n"
    assert closed
    assert (counts["ended"], counts["disconnected"], counts["truncated"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("headers", "first", "last", "body"),
    [
        pytest.param(b"content-length: 4\r\n", b"ab", b"cd", b"abcd", id="length"),
        pytest.param(
            CHUNKED, b"2\r\nab\r\n", b"2\r\ncd\r\n0\r\n\r\n", b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", id="chunked"
        ),
        pytest.param(
            b"content-type: text/event-stream\r\ncontent-length: 4\r\n", b"ab", b"cd", b"abcd", id="events-with-length"
        ),
    ],
)
async def test_an_answer_with_an_end_of_its_own_is_completed(
    headers: bytes, first: bytes, last: bytes, body: bytes
) -> None:
    got, counts, closed = await ask_and_end(headers, first, last)
    assert got == body
    assert not closed
    assert (counts["ended"], counts["disconnected"], counts["truncated"]) == (0, 0, 0)


async def test_an_event_stream_that_begins_when_the_process_ends_is_over_at_once() -> None:
    async with RawUpstream(head(ENDLESS)) as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway) as port:
            assert gateway.life is not None
            gateway.life.mesh.life.end_streams()
            raw = await talk(port, request("GET /api/x"))
            assert parts(raw)[2] == b"0\r\n\r\n"
            assert gateway.statistics()["ended"] == 1
