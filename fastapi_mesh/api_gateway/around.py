"""A gateway with foreign ASGI middleware around it, whichever door a request came through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import standalone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.gateway import APIGateway
    from fastapi_mesh.api_gateway.middleware import Foreign
    from fastapi_mesh.core.instance import ASGIApp, Message, Receive, Send

_MOUNTED = "fastapi_mesh.gateway.mounted"
"""Key of the scope: the request came through a router or middleware of an application, so it is one of a route."""


class Around:
    """Makes the middleware, the first outermost, and runs requests through it. Whatever their classes raise goes up."""

    __slots__ = ("_app", "_gateway")

    def __init__(self, gateway: APIGateway, foreign: Iterable[Foreign]) -> None:
        self._gateway = gateway
        app: ASGIApp = self._inside
        for wrap in reversed(tuple(foreign)):
            app = wrap(app)
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send, *, mounted: bool) -> None:
        scope[_MOUNTED] = mounted
        await self._app(scope, receive, send)

    async def _inside(self, scope: Message, receive: Receive, send: Send) -> None:
        """What is innermost. Where the request points is found here, as a middleware may have changed its path."""
        gateway = self._gateway
        if scope.pop(_MOUNTED, False):
            await gateway.answer_found(scope, receive, send, gateway.find(scope) or standalone.nowhere(scope))
        elif scope["type"] == "http":
            await standalone.serve_http(gateway, scope, receive, send)
        else:
            await standalone.serve_other(gateway, scope, receive, send)
