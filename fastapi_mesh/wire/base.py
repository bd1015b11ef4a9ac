"""A port for the innermost service function: sends one request to one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class SchemeWire:
    """A wire that chooses another by the instance's scheme."""

    def __init__(self, wires: Mapping[str, Wire]) -> None:
        self._wires = dict(wires)

    async def __call__(self, request: Request) -> Response:
        state = request.context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        return await self._wires[state.instance.scheme](request)

    async def aclose(self) -> None:
        for wire in dict.fromkeys(self._wires.values()):
            await wire.aclose()
