"""The ASGI applications that benchmarks/gateway.py measures; each is imported in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UPSTREAM = os.environ.get("BENCH_UPSTREAM", "")
BODY = os.environ.get("BENCH_BODY", "").encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def static(scope: Message, receive: Receive, send: Send) -> None:
    """The floor: an ASGI application that answers from memory."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def __getattr__(name: str) -> object:
    """Applications that need a package are made when they are asked for."""
    if name == "gateway":
        from fastapi_mesh import APIGateway

        made = APIGateway(services={"upstream": UPSTREAM})
        made.configure_routes([{"path": "/api/*", "service": "upstream"}])
        return made
    if name == "proxy_lib":
        from fastapi_proxy_lib.fastapi.app import reverse_http_app

        return reverse_http_app(base_url=f"{UPSTREAM}/")
    raise AttributeError(name)
