"""The handshake of a WebSocket as a request to a service (RFC 6455 section 4), and what its answer must be."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.websocket.framing import Frames
from fastapi_mesh.exceptions import ConfigurationError, InvalidRequestError, UpstreamProtocolError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.core.instance import Message as Scope
    from fastapi_mesh.core.message import Header, Response

logger = logging.getLogger("fastapi_mesh.gateway")

SWITCHED = 101
_OURS = b"sec-websocket-"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCHEMES = {"ws": "http", "wss": "https"}


class Handshake(Exchange):
    """The exchange of a WebSocket: a GET, to which the service answers 101.

    `frames` and `subprotocol`, the service's choice, are set when it has answered 101. What the client offered is in
    `scope["subprotocols"]`; its own `Sec-WebSocket-*` fields end at the gateway, because they belong to its connection.
    """

    __slots__ = ("frames", "subprotocol")

    frames: Frames
    subprotocol: str | None


def as_http(scope: Scope) -> Scope:
    """The scope of a WebSocket with what the layers expect of a request's: `method`, an HTTP `scheme` and version.

    `type` stays "websocket". Raises InvalidRequestError for subprotocols that are no tokens (RFC 6455 section 4.1).
    """
    subprotocols = list(dict.fromkeys(scope.get("subprotocols") or ()))
    if not all(_TOKEN.fullmatch(name) for name in subprotocols):
        raise InvalidRequestError("Sec-WebSocket-Protocol lists what is no token")
    scheme = scope.get("scheme") or "ws"
    lowered = [(name.lower(), value) for name, value in scope["headers"]]
    return {
        **scope,
        "method": "GET",
        "scheme": _SCHEMES.get(scheme, scheme),
        "http_version": scope.get("http_version") or "1.1",
        "headers": [header for header in lowered if not header[0].startswith(_OURS)],
        "subprotocols": subprotocols,
    }


class Upgrade:
    """The layer next to the mesh: asks the service for a WebSocket, with a key and extensions of our own, and judges
    its answer. Anything but 101 is passed on as it is; a 101 that does not fit the question is a 502.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: GatewayService) -> None:
        self.inner = inner

    async def __call__(self, request: Exchange) -> Response:
        assert isinstance(request, Handshake), "the chain of a handshake answers nothing else"
        policy = request.route.websocket
        try:
            frames = Frames(
                request.scope["subprotocols"], max_message=policy.max_message, compression=policy.compression
            )
        except ConfigurationError as error:
            logger.error("%s", error)  # the client is told nothing of it
            raise
        request.headers = [*request.headers, *frames.headers]
        response = await self.inner(request)
        if response.status == SWITCHED:
            try:
                if response.upgrade is None:
                    raise ValueError("101 without a connection")
                request.subprotocol = frames.open(response.headers)
                request.frames = frames
            except ValueError as error:
                await response.aclose()
                raise UpstreamProtocolError(
                    f"{request.service} answered what is no WebSocket handshake: {error}", service=request.service
                ) from error
        response.headers = without_ours(response.headers)
        return response


def without_ours(headers: list[Header]) -> list[Header]:
    """Without the fields that belong to one connection: each hop negotiates its own."""
    return [header for header in headers if not header[0].lower().startswith(_OURS)]
