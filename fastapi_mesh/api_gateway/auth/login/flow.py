"""The gateway as an OpenID Connect client: where logins begin, and codes and refresh tokens made into tokens.

RFC 6749 section 4.1 with PKCE (RFC 7636) and the `iss` of RFC 9207, as RFC 9700 section 2.1 asks; ID tokens by OpenID
Connect Core section 3.1.3.7.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from fastapi_mesh.api_gateway.auth.base import CredentialError, ProviderUnavailableError
from fastapi_mesh.api_gateway.auth.compact import LONGEST, encode
from fastapi_mesh.config.edge.credentials import url_problem
from fastapi_mesh.exceptions import MeshError, UpstreamProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.auth.compact import Json
    from fastapi_mesh.api_gateway.auth.http import Issuer
    from fastapi_mesh.api_gateway.auth.introspect import ClientCredentials
    from fastapi_mesh.api_gateway.auth.jwks import Metadata
    from fastapi_mesh.api_gateway.auth.jwt import TokenVerifier

logger = logging.getLogger("fastapi_mesh.gateway")

RETRY_AFTER = 1.0
NO_EXPIRY = 300.0
"""Seconds after which an access token is renewed that doesn't say how long it is good for."""


class RefusedByServerError(MeshError):
    """The token endpoint said no; `error` is its word for it (RFC 6749 section 5.2)."""

    def __init__(self, error: str) -> None:
        super().__init__(f"the token endpoint refused: {error}")
        self.error = error


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What the server knows this client by, and where it is, as far as that was said: the rest is in its metadata."""

    client_id: str
    issuers: tuple[str, ...]
    scopes: tuple[str, ...]
    authorization_url: str | None = None
    token_url: str | None = None
    parameters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint gave. The ID token was checked; `lasts` is seconds of the access token's life, `scopes` is
    what it is good for, None for what was asked for.
    """

    id_token: str | None
    access_token: str
    refresh_token: str | None
    lasts: float
    scopes: tuple[str, ...] | None


