"""A layer that gives each request an id, for the service and for the client: `X-Request-ID`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi_mesh.core.context import new_request_id

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Response

REQUEST_ID = b"x-request-id"
_VALID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")


def accept(value: bytes | None) -> str:
    """An id that a trusted proxy sent, "" if there is none or it doesn't look like one."""
    return "" if value is None or _VALID.fullmatch(value) is None else value.decode("ascii")


class RequestId:
    """Keeps the id that is in the context already (a trusted proxy's, or the node's around us), else makes one.

    The service's own `X-Request-ID`, if any, has been dropped further in.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: GatewayService) -> None:
        self.inner = inner

    async def __call__(self, request: Exchange) -> Response:
        context = request.context
        if not context.request_id:
            context.request_id = new_request_id()
        header = (REQUEST_ID, context.request_id.encode())
        request.headers.append(header)
        response = await self.inner(request)
        if context.request_id.encode() != header[1]:  # a transformer gave it another one
            header = (REQUEST_ID, context.request_id.encode())
        response.headers.append(header)
        return response
