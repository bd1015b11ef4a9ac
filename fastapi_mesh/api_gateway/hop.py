"""A layer around the mesh: what the service answered becomes what may be said to the client (RFC 9110 section 7.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import ResponseNames, read_response
from fastapi_mesh.exceptions import UpstreamProtocolError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Header, Response


class Hop:
    """Removes hop-by-hop fields and `dropped`, adds `Via`; an answer that no server could pass on is a 502."""

    __slots__ = ("_names", "_via", "inner")

    def __init__(self, inner: GatewayService, *, dropped: frozenset[bytes], via: Header) -> None:
        self.inner = inner
        self._names = ResponseNames(dropped)
        self._via = via

    async def __call__(self, request: Exchange) -> Response:
        response = await self.inner(request)
        status = response.status
        try:
            if not 200 <= status <= 599 and response.upgrade is None:
                raise ValueError(f"status {status}")
            headers = read_response(status, response.headers, self._names)
        except ValueError as error:
            await response.aclose()
            raise UpstreamProtocolError(
                f"{request.service} answered what can't be passed on: {error}", service=request.service
            ) from error
        headers.append(self._via)
        response.headers = headers
        return response
