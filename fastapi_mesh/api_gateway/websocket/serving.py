"""What the server of a standalone gateway is told about WebSockets: which protocol, and the largest message."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, TypedDict

from fastapi_mesh.config.edge.websocket import effective

if TYPE_CHECKING:
    from fastapi_mesh.config.gateway import GatewayConfig


class ServerOptions(TypedDict):
    """Keywords of uvicorn.Config."""

    ws: str
    ws_max_size: int


def server_options(config: GatewayConfig) -> ServerOptions:
    """The protocol that waits where a client is slow, and holds no queue of messages; a limit that fits all routes.

    The server's limit is fixed when it starts: a route that allows more later is still bound by it.
    """
    own = [effective(config.websocket, route.websocket).max_message for route in config.routes]
    return {
        "ws": "auto" if find_spec("websockets") is None else "websockets-sansio",
        "ws_max_size": max(own, default=config.websocket.max_message),
    }
