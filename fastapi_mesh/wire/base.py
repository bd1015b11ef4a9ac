"""A port for the innermost service function: sends one request to one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Request, Response


class Wire(Protocol):
    """Sends `request` to `request.context.instance` and returns its answer once the head is here.

    Raises UpstreamConnectionError, UpstreamProtocolError, UpstreamTimeoutError, InvalidRequestError; whatever the
    request's own body iterator raises passes through unchanged. Honours `context.attempt_deadline` up to the response
    head, `context.policy.connect_timeout` and `.idle_timeout`, and `context.hold`.
    """

    async def __call__(self, request: Request) -> Response: ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
