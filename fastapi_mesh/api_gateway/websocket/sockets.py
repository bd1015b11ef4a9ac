"""The WebSockets of a gateway: each handshake through its route's layers to the service, then messages both ways.

1. which route, and may it have WebSockets at all                          `table`, `config.edge.websocket`
2. the handshake, a GET like any other, through the layers to the mesh     `pipeline`, `handshake`
3. anything but 101 is the answer, before the client is accepted           `refusal`
4. after 101: frames towards the service, ASGI messages towards the client `session`, `framing`, `keepalive`
5. the end, with the codes that both sides are told                        `closes`
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.api_gateway.arrival import Arrivals
from fastapi_mesh.api_gateway.headers import NO_BODY
from fastapi_mesh.api_gateway.observe import UNMATCHED
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.api_gateway.websocket.closes import RESTART
from fastapi_mesh.api_gateway.websocket.handshake import Handshake, as_http
from fastapi_mesh.api_gateway.websocket.origins import may_open
from fastapi_mesh.api_gateway.websocket.refusal import send_refusal
from fastapi_mesh.api_gateway.websocket.session import Session, Tally
from fastapi_mesh.exceptions import ClientDisconnectedError, InvalidRequestError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.early import EarlyAnswers
    from fastapi_mesh.api_gateway.forwarded import Forwarding
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.api_gateway.target import Place
    from fastapi_mesh.api_gateway.websocket.closes import Ending
    from fastapi_mesh.core.instance import Message, Receive, Send
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.gateway")

OFF = Refusal(403, "websocket-off", "This path takes no WebSockets.")
ORIGIN = Refusal(403, "origin-not-allowed", "Pages of this origin may open no WebSocket here.")
ENDING = Refusal(503, "draining", "This gateway is about to end; open the WebSocket again.")


class SocketTally(Tally, Protocol):
    """What counts the WebSockets of a route."""

    def opened(self) -> None: ...

    def closed(self, code: int) -> None: ...


class SocketMeter(Protocol):
    """Where they are counted; `observability.gateway_metrics.GatewayMetrics` is one."""

    def websockets(self, path: str) -> SocketTally: ...


class WebSockets:
    """Answers the WebSocket scopes of a gateway whose route is known. Needs a started mesh."""

    __slots__ = (
        "_arrivals",
        "_counts",
        "_early",
        "_ending",
        "_mesh",
        "_meter",
        "_sessions",
        "_unsubscribe",
    )

    def __init__(
        self, mesh: ServiceMesh, *, forwarding: Forwarding, early: EarlyAnswers, meter: SocketMeter | None
    ) -> None:
        self._mesh = mesh
        self._arrivals = Arrivals(mesh, forwarding)
        self._early = early
        self._meter = meter
        self._counts = {"handshakes": 0, "refused": 0, "opened": 0}
        self._sessions: set[Session] = set()
        self._ending = mesh.life.ending
        self._unsubscribe = mesh.life.on_end_streams(self.end)

    def statistics(self) -> dict[str, int]:
        """Handshakes so far, of them not accepted and accepted; WebSockets that are open or in their handshake."""
        return {**self._counts, "running": len(self._sessions)}

    def end(self) -> None:
        """Close all with 1012 (Service Restart), on both sides; from now on handshakes get 503."""
        self._ending = True
        for session in list(self._sessions):
            session.end(RESTART)

    def close(self) -> None:
        """End all, and hear of no shutdown any more."""
        self._unsubscribe()
        self.end()

    async def __call__(self, scope: Message, receive: Receive, send: Send, place: Place) -> None:
        """Answer a WebSocket; `place.route` says how."""
        self._counts["handshakes"] += 1
        if (await receive())["type"] != "websocket.connect":
            return
        session = Session(receive, send, supervisor=self._mesh.supervisor, clock=self._mesh.clock)
        self._sessions.add(session)
        try:
            request, response = await session.during_handshake(self._answer(scope, place))
            try:
                if request is not None and response.upgrade is not None:
                    await self._pass(session, request, response)
                else:
                    self._counts["refused"] += 1
                    await send_refusal(scope, send, response)
            finally:
                try:
                    await session.release()
                finally:  # this task may be cancelled a second time
                    await response.aclose()
        except ClientDisconnectedError:
            self._counts["refused"] += 1
        finally:
            self._sessions.discard(session)
            await session.release()

    async def _pass(self, session: Session, request: Handshake, response: Response) -> None:
        self._counts["opened"] += 1
        tally = None if self._meter is None else self._meter.websockets(request.context.template)
        ending: Ending | None = None
        if tally is not None:
            tally.opened()
        try:
            ending = await session.pass_messages(request, response, tally)
        finally:
            if tally is not None:
                tally.closed(0 if ending is None else ending.code)
        if ending.why:
            logger.warning("%s %s: WebSocket closed: %s", request.service, request.context.template, ending.why)

    async def _answer(self, scope: Message, place: Place) -> tuple[Handshake | None, Response]:
        """What answers the handshake, and as which request it got to a service; None if it did not."""
        route = place.route
        assert route is not None, "a WebSocket without a route doesn't come here"
        http = {**scope, "method": "GET"}
        if isinstance(route, Refusal):
            return None, self._early.refuse(http, UNMATCHED, route)
        if self._ending or not route.websocket.enabled:
            return None, self._early.refuse(http, route.path, ENDING if self._ending else OFF)
        try:
            request = self._request(scope, route, place)
        except InvalidRequestError as error:
            return None, self._early.refuse(http, route.path, error)
        if not may_open(request, route.websocket.allowed_origins):
            return None, self._early.refuse(http, route.path, ORIGIN)
        assert route.upgrade is not None, "the routes of an open gateway have their chains"
        return request, await route.upgrade(request)

    def _request(self, scope: Message, route: Route, place: Place) -> Handshake:
        """The handshake as the service will get it. Raises InvalidRequestError."""
        scope = as_http(scope)
        head, origin, target = self._arrivals.read(scope, route, place)
        if head.length not in (NO_BODY, 0):
            raise InvalidRequestError("a WebSocket's handshake has no body")
        context = self._arrivals.context(route, route.policy, head, origin)
        return Handshake(place, scope, head, origin, target, b"", context)
