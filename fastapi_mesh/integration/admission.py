"""Refuses requests beyond what this node can answer at the same time, before anything of them but the head is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.core.events import RequestShed
from fastapi_mesh.core.priority import NAMES
from fastapi_mesh.core.problem import DETAILS, document, problem
from fastapi_mesh.exceptions import BulkheadFullError, DeadlineExceededError
from fastapi_mesh.integration.inbound import read_inbound
from fastapi_mesh.integration.pages import send_answer
from fastapi_mesh.integration.priority import RoutePriorities
from fastapi_mesh.layers.base import OVERLOADED, OVERLOADED_FOR
from fastapi_mesh.layers.bulkhead import SeatQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_mesh.config.bulkhead import BulkheadPolicy
    from fastapi_mesh.service_mesh.mesh import ServiceMesh


class Admission:
    """Takes a seat for each HTTP request until the application is through with it (`inbound_limit` of the settings).

    Refused is by 503 with Retry-After and `x-mesh-reason: overloaded`: callers that are nodes of a mesh try another
    instance at once, and count it against none. `free` are paths that need no seat, so that an overloaded node is not
    taken for a dead one. A change of the settings counts from the next request on; those that run are not counted then.
    """

    def __init__(self, mesh: ServiceMesh, app: ASGIApp, free: Iterable[str]) -> None:
        self._mesh = mesh
        self._app = app
        self._free = frozenset(free)
        self._policy: BulkheadPolicy | None = None
        self._seats: SeatQueue | None = None
        self._priorities = RoutePriorities()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        policy = self._mesh.config.inbound_limit
        if policy is not self._policy:
            self._change(policy)
        seats = self._seats
        if seats is None or scope["path"] in self._free:
            await self._app(scope, receive, send)
            return
        priority = self._priorities.of(scope)
        if not seats.take(priority) and not await self._wait(seats, scope, send, priority):
            return
        try:
            await self._app(scope, receive, _timed(seats, send) if seats.measures else send)
        finally:
            seats.release()

    def statistics(self) -> dict[str, int]:
        """Requests in flight and in the queue, and the limit; all 0 where there is none."""
        return {"in_flight": 0, "queued": 0, "limit": 0} if self._seats is None else self._seats.statistics()

    def _change(self, policy: BulkheadPolicy | None) -> None:
        if policy != self._policy:
            mesh = self._mesh
            self._seats = None if policy is None else SeatQueue(None, policy, clock=mesh.clock, observer=mesh.observers)
        self._policy = policy

    async def _wait(self, seats: SeatQueue, scope: Scope, send: Send, priority: int) -> bool:
        """Wait for a seat; False when there is none, and that was answered."""
        mesh = self._mesh
        inbound = read_inbound(mesh, scope["headers"], mesh.clock.now())
        try:
            await seats.acquire(inbound.deadline, priority)
        except BulkheadFullError:
            mesh.observers(RequestShed(NAMES[priority]))
            reason = OVERLOADED.decode()
            answer = document(503, reason, DETAILS[reason], trace_id=inbound.request_id, retry_after=OVERLOADED_FOR)
            await send_answer(scope, send, answer)
            return False
        except DeadlineExceededError as error:
            await send_answer(scope, send, problem(error, inbound.request_id))
            return False
        return True


def _timed(seats: SeatQueue, send: Send) -> Send:
    """`send` that tells `seats` how long it took to the head of the answer; a failure says nothing."""
    began = seats.now()
    waiting = True

    async def timed(message: Message) -> None:
        nonlocal waiting
        if waiting and message["type"] == "http.response.start":
            waiting = False
            if message["status"] < 500:
                seats.measured(began)
        await send(message)

    return timed
