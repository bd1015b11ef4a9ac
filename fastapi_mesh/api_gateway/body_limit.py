"""A layer that refuses request bodies that are too long, before they are read where their length is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.client import BodyTooLargeError, Client

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Response


class BodyLimit:
    """Answers 413 (RFC 9110 section 15.5.14) to a Content-Length above `limit` bytes, without asking for the body.

    A chunked body is counted as it comes; the byte too many ends the call to the service, whose connection is closed
    in the middle of the request, and the client gets 413 if nothing of the answer has been sent.
    """

    __slots__ = ("_limit", "inner")

    def __init__(self, inner: GatewayService, limit: int) -> None:
        self.inner = inner
        self._limit = limit

    async def __call__(self, request: Exchange) -> Response:
        body = request.body
        if isinstance(body, Client):
            body.limit = self._limit
            if body.length > self._limit:
                raise BodyTooLargeError(self._limit)
        return await self.inner(request)
