"""Server-sent events through a gateway: taken up where they were left, and ended when the gateway stops."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh import APIGateway
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk, values
from tests.support.process import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-23")]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Events(RawUpstream):
    """A service with one event and no end: it waits for its reader to go."""

    def __init__(self) -> None:
        super().__init__(self._stream)
        self.begun = asyncio.Event()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"e\r\nid: 7\ndata: a\n\r\n")
        self.begun.set()
        await reader.read(1)
        self.closed.set()


async def test_a_client_that_comes_back_says_where_it_was() -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url)) as port:
        await talk(port, request("GET /api/events", "Accept: text/event-stream", "Last-Event-ID: 7 ä"))
        assert values(upstream.received[0], b"last-event-id") == ["7 ä".encode("latin-1")]
        assert values(upstream.received[0], b"accept") == [b"text/event-stream"]


async def test_stop_gives_streams_an_end_without_a_signal() -> None:
    async with Events() as upstream:
        gateway = APIGateway("127.0.0.1", free_port(), services={"up": upstream.url})
        gateway.configure_routes([{"path": "/api/*", "service": "up"}])
        loop = asyncio.get_running_loop()
        serve = loop.create_task(gateway.start())
        async with asyncio.timeout(10):
            while gateway.life is None:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            client = loop.create_task(talk(gateway.config.port, request("GET /api/events")))
            await upstream.begun.wait()
            await asyncio.sleep(0.1)
            await gateway.stop()
            assert parts(await client)[2] == b"e\r\nid: 7\ndata: a\n\r\n0\r\n\r\n"
            await upstream.closed.wait()
            await serve


async def test_a_stopped_gateway_leaves_the_streams_of_others_on_the_same_mesh_alone() -> None:
    async with Events() as upstream:
        stopping = gateway_to(upstream.url)
        async with serving(stopping):
            assert stopping.life is not None
            other = APIGateway(services={"up": upstream.url}, service_mesh=stopping.life.mesh)
            other.configure_routes([{"path": "/api/*", "service": "up"}])
            async with serving(other) as port:
                client = asyncio.get_running_loop().create_task(talk(port, request("GET /api/events")))
                await upstream.begun.wait()
                stopping.life.end_streams()
                await asyncio.wait((client,), timeout=0.2)
                assert not client.done()
                assert other.life is not None
                other.life.end_streams()
                assert parts(await client)[2].endswith(b"0\r\n\r\n")
