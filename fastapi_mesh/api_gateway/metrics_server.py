"""The port of its own for metrics and health: a second listener of the same process, in plain HTTP.

Needs the `server` extra.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState

from fastapi_mesh.api_gateway.http_server import Limits, new_protocol
from fastapi_mesh.api_gateway.reserved import respond

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.reserved import Page
    from fastapi_mesh.core.instance import Message, Receive, Send

MAX_CONNECTIONS = 100
MAX_HEAD = 16384
HEAD_TIMEOUT = 10.0
KEEP_ALIVE = 75
"""Seconds; longer than the usual minute between two scrapes."""
GRACE = 1.0
"""Seconds that a scrape under way may take when the server closes."""


class MetricsServer:
    """Answers some paths on sockets of its own, in the running event loop; anything else is a 404."""

    def __init__(self, answers: Mapping[str, Page]) -> None:
        self._answers = answers
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets, which `aclose` closes. Raises OSError when one can't be listened on."""
        config = uvicorn.Config(
            self._serve,
            http=new_protocol(Limits(MAX_CONNECTIONS, MAX_HEAD, HEAD_TIMEOUT, lambda status, reason: None)),
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        config.load()
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            return config.http_protocol_class(config=config, server_state=self._state, app_state={})  # type: ignore[call-arg] # uvicorn's own call

        for each in sockets:
            self._servers.append(await loop.create_server(protocol, sock=each))

    async def aclose(self) -> None:
        """Close the listeners, and the connections when their answers are complete."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if tasks := set(self._state.tasks):
            await asyncio.wait(tasks, timeout=GRACE)
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._servers.clear()

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        answer = self._answers.get(scope["path"])
        if answer is not None:
            await respond(answer, scope, send)
            return
        body = " ".join(sorted(self._answers)).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
