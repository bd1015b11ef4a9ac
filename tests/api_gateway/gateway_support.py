"""What the gateway's tests share: real servers in front, an upstream that keeps the bytes it got, a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn

from fastapi_mesh.api_gateway import APIGateway

SERVERS = [
    "h11",
    "httptools",
    pytest.param(
        "zttp",
        marks=pytest.mark.skipif(importlib.util.find_spec("zttp") is None, reason="zttp is not installed"),
    ),
]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


class RawUpstream:
    """A service that stores each request exactly as it came, and answers with `answer`: bytes, or a coroutine function
    that writes what it likes (the connection is closed after it unless it returns True).

    `closed` is set when a peer has closed its connection. `reads_body=False` leaves the body to the answer.
    """

    def __init__(self, answer: bytes | Answer = OK, *, reads_body: bool = True) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self.reads_body = reads_body
        self.closed = asyncio.Event()
        self.connections = 0
        self.url = ""
        self._tasks: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> RawUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        except asyncio.CancelledError:  # by __aexit__; asyncio's streams log a handler that ends as cancelled
            self.closed.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.received.append(head)
        if self.reads_body:
            self.received[-1] += await read_body(reader, head)
        if isinstance(self.answer, bytes):
            writer.write(self.answer)
            await writer.drain()
            return True
        return bool(await self.answer(reader, writer))


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body of a request, raw: chunks with their sizes."""
    lowered = head.lower()
    if b"\r\ntransfer-encoding: chunked\r\n" in lowered:
        body = b""
        while True:
            size = await reader.readuntil(b"\r\n")
            body += size + await reader.readexactly(int(size, 16) + 2)
            if int(size, 16) == 0:
                return body
    if b"\r\ncontent-length: " in lowered:
        length = int(lowered.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        return await reader.readexactly(length)
    return b""


@asynccontextmanager
async def serving(app: object, http: object = "httptools", **options: object) -> AsyncIterator[int]:
    """Run `app` on uvicorn in this event loop; gives the port."""
    # TCP by name: without it asyncio leaves Nagle on, and each answer on a kept connection takes 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        settings = {"proxy_headers": False, "access_log": False, "timeout_graceful_shutdown": 2, **options}
        config = uvicorn.Config(app, http=http, log_config=None, **settings)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            while not server.started:
                if server.should_exit:
                    raise RuntimeError("the server did not start")
                await anyio.sleep(0.005)
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True


def gateway_to(
    upstream: str | list[str], routes: list[dict[str, object]] | None = None, **options: object
) -> APIGateway:
    """A gateway whose paths below /api all lead to one service."""
    gateway = APIGateway(services={"up": upstream}, **options)  # type: ignore[arg-type]
    gateway.configure_routes(routes or [{"path": "/api/*", "service": "up"}])
    return gateway


async def talk(port: int, payload: bytes, *, until_close: bool = True) -> bytes:
    """Send `payload` and read until the server closes (it must be asked to), or until a whole head has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(payload)
        await writer.drain()
        async with asyncio.timeout(10):
            return await (reader.read() if until_close else reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request(line: str, *headers: str, body: bytes = b"", host: str | None = "gw") -> bytes:
    """A request that asks the server to close afterwards."""
    lines = [f"{line} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def parts(raw: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers (names in lower case) and the rest of a response."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return int(status.split()[1]), headers, rest


def values(raw: bytes, name: bytes) -> list[bytes]:
    """The values of one header of a request or response."""
    lines = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [line.partition(b":")[2].strip() for line in lines if line.partition(b":")[0].lower() == name]
