"""A gateway as an ASGI application of its own: lifespan, health and metrics, and an answer for every other path."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import reserved
from fastapi_mesh.api_gateway.headers import CLOSE, expects_continue
from fastapi_mesh.api_gateway.problems import NO_ROUTE
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.api_gateway.target import Place
from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.gateway import APIGateway
    from fastapi_mesh.core.instance import Message, Receive, Send

logger = logging.getLogger("fastapi_mesh.gateway")

_NOT_FOUND = Refusal(404, NO_ROUTE, "No route of this gateway has this path.")
_NO_PATH = Refusal(400, "invalid-request", "The request target is neither a path nor a URL.")


async def serve_http(gateway: APIGateway, scope: Message, receive: Receive, send: Send) -> None:
    """Answer one HTTP request."""
    life = gateway.life or await gateway.open_in(scope)
    own = life.reserved.get(scope["path"].removeprefix(scope.get("root_path") or ""))
    if own is not None:
        await reserved.serve(own, life.mesh, scope, send)
        return
    place = gateway.find(scope)
    if place is None:
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if raw == b"*" and scope["method"] == "OPTIONS":  # asks about the whole server (RFC 9110 section 9.3.7)
            ending = [CLOSE] if expects_continue(scope["headers"]) else []
            await send({"type": "http.response.start", "status": 204, "headers": ending})
            await send({"type": "http.response.body", "body": b""})
            return
        place = nowhere(scope)
    await life.forward(scope, receive, send, place)


async def serve_other(gateway: APIGateway, scope: Message, receive: Receive, send: Send) -> None:
    """The lifespan, and WebSockets."""
    if scope["type"] == "lifespan":
        await _serve_lifespan(gateway, scope, receive, send)
        return
    life = gateway.life or await gateway.open_in(scope)
    await life.websockets(scope, receive, send, gateway.find(scope) or nowhere(scope))


def nowhere(scope: Message) -> Place:
    """Where a request points that is no route's."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    place = Place(raw)
    place.route = _NOT_FOUND if raw[:1] == b"/" or b"://" in raw else _NO_PATH
    return place


async def _serve_lifespan(gateway: APIGateway, scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    async with AsyncExitStack() as open_gateway:
        try:
            await open_gateway.enter_async_context(gateway.opened(scope))
        except Exception as error:  # the server must hear of it as a failed start, whatever it is
            if not isinstance(error, MeshError):
                logger.error("starting the gateway failed", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": explain_start("the gateway", error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        if gateway.life is not None:
            gateway.life.mesh.life.serving()
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
