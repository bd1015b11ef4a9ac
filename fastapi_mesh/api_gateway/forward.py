"""The data path: from ASGI to the layers and the mesh, and back, byte for byte.

1. which route, and is the request one that can be passed on at all        `table`, `headers`, `target`
2. what the service is told of the client                                  `forwarded`
3. the layers, then the mesh                                               `pipeline`
4. head and body to the client as they come; the last part says so
5. the client went away: the task is cancelled, the service's answer closed
6. the service died in the middle: the client's connection is closed without a valid end
7. this process ends: server-sent events, which have no end of their own, get one
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.arrival import Arrivals
from fastapi_mesh.api_gateway.buffer import is_buffered
from fastapi_mesh.api_gateway.client import Client
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.headers import CLOSE, NO_BODY, expects_continue
from fastapi_mesh.api_gateway.observe import UNMATCHED
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.exceptions import ClientDisconnectedError, InvalidRequestError, MeshError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.client import Watch
    from fastapi_mesh.api_gateway.early import EarlyAnswers
    from fastapi_mesh.api_gateway.forwarded import Forwarding
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.api_gateway.target import Place
    from fastapi_mesh.core.instance import Message, Receive, Send
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.gateway")


BROKEN = {"type": "fastapi_mesh.response.broken"}
"""A message that nobody takes. Starlette's BaseHTTPMiddleware (`@app.middleware("http")`) ends the response properly
before it passes an error of the application on; only what it can't pass on makes it fail in time.
"""


class TruncatedResponseError(MeshError):
    """A service died in the middle of its answer, of which the client has a part already.

    It leaves the ASGI application, because that makes every server close the client's connection without a valid end.
    """

    reason = "truncated-response"


class Forward:
    """Answers requests whose route is known. Needs a started mesh."""

    __slots__ = (
        "_arrivals",
        "_counts",
        "_early",
        "_ending",
        "_running",
        "_unsubscribe",
        "_watch",
    )

    def __init__(self, mesh: ServiceMesh, *, forwarding: Forwarding, watch: Watch, early: EarlyAnswers) -> None:
        self._arrivals = Arrivals(mesh, forwarding)
        self._watch = watch
        self._early = early
        self._counts = {"requests": 0, "refused": 0, "disconnected": 0, "truncated": 0, "ended": 0}
        self._running: dict[Client, Response] = {}
        """Answers whose body is on its way."""
        self._ending = mesh.life.ending
        self._unsubscribe = mesh.life.on_end_streams(self.end_streams)

    def statistics(self) -> dict[str, int]:
        """Requests so far, of them refused before any layer, left by their client, cut short by their service, and
        event streams ended because this process does.
        """
        return dict(self._counts)

    def close(self) -> None:
        """Hear of no shutdown any more."""
        self._unsubscribe()

    async def __call__(self, scope: Message, receive: Receive, send: Send, place: Place) -> None:
        """Answer a request; `place.route` says how."""
        self._counts["requests"] += 1
        client = Client(receive, self._watch)
        response: Response | None = None
        try:
            response = await self._answer(scope, client, place)
            if client.is_unasked and expects_continue(scope["headers"]) and CLOSE not in response.headers:
                response.headers = [*response.headers, CLOSE]
            client.answered()
            await self._deliver(scope, send, client, response)
        except ClientDisconnectedError:
            self._counts["disconnected"] += 1
        except asyncio.CancelledError:
            if not client.is_what_cancelled():
                raise
            if client.ended and response is not None:
                await self._end(send, response)
            else:
                self._counts["disconnected"] += 1
        finally:
            client.release()
            self._running.pop(client, None)
            if response is not None:
                await response.aclose()

    async def _answer(self, scope: Message, client: Client, place: Place) -> Response:
        route = place.route
        assert route is not None, "a request without a route doesn't come here"
        if isinstance(route, Refusal):
            return self._refuse(scope, UNMATCHED, route)
        try:
            request = self._request(scope, client, route, place)
        except InvalidRequestError as error:
            return self._refuse(scope, route.path, error)
        assert route.chain is not None, "the routes of an open gateway have their chains"
        return await route.chain(request)

    def _request(self, scope: Message, client: Client, route: Route, place: Place) -> Exchange:
        """The request as the service will get it. Raises InvalidRequestError."""
        head, origin, target = self._arrivals.read(scope, route, place)
        policy = route.policy
        body: bytes | Client = b""
        if head.length == NO_BODY or head.length == 0:
            client.no_body()
        else:
            body = client
            client.length = head.length
            client.expects_continue = head.expects_continue
            client.offers_upgrade = head.offers_upgrade
            if not is_buffered(client) and route.streaming is not None:
                policy = route.streaming
                client.pause = policy.idle_timeout
        context = self._arrivals.context(route, policy, head, origin)
        return Exchange(place, scope, head, origin, target, body, context)

    def _refuse(self, scope: Message, path: str, why: Refusal | InvalidRequestError) -> Response:
        self._counts["refused"] += 1
        return self._early.refuse(scope, path, why)

    async def _deliver(self, scope: Message, send: Send, client: Client, response: Response) -> None:
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        complete = response.at_end
        if complete or scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        if self._ending and _is_endless(response):
            await self._end(send, response)
            return
        running = self._running
        running[client] = response
        while True:
            try:
                data = await response.read()
            except MeshError as error:
                running.pop(client, None)
                truncated = self._truncated(error)
                with suppress(Exception):  # most servers raise, as they should
                    await send(BROKEN)
                raise truncated from None
            if response.at_end or not data:
                running.pop(client, None)
                await send({"type": "http.response.body", "body": data})
                return
            await send({"type": "http.response.body", "body": data, "more_body": True})

    def end_streams(self) -> None:
        """Give event streams a proper end, also those that begin from now on."""
        self._ending = True
        for client, response in list(self._running.items()):
            if _is_endless(response):
                del self._running[client]
                client.end()

    async def _end(self, send: Send, response: Response) -> None:
        """Give an event stream a proper end: its client opens it again, and gets to another process."""
        self._counts["ended"] += 1
        await response.aclose()
        await send({"type": "http.response.body", "body": b""})

    def _truncated(self, error: MeshError) -> TruncatedResponseError:
        self._counts["truncated"] += 1
        text = f"{error.service or 'a service'} broke off in the middle of its answer: {error}"
        logger.warning("%s", text)
        return TruncatedResponseError(text, service=error.service)


def _is_endless(response: Response) -> bool:
    """Server-sent events may be cut anywhere, as their reader drops an incomplete event and opens the stream again
    (WHATWG HTML section 9.2.6). A download may not, even one of unknown length: it would look complete.
    """
    kind = response.header(b"content-type") or b""
    return kind.lower().startswith(b"text/event-stream") and response.header(b"content-length") is None
