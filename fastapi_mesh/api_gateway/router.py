"""Two ways of putting a gateway into an application: as a router to include, and as a middleware in front of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.routing import Match

from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.gateway import APIGateway
    from fastapi_mesh.core.instance import ASGIApp, Message, Receive, Send

_FOUND = "fastapi_mesh.gateway.found"
"""Key of the scope for what `matches` found, so that `handle` need not look again. FastAPI drops a child scope."""


class GatewayRouter(APIRouter):
    """`gateway.router`: asks the gateway's own table, and leaves every other path to the application.

    The application keeps its own routes, 404s and 405s; a path of the gateway with a method that no route has is a 405
    unless the application has that route. An include `prefix=` can't be seen here (the gateway has its own), and
    `dependencies=` of the include do not apply: no path operation of FastAPI is run.
    """

    def __init__(self, gateway: APIGateway) -> None:
        super().__init__(lifespan=gateway.lifespan)
        self._gateway = gateway

    def matches(self, scope: Message) -> tuple[Match, Message]:
        if scope["type"] not in ("http", "websocket"):
            return Match.NONE, {}
        found = self._gateway.find(scope)
        if found is None:
            return Match.NONE, {}
        scope[_FOUND] = found
        return Match.PARTIAL if found.is_other_method else Match.FULL, {}

    async def handle(self, scope: Message, receive: Receive, send: Send) -> None:
        found = scope.pop(_FOUND, None) or self._gateway.find(scope)
        if found is None:
            await self.default(scope, receive, send)
        else:
            await self._gateway.answer(scope, receive, send, found)


class GatewayMiddleware:
    """`app.add_middleware(GatewayMiddleware, gateway=gateway)`: the gateway's paths never reach the application.

    20 to 40 us per request cheaper than the router. A path of the gateway with a method that no route has is a 405.
    The gateway opens when the application has started and closes after it has stopped.
    """

    def __init__(self, app: ASGIApp, *, gateway: APIGateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            found = self.gateway.find(scope)
            if found is not None:
                await self.gateway.answer(scope, receive, send, found)
                return
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, self._around_lifespan(scope, send))
            return
        await self.app(scope, receive, send)

    def _around_lifespan(self, scope: Message, send: Send) -> Send:
        opened = AsyncExitStack()

        async def send_around(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await opened.enter_async_context(self.gateway.opened(scope))
                except Exception as error:  # the server must hear of it as a failed start, whatever it is
                    await send({"type": "lifespan.startup.failed", "message": explain_start("the gateway", error)})
                    raise
            elif message["type"].startswith("lifespan.shutdown"):
                await opened.aclose()
            await send(message)

        return send_around
