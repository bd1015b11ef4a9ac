"""The only file that knows authlib: tokens of the gateway's own for services (RFC 6749 section 4.4), and their layer.

authlib obtains them; it does not send requests with them, as its own client buffers uploads and doubles their framing.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.auth.flight import Flights
from fastapi_mesh.api_gateway.auth.settings import secret_of
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.exceptions import MeshError, UpstreamProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.config.edge.auth import UpstreamTokenConfig
    from fastapi_mesh.core.message import Response

logger = logging.getLogger("fastapi_mesh.gateway")

FRESH = 0.8
"""Part of a token's life after which the next one is fetched, in the background."""
MARGIN = 5.0
"""Seconds before its end after which a token isn't sent any more: the service's clock may be ahead."""
NO_EXPIRY = 300.0
"""Seconds that a token is used which doesn't say how long it is good for (RFC 6749 section 5.1 lets it)."""
RETRY = 1.0
"""Seconds between two calls for a token after one that failed, or after a service refused the token."""


class UpstreamTokenUnavailableError(GatewayRefusalError):
    """The service takes calls with a token only, and the gateway can't get one."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = "upstream-token-unavailable"


class UpstreamTokens:
    """One client's tokens for one purpose: fetched when first needed, once for all who wait, renewed ahead of time."""

    def __init__(self, config: UpstreamTokenConfig, secret: str, tools: Tools) -> None:
        self._config = config
        self._secret = secret
        self._clock = tools.clock
        self._flights: Flights[str] = Flights(tools.supervisor, "gateway-upstream-token")
        self._token = ""
        self._fresh_until = float("-inf")
        self._good_until = float("-inf")
        self._retry_at = float("-inf")
        self._refusable_at = float("-inf")

    @property
    def settings(self) -> object:
        """What it was made of; while that stays equal, a reload keeps its token."""
        return (self._config, self._secret)

    @property
    def purpose(self) -> str:
        """A name that differs where the settings do; no secret can be read from it."""
        return sha256(f"{self._config.model_dump_json()}{len(self._secret)}:{self._secret}".encode()).hexdigest()

    def statistics(self) -> dict[str, int]:
        """Whether there is a token that is good now, and calls for one under way."""
        return {"good": int(self._clock.now() < self._good_until), "fetching": len(self._flights)}

    async def get(self) -> str:
        """A token that is good. Raises UpstreamTokenUnavailableError."""
        now = self._clock.now()
        if now < self._fresh_until:
            return self._token
        if now < self._good_until:
            if now >= self._retry_at:
                self._flights.start("token", self._fetch)
            return self._token
        if now < self._retry_at and not self._flights:
            raise self._unavailable()
        try:
            return await self._flights.join("token", self._fetch)
        except MeshError as error:
            raise self._unavailable() from error

    def refused(self, token: str) -> None:
        """A service answered 401 to a token: it may have been revoked, so the next request gets another one.

        A service that refuses every token is no reason to ask for more than one a second.
        """
        now = self._clock.now()
        if token == self._token and now >= self._refusable_at:
            self._refusable_at = now + RETRY
            self._fresh_until = self._good_until = float("-inf")

    async def aclose(self) -> None:
        await self._flights.aclose()

    def _unavailable(self) -> UpstreamTokenUnavailableError:
        return UpstreamTokenUnavailableError(
            "The gateway has no token for the service at the moment.", retry_after=RETRY
        )

    async def _fetch(self) -> str:
        try:
            answer = await self._call()
            token, kind, lasts = answer.get("access_token"), answer.get("token_type"), answer.get("expires_in")
            if (
                not isinstance(token, str)
                or not token.isascii()
                or not token.isprintable()
                or " " in token
                or not token
            ):
                raise UpstreamProtocolError("the answer has no access_token")
            if not isinstance(kind, str) or kind.lower() != "bearer":
                raise UpstreamProtocolError("the token is no bearer token")
        except MeshError as error:
            self._retry_at = self._clock.now() + RETRY
            logger.warning("no token of %s for %s: %s", self._config.token_url, self._config.client_id, error)
            raise
        life = NO_EXPIRY
        if isinstance(lasts, int | float) and not isinstance(lasts, bool) and 0 < lasts < 1e9:
            life = float(lasts)
        now = self._clock.now()
        self._token = token
        self._fresh_until = now + life * FRESH
        self._good_until = now + max(life * FRESH, life - MARGIN)
        self._retry_at = float("-inf")
        return token

    async def _call(self) -> Mapping[str, object]:
        from authlib.integrations.base_client import OAuthError
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        from fastapi_mesh.wire.http import control_transport, translated

        config = self._config
        extra = {"audience": config.audience, "resource": config.resource}
        async with AsyncOAuth2Client(
            config.client_id,
            self._secret,
            token_endpoint_auth_method=f"client_secret_{config.client_auth}",
            scope=" ".join(config.scopes) or None,
            transport=control_transport(config.token_url),
            timeout=config.timeout,
            trust_env=False,
        ) as client:
            try:
                with translated(config.token_url):
                    answer = await client.fetch_token(
                        config.token_url,
                        grant_type="client_credentials",
                        **{name: value for name, value in extra.items() if value is not None},
                    )
            except OAuthError as error:
                raise UpstreamProtocolError(f"refused: {error.error}") from error
            except ValueError as error:
                raise UpstreamProtocolError("the answer is no JSON") from error
        return dict(answer)


class UpstreamToken:
    """Sends a token of the gateway's own in `Authorization`, to the services that have one; the client's goes."""

    __slots__ = ("_tokens", "inner")

    def __init__(self, inner: GatewayService, tokens: Mapping[str, UpstreamTokens]) -> None:
        """`tokens` by service."""
        self.inner = inner
        self._tokens = tokens

    async def __call__(self, request: Exchange) -> Response:
        tokens = self._tokens.get(request.service)
        if tokens is None:
            return await self.inner(request)
        token = await tokens.get()
        headers = [header for header in request.headers if header[0] != b"authorization"]
        headers.append((b"authorization", b"Bearer " + token.encode()))
        request.headers = headers
        response = await self.inner(request)
        if response.status == 401:
            tokens.refused(token)
        return response


def new_upstream_tokens(config: UpstreamTokenConfig, tools: Tools) -> UpstreamTokens:
    """Raises ConfigurationError when the secret's file can't be read."""
    secret = secret_of(config.client_secret, config.client_secret_file, "upstream_token.client_secret_file")
    return UpstreamTokens(config, secret or "", tools)