class CodeFlow:
    """Talks to one server. Raises ProviderUnavailableError where it can't be asked."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        metadata: Metadata,
        http: Issuer,
        credentials: ClientCredentials,
        verifier: TokenVerifier,
    ) -> None:
        self._config = config
        self._metadata = metadata
        self._http = http
        self._credentials = credentials
        self._verifier = verifier

    async def authorization(self, *, state: str, nonce: str, challenge: str, redirect_uri: str) -> str:
        """The address at which a user logs in; `challenge` is for PKCE, S256."""
        config = self._config
        address = await self._endpoint("authorization_endpoint", config.authorization_url)
        if problem := url_problem(address, insecure=True):
            raise self._unavailable(UpstreamProtocolError(f"the authorization endpoint: {problem}"))
        asked = {
            **(config.parameters or {}),
            "response_type": "code",
            "client_id": config.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(config.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(asked)}"

    async def is_from_here(self, issuer: str | None) -> bool:
        """Whether an answer with this `iss` is of our server (RFC 9207 section 2.4: mix-up); None: it has none."""
        if issuer is not None:
            return issuer in self._config.issuers
        try:
            return await self._metadata.says("authorization_response_iss_parameter_supported") is not True
        except MeshError as error:
            raise self._unavailable(error) from error

    async def exchange(self, code: str, *, verifier: str, redirect_uri: str, nonce: str) -> Tokens:
        """The tokens for a code. Raises RefusedByServerError, CredentialError."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        tokens = await self._tokens(form, nonce=nonce)
        if tokens.id_token is None:
            raise CredentialError("no ID token")
        return tokens

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens (RFC 6749 section 6). Raises RefusedByServerError, CredentialError."""
        return await self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token}, nonce=None)

    async def revoke(self, refresh_token: str) -> None:
        """Tell the server that a refresh token is of no use any more (RFC 7009), where it can be told."""
        try:
            url = await self._metadata.says("revocation_endpoint")
            if isinstance(url, str):
                form = {"token": refresh_token, "token_type_hint": "refresh_token", **self._credentials.form}
                await self._http.ask(url, form, self._credentials.headers)
        except UpstreamProtocolError:
            pass  # its 200 has no body
        except MeshError as error:
            logger.warning("a refresh token could not be revoked: %s", error)

    async def end_session(self, id_token: str, return_to: str) -> str | None:
        """Where a user logs out (OpenID Connect RP-Initiated Logout 1.0); None where the server has no such place."""
        try:
            url = await self._metadata.says("end_session_endpoint")
        except MeshError as error:
            logger.warning("the server can't be asked where users log out: %s", error)
            return None
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            return None
        said = {
            "id_token_hint": id_token,
            "client_id": self._config.client_id,
            "post_logout_redirect_uri": return_to,
        }
        return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(said)}"

    async def aclose(self) -> None:
        await self._verifier.aclose()
        await self._http.aclose()

    async def _tokens(self, form: Mapping[str, str], *, nonce: str | None) -> Tokens:
        url = await self._endpoint("token_endpoint", self._config.token_url)
        try:
            status, answer = await self._http.ask(url, {**form, **self._credentials.form}, self._credentials.headers)
        except MeshError as error:
            raise self._unavailable(error) from error
        if status != 200:
            said = answer.get("error")
            if status >= 500 or status == 429 or not isinstance(said, str):
                raise self._unavailable(UpstreamProtocolError(f"the token endpoint answered {status}"))
            raise RefusedByServerError(said[:80])
        return await self._checked(answer, nonce)

    async def _checked(self, answer: Json, nonce: str | None) -> Tokens:
        kind = answer.get("token_type")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise CredentialError("the access token is no bearer token")
        access = _token(answer, "access_token")
        if access is None:
            raise CredentialError("no access token")
        id_token = _token(answer, "id_token")
        if id_token is not None:
            await self._check_id_token(id_token, nonce)
        lasts, scope = answer.get("expires_in"), answer.get("scope")
        known = isinstance(lasts, int | float) and not isinstance(lasts, bool) and 0 < lasts < 1e9
        return Tokens(
            id_token,
            access,
            _token(answer, "refresh_token"),
            float(lasts) if known and isinstance(lasts, int | float) else NO_EXPIRY,
            tuple(filter(_is_scope, scope.split())) if isinstance(scope, str) else None,
        )

    async def _check_id_token(self, token: str, nonce: str | None) -> None:
        """Signature, `iss`, `aud`, `exp` and `iat` by the verifier; then what only ID tokens have."""
        claims = (await self._verifier.authenticate(token)).claims
        said = claims.get("nonce")
        if nonce is not None and not (isinstance(said, str) and hmac.compare_digest(_bytes(said), _bytes(nonce))):
            raise CredentialError("the nonce is not that of this login")
        audience, client = claims.get("aud"), self._config.client_id
        party = claims.get("azp")
        if party is not None and party != client:
            raise CredentialError("azp is somebody else")
        if party is None and isinstance(audience, list) and len(audience) > 1:
            raise CredentialError("it is for several, and has no azp")

    async def _endpoint(self, name: str, given: str | None) -> str:
        if given is not None:
            return given
        try:
            return await self._metadata.endpoint(name)
        except MeshError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: MeshError) -> ProviderUnavailableError:
        logger.warning("the server that users log in at can't be asked: %s", error)
        return ProviderUnavailableError(str(error), retry_after=RETRY_AFTER)


def challenge_of(verifier: str) -> str:
    """S256 (RFC 7636 section 4.2)."""
    return encode(sha256(verifier.encode()).digest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can smuggle half of a surrogate pair in


def _is_scope(word: str) -> bool:
    return word.isascii() and word.isprintable()


def _token(answer: Json, name: str) -> str | None:
    """A token in an answer, None where there is none. Raises CredentialError for what is none."""
    value = answer.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > LONGEST or not value.isascii() or not value.isprintable():
        raise CredentialError(f"{name} is no token")
    if " " in value:
        raise CredentialError(f"{name} is no token")
    return value
