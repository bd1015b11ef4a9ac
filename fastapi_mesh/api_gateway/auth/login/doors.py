"""The gateway's own paths of a login: where browsers log in, come back with a code, and log out."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from fastapi_mesh.api_gateway.auth.base import CredentialError, ProviderUnavailableError
from fastapi_mesh.api_gateway.auth.challenges import AuthenticationUnavailableError
from fastapi_mesh.api_gateway.auth.login.browser import (
    LONGEST_RETURN,
    comes_from,
    is_cross_site,
)
from fastapi_mesh.api_gateway.auth.login.cookies import Cookies, https_of
from fastapi_mesh.api_gateway.auth.login.flow import RefusedByServerError
from fastapi_mesh.api_gateway.auth.login.refusals import (
    CrossSiteError,
    LoginFailedError,
    LoginRefusedError,
    LoginStateError,
    SessionTooLargeError,
)
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.public import origin_of, prefix_of
from fastapi_mesh.config.edge.cors import origin
from fastapi_mesh.config.edge.login import is_local
from fastapi_mesh.core.message import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.auth.layer import AuthMeter
    from fastapi_mesh.api_gateway.auth.login.cookies import Jar, Sent
    from fastapi_mesh.api_gateway.auth.login.engine import BrowserLogins
    from fastapi_mesh.api_gateway.auth.login.session import Session
    from fastapi_mesh.api_gateway.auth.login.state import Attempt
    from fastapi_mesh.api_gateway.exchange import Exchange
    from fastapi_mesh.core.message import Header

logger = logging.getLogger("fastapi_mesh.gateway")

MOST_LOGINS = 5
"""Logins under way in one browser, whose cookies all go with every request."""
LONGEST_QUERY = 16 * 1024
"""Bytes that are looked at. Codes have some hundred, a few servers make them of several thousand."""
_ERROR = re.compile(r"[a-z_]{1,40}")
_LOST = "This login was not begun in this browser, or is over already; begin it again."
_ALONE: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),  # the address of a page that has a code in it is nobody's business
)


class LoginDesk:
    """What browsers are told: redirects and cookies of one provider's login."""

    __slots__ = ("_https", "cookies", "logins", "trusted")

    def __init__(self, logins: BrowserLogins) -> None:
        self.logins = logins
        self.cookies = Cookies(logins.config.cookie)
        url = logins.config.public_url
        own = [] if url is None else [origin("/".join(url.split("/")[:3]))]
        self.trusted = frozenset([*logins.config.trusted_origins, *own])
        self._https = https_of(logins.config)

    @property
    def name(self) -> str:
        """The provider's."""
        return self.logins.name

    async def send_to_login(self, request: Exchange, sent: Sent, return_to: str) -> Response:
        """Begin a login; afterwards the browser is sent to `return_to`, a path that `is_local`.

        Raises AuthenticationUnavailableError.
        """
        secure = self._is_secure(request)
        redirect_uri = self._base(request) + self.logins.config.redirect_path
        try:
            attempt, sealed, address = await self.logins.begin(redirect_uri, return_to)
        except ProviderUnavailableError as error:
            raise AuthenticationUnavailableError(
                "The server that users log in at can't be asked at the moment.", retry_after=error.retry_after
            ) from error
        cookies = [self.cookies.forget(name, secure=secure) for name in self.cookies.logins(sent)[: 1 - MOST_LOGINS]]
        age = self.logins.config.login_timeout
        cookies.append(self.cookies.keep_login(attempt.state, sealed, secure=secure, age=age))
        return _redirect(address, cookies)

    def keep(self, request: Exchange, session: Session, sent: Sent) -> list[Header]:
        """What makes the browser keep a session. Raises SessionTooLargeError."""
        if not self.cookies.fits(session.sealed):
            logger.warning(
                "%s: a session of %d characters does not fit into cookies; ask for fewer scopes or claims",
                self.name,
                len(session.sealed),
            )
            raise SessionTooLargeError("The tokens of this login are too large for a session.")
        age = self.logins.age(session)
        return self.cookies.keep_session(session.sealed, sent, secure=self._is_secure(request), age=age)

    async def login(self, request: Exchange, sent: Sent) -> Response:
        """`login_path`: log in, then go to `return_to`."""
        asked = _parameters(request).get("return_to", "")
        fine = is_local(asked) and len(asked) <= LONGEST_RETURN
        return await self.send_to_login(request, sent, asked if fine else f"{prefix_of(request)}/")

    async def callback(self, request: Exchange, sent: Sent) -> Response:
        """`redirect_path`: RFC 6749 sections 4.1.2 to 4.1.4."""
        said = _parameters(request)
        request.scope["query_string"] = b""  # the server's own access log writes that, and a code is a credential
        state = said.get("state", "")
        name = self.cookies.login(state)
        attempt = self.logins.take(state, sent.get(name))
        forget = self.cookies.forget(name, secure=self._is_secure(request))
        if attempt is None:
            raise LoginStateError(_LOST, headers=_ALONE)
        alone = (*_ALONE, forget)
        try:
            ours = await self.logins.flow.is_from_here(said.get("iss"))
            if not ours:
                logger.warning("%s: an answer of another authorization server was refused (mix-up)", self.name)
                raise LoginStateError(_LOST, headers=alone)
            if "error" in said or not said.get("code"):
                raise self._refused(said, alone)
            session = await self._finish(attempt, said["code"], alone)
        except ProviderUnavailableError as error:
            raise AuthenticationUnavailableError(
                "The login can't be finished at the moment; begin it again.",
                headers=alone,
                retry_after=error.retry_after,
            ) from error
        return _redirect(attempt.return_to, [forget, *self.keep(request, session, sent)])

    async def logout(self, request: Exchange, sent: Sent) -> Response:
        """`logout_path`: the session ends here, and at the server where that has a place for it."""
        own = self.trusted | {origin_of(request)}
        if is_cross_site(request) or (request.method == b"POST" and not comes_from(request, own)):
            raise CrossSiteError("Pages of other sites log nobody out here.")
        sealed = self.cookies.session(sent)
        session = None if sealed is None else self.logins.read(sealed)
        after = prefix_of(request) + self.logins.config.after_logout
        address = after
        if session is not None:
            await self.logins.end(session)
            back = self._base(request) + self.logins.config.after_logout
            address = await self.logins.flow.end_session(session.kept.id_token, back) or after
        return _redirect(address, self.cookies.forget_session(sent, secure=self._is_secure(request)))

    async def _finish(self, attempt: Attempt, code: str, headers: tuple[Header, ...]) -> Session:
        try:
            return await self.logins.finish(attempt, code)
        except RefusedByServerError as error:
            logger.warning("%s: a login failed: %s", self.name, error)
            if error.error == "invalid_grant":  # the code is used, too old, or another client's
                raise LoginStateError(_LOST, headers=headers) from error
            raise LoginFailedError("The authorization server refused to finish the login.", headers=headers) from error
        except CredentialError as error:
            logger.warning("%s: a login failed, its tokens prove nothing: %s", self.name, error)
            raise LoginFailedError("The authorization server did not say who logged in.", headers=headers) from error

    def _refused(self, said: dict[str, str], headers: tuple[Header, ...]) -> LoginRefusedError:
        """Only the word for it is shown: the rest anybody could have written."""
        word = said.get("error", "")
        word = word if _ERROR.fullmatch(word) else "no code"
        logger.info("%s: a login was refused: %s: %.200r", self.name, word, said.get("error_description", ""))
        return LoginRefusedError(f"The authorization server refused the login ({word}).", headers=headers)

    def _is_secure(self, request: Exchange) -> bool:
        return request.origin.scheme == "https" if self._https is None else self._https

    def _base(self, request: Exchange) -> str:
        """The gateway's address as the browser knows it."""
        url = self.logins.config.public_url
        return origin_of(request) + prefix_of(request) if url is None else url.rstrip("/")


