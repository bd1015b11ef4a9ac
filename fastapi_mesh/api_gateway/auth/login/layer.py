"""Layers for browsers: a session says who it is, and who has none is sent to log in; no session goes further in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastapi_mesh.api_gateway.auth.base import ProviderUnavailableError
from fastapi_mesh.api_gateway.auth.challenges import AuthenticationUnavailableError
from fastapi_mesh.api_gateway.auth.login.browser import (
    SAFE_METHODS,
    address_of,
    comes_from,
    is_navigation,
)
from fastapi_mesh.api_gateway.auth.login.refusals import CrossSiteError
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.public import origin_of

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.auth.layer import Authenticate
    from fastapi_mesh.api_gateway.auth.login.cookies import Jar, Sent
    from fastapi_mesh.api_gateway.auth.login.doors import LoginDesk
    from fastapi_mesh.api_gateway.auth.login.session import Session
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Header, Response

_SHARED = (b"public", b"s-maxage", b"must-revalidate", b"private", b"no-store")


class StripSessions:
    """Takes the gateway's own cookies out of requests on routes that ask for no authentication."""

    __slots__ = ("_jar", "inner")

    def __init__(self, inner: GatewayService, jar: Jar) -> None:
        self.inner = inner
        self._jar = jar

    async def __call__(self, request: Exchange) -> Response:
        self._jar.take(request)
        return await self.inner(request)


class Browsers(NamedTuple):
    """What a route does for browsers: `desks` are the logins of its providers; with `redirects` a navigation without
    any credential is sent to the first of them.
    """

    desks: tuple[LoginDesk, ...]
    jar: Jar
    redirects: bool


class AuthenticateBrowser:
    """Authenticates by credentials, which nobody sends unless they mean it, else by a session."""

    __slots__ = ("_browsers", "_credentials", "inner")

    def __init__(self, inner: GatewayService, credentials: Authenticate, browsers: Browsers) -> None:
        self.inner = inner
        self._credentials = credentials
        self._browsers = browsers

    async def __call__(self, request: Exchange) -> Response:
        desks, jar, redirects = self._browsers
        credentials = self._credentials
        sent = jar.take(request)
        found = credentials.take(request)
        if found:
            await credentials.identify(request, found)
            return await self.inner(request)
        if sent:
            for desk in desks:
                session = await self._session(desk, sent)
                if session is not None:
                    return await self._answer(request, desk, session, sent)
        if credentials.optional:
            return await self.inner(request)
        if redirects and is_navigation(request):
            credentials.count(desks[0].name, "missing")
            return await desks[0].send_to_login(request, sent, address_of(request))
        raise credentials.missing()

    async def _session(self, desk: LoginDesk, sent: Sent) -> Session | None:
        sealed = desk.cookies.session(sent)
        if sealed is None:
            return None
        try:
            return await desk.logins.find(sealed)
        except ProviderUnavailableError as error:
            self._credentials.count(desk.name, "unavailable")
            raise AuthenticationUnavailableError(
                "The session can't be renewed at the moment.", retry_after=error.retry_after
            ) from error

    async def _answer(self, request: Exchange, desk: LoginDesk, session: Session, sent: Sent) -> Response:
        self._check_site(request, desk)
        self._credentials.count(desk.name, "accepted")
        principal = session.principal
        request.principal = principal
        request.context.principal = principal.key
        if desk.logins.config.forward_access_token:
            request.headers = [header for header in request.headers if header[0] != b"authorization"]
            request.headers.append((b"authorization", f"Bearer {session.kept.access_token}".encode()))
        if session.sealed == desk.cookies.session(sent):
            response = await self.inner(request)
            response.headers = private(response.headers)
            return response
        cookies = desk.keep(request, session, sent)
        try:
            response = await self.inner(request)
        except GatewayRefusalError as error:
            error.headers = (*error.headers, *cookies)
            raise
        response.headers = [*_uncached(response.headers), *cookies]
        return response

    def _check_site(self, request: Exchange, desk: LoginDesk) -> None:
        """A session comes along whoever wrote the page, which a method that changes something must not be done for.

        `SameSite=Lax` keeps it from other sites in browsers of today, but not from other hosts of the same site. A
        WebSocket is no less (RFC 6455 section 10.2), unless its route says whose pages may open one.
        """
        if request.scope["type"] == "websocket":
            if request.route.websocket.allowed_origins:
                return
        elif request.method in SAFE_METHODS:
            return
        if not comes_from(request, desk.trusted | {origin_of(request)}):
            self._credentials.count(desk.name, "forbidden")
            raise CrossSiteError("A session counts here only for pages of this gateway's own origin.")


def private(headers: list[Header]) -> list[Header]:
    """An answer to a session, marked so that no cache in front gives it to others, unless the service allows it: what
    RFC 9111 section 3.5 says of requests with `Authorization`, which a cache can't know a cookie to be.
    """
    said = b",".join(value for name, value in headers if name == b"cache-control").lower()
    if any(word in said for word in _SHARED):
        return headers
    return [*headers, (b"cache-control", b"private")]


def _uncached(headers: list[Header]) -> list[Header]:
    """An answer with a new session is for one browser, whatever the service says of it."""
    kept = [header for header in headers if header[0] not in (b"cache-control", b"expires")]
    return [*kept, (b"cache-control", b"no-store")]
