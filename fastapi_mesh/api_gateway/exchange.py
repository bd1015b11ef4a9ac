"""A request inside the gateway: what goes to the service, and what the layers know of the client it came from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.core.message import Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from fastapi_mesh.api_gateway.forwarded import Origin
    from fastapi_mesh.api_gateway.headers import Head
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.api_gateway.target import Place
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.instance import Message as Scope


class Exchange(Request):
    """One request to the gateway (Spring Cloud Gateway's ServerWebExchange).

    Everything of `Request` is what the service gets: layers change it on its way in. The rest is what came in, and
    stays: `scope` is the ASGI scope, `path` the raw path below the gateway (before `strip_prefix` and `rewrite`, no
    query), `host` the checked Host header, `origin` who sent it and over what, as far as trusted proxies may say.
    `principal` is who was authenticated, None for nobody; the layers inside Authenticate may rely on it.
    """

    __slots__ = ("host", "origin", "path", "principal", "route", "scope")

    def __init__(
        self,
        place: Place,
        scope: Scope,
        head: Head,
        origin: Origin,
        target: bytes,
        body: bytes | AsyncIterable[bytes],
        context: CallContext,
    ) -> None:
        """`place` has a route, and `head` what goes on of the request's headers."""
        route = place.route
        assert isinstance(route, Route), "only a request that has a route becomes an exchange"
        super().__init__(scope["method"].encode(), route.service, target, head.headers, body, context)
        self.route = route
        self.scope = scope
        self.path = place.path
        self.host = head.host
        self.origin = origin
        self.principal: Principal | None = None

    @property
    def query(self) -> bytes:
        """The raw query string as it came in, without "?"."""
        query: bytes = self.scope["query_string"]
        return query


GatewayService = Callable[[Exchange], Awaitable[Response]]
"""What a layer of the gateway is and holds. Any `layers.base.Service` is one: it asks for less."""