class Door:
    """What answers at one of the paths, in the mesh's place. Logins that end, well or not, are counted."""

    __slots__ = ("_act", "_jar", "_meter", "_name")

    def __init__(self, desk: LoginDesk, act: str, jar: Jar, meter: AuthMeter | None) -> None:
        """`act` is the name of a method of LoginDesk."""
        self._name = desk.name
        self._act = {"login": desk.login, "callback": desk.callback, "logout": desk.logout}[act]
        self._jar = jar
        self._meter = meter if act == "callback" else None

    async def __call__(self, request: Exchange) -> Response:
        sent = self._jar.take(request)
        try:
            response = await self._act(request, sent)
        except GatewayRefusalError:
            if self._meter is not None:
                self._meter.authentication(self._name, "login-failed")
            raise
        if self._meter is not None:
            self._meter.authentication(self._name, "login")
        return response


def _redirect(address: str, cookies: Iterable[Header]) -> Response:
    return Response.of(302, [(b"location", address.encode("ascii", "ignore")), *_ALONE, *cookies], b"")


def _parameters(request: Exchange) -> dict[str, str]:
    """The query. A parameter that comes twice has no meaning (RFC 6749 section 3.1), so it has no value either."""
    found: dict[str, str] = {}
    doubled = set()
    for name, value in parse_qsl(request.query[:LONGEST_QUERY].decode("latin-1"), keep_blank_values=True):
        if name in found:
            doubled.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in doubled}
