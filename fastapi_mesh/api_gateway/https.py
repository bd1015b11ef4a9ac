"""A layer that lets requests pass over HTTPS only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.target import strip
from fastapi_mesh.core.message import Response

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService

REASON = "https-required"

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]*)?")


class HttpsRequiredError(GatewayRefusalError):
    """A request over plain HTTP to a route that requires HTTPS, and can't be redirected."""

    status: ClassVar[int] = 403
    reason: ClassVar[str] = REASON


class Https:
    """Redirects GET and HEAD to the same URL over HTTPS (308, RFC 9110 section 15.4.9), and refuses the rest.

    Others are refused because what they carry has gone over the wire in the clear, and must not be sent again as if
    nothing had happened. Over what a request came is what the server says, or a trusted proxy (`Origin.scheme`).
    """

    __slots__ = ("_port", "inner")

    def __init__(self, inner: GatewayService, port: int) -> None:
        """`port` is that of the HTTPS server, for redirects."""
        self.inner = inner
        self._port = b"" if port == 443 else b":%d" % port

    async def __call__(self, request: Exchange) -> Response:
        if request.origin.scheme == "https":
            return await self.inner(request)
        location = None
        if request.method in (b"GET", b"HEAD") and request.scope["type"] == "http":  # a WebSocket can't be redirected
            location = self._location(request)
        if location is None:
            raise HttpsRequiredError("This path answers over HTTPS only.")
        headers = [(b"location", location), (b"x-mesh-reason", REASON.encode()), (b"content-length", b"0")]
        return Response.of(308, headers, b"")

    def _location(self, request: Exchange) -> bytes | None:
        """The URL that the client asked for, with https; None where that can't be told.

        Trusted proxies may have named another host, and taken a prefix off the path.
        """
        said = {name: value for name, value in request.headers if name.startswith(b"x-forwarded-")}
        host = _HOST.fullmatch(said.get(b"x-forwarded-host", request.host).partition(b",")[0].strip())
        if host is None:
            return None
        prefix = said.get(b"x-forwarded-prefix", b"")
        if request.route.strip:
            prefix = prefix.removesuffix(strip(request.path, request.route.strip)[0])
        query = b"?" + request.query if request.query else b""
        return b"https://" + host[1] + self._port + prefix + request.path + query
