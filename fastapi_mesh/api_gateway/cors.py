"""Layers that speak CORS for the services (Fetch standard section 3.2): answers that pages may read, and preflights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.config.edge.cors import ANY
from fastapi_mesh.core.message import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.edge.cors import CorsConfig
    from fastapi_mesh.config.gateway import RouteConfig
    from fastapi_mesh.core.instance import Message as Scope
    from fastapi_mesh.core.message import Header

ORIGIN = b"origin"
ASKED_METHOD = b"access-control-request-method"
ASKED_HEADERS = b"access-control-request-headers"
ASKED_NETWORK = b"access-control-request-private-network"

PREFLIGHT = "fastapi_mesh.gateway.preflight"
"""Key of the scope of a preflight that its route is to answer."""

_ALLOW_ORIGIN = b"access-control-allow-origin"
_PREFIX = b"access-control-"
_ANYBODY: Header = (_ALLOW_ORIGIN, b"*")
_CREDENTIALS: Header = (b"access-control-allow-credentials", b"true")
_PREFLIGHT_VARY: Header = (
    b"vary",
    b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
)
_SAFE_HEADERS = frozenset({b"accept", b"accept-language", b"content-language", b"content-type"})
"""What every page may send (Fetch standard section 2.2.2): no list has to name it."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class CorsOriginError(GatewayRefusalError):
    """A preflight from a page of an origin that is not allowed."""

    reason: ClassVar[str] = "cors-origin"


class CorsMethodError(GatewayRefusalError):
    """A preflight for a method that pages may not use."""

    reason: ClassVar[str] = "cors-method"


class CorsHeadersError(GatewayRefusalError):
    """A preflight for request headers that pages may not set."""

    reason: ClassVar[str] = "cors-headers"


class CorsNetworkError(GatewayRefusalError):
    """A preflight of a public page for a gateway in a private network."""

    reason: ClassVar[str] = "cors-private-network"


class CorsRules:
    """One CorsConfig, ready for the data path."""

    __slots__ = ("_any_header", "_anybody", "_config", "_exposed", "_headers", "_methods", "_origins", "_pattern")

    def __init__(self, config: CorsConfig) -> None:
        self._config = config
        self._anybody = ANY in config.allow_origins
        self._origins = frozenset(origin.encode() for origin in config.allow_origins)
        self._pattern = None if config.allow_origin_regex is None else re.compile(config.allow_origin_regex)
        methods = config.allow_methods
        self._methods = None if methods is None or ANY in methods else frozenset(each.encode() for each in methods)
        self._any_header = ANY in config.allow_headers
        self._headers = _SAFE_HEADERS | {name.encode() for name in config.allow_headers}
        exposed = b"*" if ANY in config.expose_headers else ", ".join(config.expose_headers).encode()
        self._exposed: Header | None = (b"access-control-expose-headers", exposed) if exposed else None

    def allows(self, origin: bytes) -> bool:
        """Whether pages of `origin` may read answers. Compared byte for byte, as browsers do."""
        if self._anybody or origin in self._origins:
            return True
        return self._pattern is not None and self._pattern.fullmatch(origin.decode("latin-1")) is not None

    def mark(self, headers: Sequence[Header], origin: bytes | None) -> list[Header]:
        """The headers of an answer to a request from `origin`; what the service said of CORS is replaced."""
        kept = [header for header in headers if not header[0].startswith(_PREFIX)]
        if not self._anybody:
            _vary(kept, b"Origin")  # also without an origin: a cache must not give that answer to a page
        if origin is not None and self.allows(origin):
            kept.append(_ANYBODY if self._anybody else (_ALLOW_ORIGIN, origin))
            if self._config.allow_credentials:
                kept.append(_CREDENTIALS)
            if self._exposed is not None:
                kept.append(self._exposed)
        return kept

    def preflight(self, headers: Iterable[Header], methods: Iterable[str] | None) -> list[Header]:
        """The headers that answer a preflight for a route with `methods`. Raises a GatewayRefusalError (403)."""
        said = _joined(headers)
        origin, method = said[ORIGIN], said[ASKED_METHOD]
        if not self.allows(origin):
            raise CorsOriginError("Pages of this origin may not call here.", headers=(_PREFLIGHT_VARY,))
        if self._methods is not None and method not in self._methods:
            raise CorsMethodError("Pages may not use this method here.", headers=(_PREFLIGHT_VARY,))
        asked = [name.strip().lower() for name in said.get(ASKED_HEADERS, b"").split(b",") if name.strip()]
        if not all(name in self._headers or (self._any_header and _TOKEN.fullmatch(name)) for name in asked):
            raise CorsHeadersError("Pages may not set these request headers here.", headers=(_PREFLIGHT_VARY,))
        answer = [_ANYBODY if self._anybody else (_ALLOW_ORIGIN, origin), _PREFLIGHT_VARY]
        if self._config.allow_credentials:
            answer.append(_CREDENTIALS)
        if said.get(ASKED_NETWORK) == b"true":
            if not self._config.allow_private_network:
                raise CorsNetworkError("Public pages may not call this gateway.", headers=(_PREFLIGHT_VARY,))
            answer.append((b"access-control-allow-private-network", b"true"))
        answer.append((b"access-control-allow-methods", self._listed(method, methods)))
        if names := (b", ".join(asked) if self._any_header else b", ".join(sorted(self._headers - _SAFE_HEADERS))):
            answer.append((b"access-control-allow-headers", names))
        answer.append((b"access-control-max-age", str(self._config.max_age).encode()))
        return answer

    def _listed(self, asked: bytes, methods: Iterable[str] | None) -> bytes:
        """Methods to name: never `*`, which means nothing to a request with credentials."""
        if self._methods is not None:
            return b", ".join(sorted(self._methods))
        if methods is not None and self._config.allow_methods is None:
            return ", ".join(sorted(methods)).encode()
        return asked


