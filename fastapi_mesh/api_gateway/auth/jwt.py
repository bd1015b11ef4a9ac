"""A provider of JSON Web Tokens: checked here, by a secret, a public key, or the keys that an issuer publishes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import CredentialError, UnknownCredentialError, Verifier
from fastapi_mesh.api_gateway.auth.claims import ClaimRules, check_before, principal_of
from fastapi_mesh.api_gateway.auth.compact import MalformedTokenError, read_compact
from fastapi_mesh.api_gateway.auth.http import Issuer
from fastapi_mesh.api_gateway.auth.jose import pem_key, secret_key
from fastapi_mesh.api_gateway.auth.jwks import Metadata
from fastapi_mesh.api_gateway.auth.keys import FixedKeys, KeyRing, ring_of
from fastapi_mesh.api_gateway.auth.settings import content_of, secret_of, settings_from
from fastapi_mesh.api_gateway.auth.token_provider import TokenProvider
from fastapi_mesh.api_gateway.auth.verified import Verified
from fastapi_mesh.config.edge.providers import JwtAuthConfig, TokenConfig
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.keys import KeySource
    from fastapi_mesh.api_gateway.principal import Principal

logger = logging.getLogger("fastapi_mesh.gateway")

REMEMBERED = 300.0
"""Seconds after which a token's signature is checked again, whatever its `exp`."""


class TokenVerifier(Verifier):
    """Checks signed tokens: form, type, issuer, key, signature, claims, in this order, cheapest first."""

    def __init__(self, rules: ClaimRules, tools: Tools, new_keys: Callable[[Callable[[], object]], KeySource]) -> None:
        """`new_keys` gets what is to be called when the keys change."""
        self._rules = rules
        self._wall = tools.wall
        self._verified = Verified(tools.cache_size, tools.wall)
        self._keys = new_keys(self._verified.clear)
        self._told = False

    def known(self, credential: str) -> Principal | None:
        return self._verified.get(credential)

    async def authenticate(self, credential: str) -> Principal:
        try:
            token = read_compact(credential)
        except MalformedTokenError as error:
            raise UnknownCredentialError(str(error)) from None
        check_before(token, self._rules)
        key = await self._keys.find(token)
        if not key.verify(token.algorithm, token.signed, token.signature):
            raise UnknownCredentialError("the signature is wrong")
        now = self._wall()
        try:
            principal = principal_of(token.claims, self._rules, now)
        except CredentialError:
            self._hint(token.claims)
            raise
        self._verified.put(credential, principal, now + REMEMBERED)
        return principal

    async def aclose(self) -> None:
        await self._keys.aclose()

    def _hint(self, claims: Mapping[str, object]) -> None:
        """A token that was signed for us is refused for its `aud`: that is a setting, once said."""
        if claims.get("aud") is not None and not self._rules.audience and not self._told:
            self._told = True
            logger.warning(
                "%s: tokens with an aud are refused, as this provider has no audience; give audience=",
                self._rules.provider,
            )


def rules_of(config: TokenConfig, name: str, issuers: tuple[str, ...]) -> ClaimRules:
    """What a provider's settings ask of claims."""
    return ClaimRules(
        name,
        issuers,
        frozenset(config.audience),
        config.leeway,
        config.required_claims,
        config.subject_claim,
        config.scopes_claim,
        config.roles_claim,
        config.token_type,
    )


class JWTAuthProvider(TokenProvider[JwtAuthConfig]):
    """Bearer tokens that are JWTs (RFC 7519, RFC 8725).

        JWTAuthProvider(secret_key="...", algorithm="HS256")
        JWTAuthProvider(jwks_url="https://id.example.com/keys", algorithm="ES256",
                        issuer="https://id.example.com", audience="shop")

    The key is one of `secret_key`, `public_key` (PEM), `jwks`, `jwks_url`, or a file with the first two; with `issuer`
    alone it is found by OpenID Connect Discovery. `algorithm` is the only one accepted, or a list of one family: HS256
    for a secret, RS256 for key sets, what fits the key for `public_key`. `token_url` is for the OpenAPI description.

    `issuer` and `audience` are what `iss` and `aud` must be; a token with an `aud` is refused where there is no
    `audience`. `leeway` is seconds. Raises ConfigurationError.
    """

    def __init__(
        self,
        secret_key: str | None = None,
        algorithm: str | Iterable[str] | None = None,
        token_url: str | None = None,
        *,
        name: str | None = None,
        issuer: str | None = None,
        audience: str | Iterable[str] | None = None,
        secret_key_file: str | None = None,
        public_key: str | None = None,
        public_key_file: str | None = None,
        jwks: Mapping[str, object] | None = None,
        jwks_url: str | None = None,
        leeway: float | None = None,
        required_claims: Iterable[str] | None = None,
        subject_claim: str | None = None,
        scopes_claim: str | None = None,
        roles_claim: str | None = None,
        token_type: str | None = None,
        keys_ttl: float | None = None,
        keys_cooldown: float | None = None,
        keys_stale: float | None = None,
        timeout: float | None = None,
        allow_http: bool | None = None,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self._take(settings_from(JwtAuthConfig, given, "JWTAuthProvider"))

    def __repr__(self) -> str:
        return f"<JWTAuthProvider {self.name!r}, {', '.join(self._algorithms)}>"

    @property
    def settings(self) -> object:
        return (JWTAuthProvider, self._config, self._material)

    def security_scheme(self) -> Mapping[str, object]:
        config = self._config
        if config.token_url is not None:
            flow = {"tokenUrl": config.token_url, "scopes": {}}
            return {"type": "oauth2", "flows": {"password": flow}}
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}

    def open(self, tools: Tools) -> Verifier:
        rules = rules_of(self._config, tools.name, () if self._config.issuer is None else (self._config.issuer,))
        return TokenVerifier(rules, tools, lambda changed: self._new_keys(tools, changed))

    def _take(self, config: JwtAuthConfig) -> None:
        self._config = config
        self.name = config.name or "jwt"
        self._material = secret_of(config.secret_key, config.secret_key_file, "secret_key_file")
        pem = config.public_key or content_of(config.public_key_file, "public_key_file")
        try:
            if self._material is not None:
                self._algorithms = config.algorithm or ("HS256",)
                self._ring = KeyRing([secret_key(self._material, self._algorithms)], self._algorithms)
            elif pem is not None:
                self._material = pem
                key, self._algorithms = pem_key(pem, config.algorithm)
                self._ring = KeyRing([key], self._algorithms)
            else:
                self._algorithms = config.algorithm or ("RS256",)
                jwks = config.jwks
                self._ring = None if jwks is None else ring_of(jwks.get_secret_value(), self._algorithms, public=False)
        except ValueError as error:
            given = next(name for name in _SOURCES if getattr(config, name) is not None)
            raise ConfigurationError(f"{self.name}.{given}: {error}") from None

    def _new_keys(self, tools: Tools, changed: Callable[[], object]) -> KeySource:
        config = self._config
        if self._ring is not None:
            return FixedKeys(self._ring)
        http = Issuer(timeout=config.timeout, allow_http=config.allow_http)
        address = config.jwks_url or Metadata(config.issuer or "", http, tools, exact=True)
        return self._remote_keys(address, http, tools, changed)


_SOURCES = ("secret_key", "secret_key_file", "public_key", "public_key_file", "jwks", "jwks_url", "issuer")
