"""A layer that refuses requests beyond what a gateway may answer at the same time, before their bodies are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.core.events import RequestShed
from fastapi_mesh.core.priority import NAMES, PRIORITIES, agreed_priority
from fastapi_mesh.exceptions import BulkheadFullError
from fastapi_mesh.layers.base import OVERLOADED, OVERLOADED_FOR
from fastapi_mesh.layers.bulkhead import SeatQueue

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.bulkhead import BulkheadPolicy
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Outcome, Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh


class OverloadedError(GatewayRefusalError):
    """The gateway answers as many requests as it may (`inbound_limit`)."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = OVERLOADED.decode()


class InboundSeats:
    """The seats of all routes of a gateway: an engine, so that they are counted on through reloads."""

    def __init__(self, policy: BulkheadPolicy, mesh: ServiceMesh) -> None:
        self.seats = SeatQueue(None, policy, clock=mesh.clock, observer=mesh.observers)
        self.observer: Observer = mesh.observers

    async def aclose(self) -> None:
        """Nothing to close."""


def inbound_seats(policy: BulkheadPolicy | None, engines: Engines, mesh: ServiceMesh) -> InboundSeats | None:
    """The seats of a gateway; None where it has no limit."""
    return None if policy is None else engines.kept("inbound-limit", policy, lambda: InboundSeats(policy, mesh))


class Admission:
    """Takes a seat until the answer's body has ended, and tells the service the priority of the route.

    The priority is the route's `request_priority`; `x-mesh-priority` of a trusted proxy lowers it.
    """

    __slots__ = ("_inbound", "_own", "inner")

    def __init__(self, inner: GatewayService, inbound: InboundSeats | None, priority: str | None) -> None:
        self.inner = inner
        self._inbound = inbound
        self._own = None if priority is None else PRIORITIES.index(priority.encode())

    @classmethod
    def used_by(cls, route: Route, inbound: InboundSeats | None) -> bool:
        """Whether a route needs it."""
        return inbound is not None or route.config.request_priority is not None

    async def __call__(self, request: Exchange) -> Response:
        priority = agreed_priority(request.headers, self._own)
        request.context.priority = priority
        inbound = self._inbound
        if inbound is None:
            return await self.inner(request)
        seats = inbound.seats
        try:
            await seats.acquire(request.context.deadline, priority)
        except BulkheadFullError:
            inbound.observer(RequestShed(NAMES[priority]))
            raise OverloadedError("Too many requests are being answered already.", retry_after=OVERLOADED_FOR) from None
        began = seats.now()
        try:
            response = await self.inner(request)
        except BaseException:
            seats.release()
            raise
        if response.status < 500:
            seats.measured(began)
        response.on_close(_give_back, seats)
        return response


def _give_back(seats: SeatQueue, outcome: Outcome, error: BaseException | None) -> None:
    seats.release()