class Cors:
    """Marks every answer of a route, refusals too, so that a page may read why it was refused."""

    __slots__ = ("_rules", "inner")

    def __init__(self, inner: GatewayService, rules: CorsRules) -> None:
        self.inner = inner
        self._rules = rules

    async def __call__(self, request: Exchange) -> Response:
        response = await self.inner(request)
        if PREFLIGHT not in request.scope:
            response.headers = self._rules.mark(response.headers, origin_of(request.scope["headers"]))
        return response


class Preflight:
    """Answers preflights, so that services needn't. No credential comes with one, so none is asked for."""

    __slots__ = ("_methods", "_rules", "inner")

    def __init__(self, inner: GatewayService, rules: CorsRules, methods: Iterable[str] | None) -> None:
        self.inner = inner
        self._rules = rules
        self._methods = methods

    async def __call__(self, request: Exchange) -> Response:
        if PREFLIGHT in request.scope:
            return Response.of(204, self._rules.preflight(request.scope["headers"], self._methods), b"")
        return await self.inner(request)


def rules_of(route: RouteConfig, gateway: CorsConfig | None) -> CorsRules | None:
    """What counts for a route: its own setting, else the gateway's; None where CORS is off."""
    config = gateway if route.cors is None else route.cors
    return CorsRules(config) if config else None


def origin_of(headers: Iterable[Header]) -> bytes | None:
    """The request's `Origin`; None without one, or with several, which no browser sends."""
    found = [value for name, value in headers if name == ORIGIN]
    return found[0] if len(found) == 1 else None


def asked_method(headers: Iterable[Header]) -> bytes | None:
    """The method that a preflight asks for (Fetch standard section 3.2.2); None for a request that is no preflight."""
    origin = method = None
    for name, value in headers:
        if name == ORIGIN:
            if origin is not None:
                return None
            origin = value
        elif name == ASKED_METHOD:
            method = value
    return None if origin is None else method


def preflight_route(
    scope: Scope, gateway: CorsConfig | None, find: Callable[[str], Route | Refusal | None]
) -> Route | None:
    """The route that answers a preflight: the one of the method that it asks for, if CORS is on there.

    `find` gives what the table has for a method. None for an OPTIONS request that is no preflight, or is one for a
    route without CORS: then it is a request like others.
    """
    scope.pop(PREFLIGHT, None)
    asked = asked_method(scope["headers"])
    if asked is None:
        return None
    found = find(asked.decode("latin-1"))
    if found is None or isinstance(found, Refusal):
        return None
    if not (gateway if found.config.cors is None else found.config.cors):
        return None
    scope[PREFLIGHT] = True
    return found


def _joined(headers: Iterable[Header]) -> dict[bytes, bytes]:
    """Lists of one header in several lines are one list (RFC 9110 section 5.3)."""
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        said[name] = said[name] + b"," + value if name in said else value
    return said


def _vary(headers: list[Header], name: bytes) -> None:
    listed = [part.strip().lower() for each, value in headers if each == b"vary" for part in value.split(b",")]
    if b"*" not in listed and name.lower() not in listed:
        headers.append((b"vary", name))
