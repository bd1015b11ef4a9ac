"""A process that is told to end does end: event streams get a proper end, downloads are completed first."""

import asyncio
import signal
import time

import pytest

from tests.support.process import ChildProcess, Processes

pytestmark = pytest.mark.anyio

APP = "tests.integration.streaming_node_app"


async def open_stream(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def ends(child: ChildProcess, within: float) -> float:
    started = time.monotonic()
    assert await asyncio.to_thread(child.wait, within) == -signal.SIGTERM or child.returncode == 0
    return time.monotonic() - started


async def children(processes: Processes) -> tuple[ChildProcess, ChildProcess]:
    node = processes.app(f"{APP}:app", "--no-access-log")
    gateway = processes.app(
        f"{APP}:gateway", "--no-access-log", "--no-proxy-headers", environment={"UPSTREAM": node.url}
    )
    await node.ready()
    await gateway.ready()
    return node, gateway


@pytest.mark.spec("X-23")
@pytest.mark.parametrize("which", ["node", "gateway"])
async def test_an_endless_event_stream_gets_a_proper_end(processes: Processes, which: str) -> None:
    node, gateway = await children(processes)
    child = node if which == "node" else gateway
    reader, writer = await open_stream(child.port, "/events")
    await reader.readuntil(b"data: tick")

    child.signal(signal.SIGTERM)
    rest = await asyncio.wait_for(reader.read(), 10)
    writer.close()

    assert rest.endswith(b"0\r\n\r\n"), "the last chunk says that this is the end"
    await ends(child, 10)


@pytest.mark.spec("X-23")
@pytest.mark.parametrize("which", ["node", "gateway"])
async def test_a_download_is_completed_first(processes: Processes, which: str) -> None:
    node, gateway = await children(processes)
    child = node if which == "node" else gateway
    reader, writer = await open_stream(child.port, "/download")

    child.signal(signal.SIGTERM)
    body = await asyncio.wait_for(reader.readexactly(20_000), 10)
    writer.close()

    assert body == b"x" * 20_000
    await ends(child, 10)
