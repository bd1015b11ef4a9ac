"""The wires of a mesh: one per scheme, made when the first instance with that scheme is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.wire.asgi import AsgiWire
from fastapi_mesh.wire.h1 import H1Wire

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import ASGIApp, Scheme
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.core.tasks import Supervisor
    from fastapi_mesh.wire.asgi_lifespan import AsgiLifespan
    from fastapi_mesh.wire.base import Wire


class Wires:
    """Sends a request over the wire that its instance's scheme names; itself a `wire.base.Wire`."""

    def __init__(self, supervisor: Supervisor, *, clock: Clock, observer: Observer) -> None:
        self._observer = observer
        self._asgi = AsgiWire(supervisor, clock=clock)
        self._wires: dict[str, Wire] = {}

    def lifespan_of(self, app: ASGIApp, name: str) -> AsgiLifespan:
        """The lifespan of an application of this process."""
        return self._asgi.lifespan(app, name=name)

    async def __call__(self, request: Request) -> Response:
        state = request.context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        scheme = state.instance.scheme
        wire = self._wires.get(scheme) or self._make(scheme)
        return await wire(request)

    def _make(self, scheme: Scheme) -> Wire:
        match scheme:
            case "http" | "https":
                self._wires["http"] = self._wires["https"] = H1Wire(observer=self._observer)
            case "h2" | "h2c":
                from fastapi_mesh.wire.h2.wire import Http2Wire  # imported late: few need HTTP/2, and it is an extra

                self._wires["h2"] = self._wires["h2c"] = Http2Wire(observer=self._observer)
            case "asgi":
                self._wires["asgi"] = self._asgi
        return self._wires[scheme]

    async def aclose(self) -> None:
        """Close every connection. The mesh may be started again: the next call makes new wires."""
        wires, self._wires = self._wires, {}
        for wire in dict.fromkeys(wires.values()):
            await wire.aclose()
