"""A process that is told to end does end: event streams get a proper end, downloads are completed first."""

import asyncio
import signal

import pytest

from tests.support.process import ChildProcess, Processes

pytestmark = pytest.mark.anyio

APP = "tests.integration.streaming_node_app"


async def open_stream(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def end(child: ChildProcess) -> None:
    """SIGTERM while an event stream without an end and a download are under way."""
    events, of_events = await open_stream(child.port, "/events")
    await events.readuntil(b"data: tick")
    download, of_download = await open_stream(child.port, "/download")

    child.signal(signal.SIGTERM)
    rest = await asyncio.wait_for(events.read(), 20)
    body = await asyncio.wait_for(download.readexactly(20_000), 20)
    of_events.close()
    of_download.close()

    assert rest.endswith(b"0\r\n\r\n"), "the last chunk says that this is the end"
    assert body == b"x" * 20_000
    assert await asyncio.to_thread(child.ended) in (0, -signal.SIGTERM)


@pytest.mark.spec("X-23")
async def test_an_event_stream_gets_a_proper_end_and_a_download_is_completed_first(processes: Processes) -> None:
    node = processes.app(f"{APP}:app", "--no-access-log")
    gateway = processes.app(
        f"{APP}:gateway", "--no-access-log", "--no-proxy-headers", environment={"UPSTREAM": node.url}
    )
    await node.ready()
    await gateway.ready()

    await end(gateway)
    await end(node)
