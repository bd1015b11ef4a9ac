"""What the WebSocket tests share: services of several kinds, a client, and a gateway in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve

from fastapi_mesh.api_gateway import APIGateway
from tests.api_gateway.gateway_support import gateway_to, serving

IMPLEMENTATIONS = [
    "websockets-sansio",
    "wsproto",
    pytest.param(
        "websockets",
        marks=[
            pytest.mark.filterwarnings("ignore::DeprecationWarning"),
            pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
        ],
    ),
]
"""uvicorn's own three protocols for WebSockets."""
Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    """Send everything back; texts that begin with "close:" give the code and reason to close with."""
    async for message in connection:
        if isinstance(message, str) and message.startswith("close:"):
            _, code, reason = message.split(":")
            await connection.close(int(code), reason)
            return
        await connection.send(message)


class Service:
    """A service on `websockets`' own server. `requests` are the handshakes it got, `closes` the codes it was told."""

    def __init__(self, handler: Handler = echo, **options: object) -> None:
        self.handler = handler
        self.options = {"compression": None, "ping_interval": None, **options}
        self.requests: list[websockets.Request] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.connections: set[ServerConnection] = set()
        self.left = asyncio.Event()
        self.url = ""

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.requests.append(connection.request)
        self.connections.add(connection)
        try:
            await self.handler(connection)
            await connection.wait_closed()
        except websockets.ConnectionClosed:
            pass
        finally:
            self.connections.discard(connection)
            self.closes.append((connection.close_code, connection.close_reason))
            self.left.set()

    async def __aenter__(self) -> Service:
        self._server = await serve(self._serve, "127.0.0.1", 0, **self.options)  # type: ignore[arg-type]
        self.url = f"http://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def close_code(self) -> int | None:
        """The code that the last connection ended with, as the service saw it."""
        async with asyncio.timeout(20):
            await self.left.wait()
        return self.closes[-1][0]


@asynccontextmanager
async def gateway_in_front(
    upstream: str | list[str],
    *,
    http: str = "httptools",
    ws: str = "websockets-sansio",
    routes: list[dict[str, object]] | None = None,
    server: dict[str, object] | None = None,
    **options: object,
) -> AsyncIterator[tuple[APIGateway, int]]:
    """A gateway of its own on uvicorn, and its port."""
    gateway = gateway_to(upstream, routes, **options)
    async with serving(gateway, http, ws=ws, **(server or {})) as port:
        yield gateway, port


def connect(port: int, path: str = "/api/ws", **options: object) -> websockets.connect:
    """A client's WebSocket to the gateway."""
    settings = {"ping_interval": None, "proxy": None, "max_size": None, **options}
    return websockets.connect(f"ws://127.0.0.1:{port}{path}", **settings)  # type: ignore[arg-type]


async def refusal(port: int, path: str = "/api/ws", **options: object) -> websockets.Response:
    """The answer to a handshake that is refused."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(port, path, **options):
            pass
    return caught.value.response


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """The code and reason that the client was closed with."""
    with contextlib.suppress(websockets.ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                await client.recv()
    await client.wait_closed()
    return client.close_code, client.close_reason


async def until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Wait for what other tasks of this loop do in their own time."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
    assert condition(), what
