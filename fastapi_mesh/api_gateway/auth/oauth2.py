"""A provider of an authorization server's tokens: JWTs are checked here by its keys, it is asked about all others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import UnknownCredentialError, Verifier
from fastapi_mesh.api_gateway.auth.compact import looks_like_jwt
from fastapi_mesh.api_gateway.auth.http import Issuer
from fastapi_mesh.api_gateway.auth.introspect import ClientCredentials, Introspector
from fastapi_mesh.api_gateway.auth.jose import Sealer
from fastapi_mesh.api_gateway.auth.jwks import Metadata
from fastapi_mesh.api_gateway.auth.jwt import TokenVerifier, rules_of
from fastapi_mesh.api_gateway.auth.keys import FixedKeys, ring_of
from fastapi_mesh.api_gateway.auth.login.engine import BrowserLogins
from fastapi_mesh.api_gateway.auth.login.flow import ClientConfig, CodeFlow
from fastapi_mesh.api_gateway.auth.login.session import Sessions
from fastapi_mesh.api_gateway.auth.settings import secret_of, session_secrets, settings_from
from fastapi_mesh.api_gateway.auth.token_provider import TokenProvider
from fastapi_mesh.config.edge.providers import OAuth2AuthConfig
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.claims import ClaimRules
    from fastapi_mesh.api_gateway.auth.keys import KeySource
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.config.edge.login import LoginConfig


class OAuth2Verifier(Verifier):
    """Tells JWTs from opaque tokens by their form, which their bearer can choose: each way refuses what isn't its own.

    Either part may be None. A JWT that is wrong here is not asked about: the server would say the same, for a call.
    """

    def __init__(self, tokens: TokenVerifier | None, introspector: Introspector | None) -> None:
        self._tokens = tokens
        self._introspector = introspector

    def known(self, credential: str) -> Principal | None:
        verifier = self._of(credential)
        return None if verifier is None else verifier.known(credential)

    async def authenticate(self, credential: str) -> Principal:
        verifier = self._of(credential)
        if verifier is None:
            raise UnknownCredentialError("an opaque token, and nobody to ask")
        return await verifier.authenticate(credential)

    async def aclose(self) -> None:
        for verifier in (self._tokens, self._introspector):
            if verifier is not None:
                await verifier.aclose()

    def _of(self, credential: str) -> Verifier | None:
        if self._tokens is not None and (self._introspector is None or looks_like_jwt(credential)):
            return self._tokens
        return self._introspector


class OAuth2AuthProvider(TokenProvider[OAuth2AuthConfig]):
    """Bearer tokens of an OAuth 2 or OpenID Connect server.

        OAuth2AuthProvider(client_id="gateway", client_secret="...",
                           authorization_url="https://id.example.com/authorize",
                           token_url="https://id.example.com/token", audience="shop")

    The gateway is a resource server: it checks tokens that clients bring. With `login`, a LoginConfig or a table of its
    settings, it logs browsers in, too (`auth.login` of a route or of the gateway sends them there); without it,
    `authorization_url` is for the OpenAPI description. Where nothing else is given, the origin of `token_url` is taken
    for the issuer, and its metadata must name that very `token_url`. `issuer` says it outright;
    `jwks_url` or `jwks` give the keys, and `introspection_url` the endpoint of RFC 7662, called with `client_id` and
    `client_secret`.

    JWTs are checked here; their `aud` must be `audience`, which is `client_id` unless given (with `login` it must be
    given, for `client_id` is the audience of ID tokens). Other tokens are asked about, and what is active is remembered
    for `cache_ttl` seconds, never past its `exp`. Raises ConfigurationError.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str | None = None,
        authorization_url: str | None = None,
        token_url: str | None = None,
        *,
        name: str | None = None,
        issuer: str | None = None,
        introspection_url: str | None = None,
        jwks_url: str | None = None,
        jwks: Mapping[str, object] | None = None,
        mode: str | None = None,
        client_secret_file: str | None = None,
        client_auth: str | None = None,
        algorithm: str | Iterable[str] | None = None,
        audience: str | Iterable[str] | None = None,
        leeway: float | None = None,
        required_claims: Iterable[str] | None = None,
        subject_claim: str | None = None,
        scopes_claim: str | None = None,
        roles_claim: str | None = None,
        token_type: str | None = None,
        cache_ttl: float | None = None,
        keys_ttl: float | None = None,
        keys_cooldown: float | None = None,
        keys_stale: float | None = None,
        timeout: float | None = None,
        allow_http: bool | None = None,
        login: LoginConfig | Mapping[str, object] | bool | None = None,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self._take(settings_from(OAuth2AuthConfig, given, "OAuth2AuthProvider"))

    def __repr__(self) -> str:
        return f"<OAuth2AuthProvider {self.name!r}, client {self._config.client_id!r}>"

    @property
    def settings(self) -> object:
        return (OAuth2AuthProvider, self._config, self._secret, self._session_secrets)

    @property
    def login(self) -> LoginConfig | None:
        """How browsers log in with it; None where they don't."""
        return self._config.login

    def security_scheme(self) -> Mapping[str, object]:
        config = self._config
        if config.authorization_url is not None and config.token_url is not None:
            flow = {"authorizationUrl": config.authorization_url, "tokenUrl": config.token_url, "scopes": {}}
            return {"type": "oauth2", "flows": {"authorizationCode": flow}}
        if config.issuer is not None:
            url = f"{config.issuer.rstrip('/')}/.well-known/openid-configuration"
            return {"type": "openIdConnect", "openIdConnectUrl": url}
        return {"type": "http", "scheme": "bearer"}

    def open(self, tools: Tools) -> Verifier:
        config = self._config
        http, metadata, rules = self._server(tools)
        tokens = None
        if config.has_keys:
            # With a login the client's id is the audience of ID tokens, which go through browsers and their histories.
            usual = () if config.login is not None else (config.client_id,)
            ours = replace(rules, audience=frozenset(config.audience or usual))
            tokens = TokenVerifier(ours, tools, lambda changed: self._new_keys(metadata, http, tools, changed))
        return OAuth2Verifier(tokens, self._new_introspector(metadata, http, tools, rules))

    def open_logins(self, tools: Tools) -> BrowserLogins:
        """What logs browsers in for an open gateway; for a provider with `login`."""
        config, login = self._config, self._config.login
        assert login is not None, "only asked for where there is a login"
        http, metadata, rules = self._server(tools)
        assert metadata is not None, "the settings were checked for an issuer"
        rules = replace(
            rules,
            audience=frozenset((config.client_id,)),
            required=tuple(dict.fromkeys(("iss", "sub", "aud", "exp", "iat", *rules.required))),
            token_type=None,
        )
        verifier = TokenVerifier(rules, tools, lambda changed: self._new_keys(metadata, http, tools, changed))
        client = ClientConfig(
            config.client_id,
            rules.issuers,
            login.scopes,
            config.authorization_url,
            config.token_url,
            login.parameters,
        )
        flow = CodeFlow(client, metadata=metadata, http=http, credentials=self._credentials(), verifier=verifier)
        sealers = [Sealer(self._session_secrets, f"{purpose} {config.client_id}") for purpose in ("session", "login")]
        return BrowserLogins(tools.name, login, flow, Sessions(sealers[0], rules), sealers[1], tools)

    def _server(self, tools: Tools) -> tuple[Issuer, Metadata | None, ClaimRules]:
        """How the server is called, what it says of itself, and what its tokens must say."""
        config = self._config
        http = Issuer(timeout=config.timeout, allow_http=config.allow_http)
        issuer = config.discovered_issuer
        if issuer is None:
            return http, None, rules_of(config, tools.name, ())
        exact = config.issuer is not None
        metadata = Metadata(issuer, http, tools, exact=exact, token_url=config.token_url)
        return http, metadata, rules_of(config, tools.name, (issuer,) if exact else (issuer, f"{issuer}/"))

    def _credentials(self) -> ClientCredentials:
        return ClientCredentials(self._config.client_id, self._secret, self._config.client_auth)

    def _take(self, config: OAuth2AuthConfig) -> None:
        self._config = config
        self.name = config.name or "oauth2"
        self._secret = secret_of(config.client_secret, config.client_secret_file, "client_secret_file")
        self._session_secrets = () if config.login is None else session_secrets(config.login)
        self._algorithms = config.algorithm or ("RS256",)
        self._ring = None
        if config.jwks is not None:
            try:
                self._ring = ring_of(config.jwks.get_secret_value(), self._algorithms, public=True)
            except ValueError as error:
                raise ConfigurationError(f"{self.name}.jwks: {error}") from None

    def _new_keys(
        self, metadata: Metadata | None, http: Issuer, tools: Tools, changed: Callable[[], object]
    ) -> KeySource:
        config = self._config
        if self._ring is not None:
            return FixedKeys(self._ring)
        address = config.jwks_url or metadata
        assert address is not None, "the settings were checked for one of them"
        return self._remote_keys(address, http, tools, changed)

    def _new_introspector(
        self, metadata: Metadata | None, http: Issuer, tools: Tools, rules: ClaimRules
    ) -> Introspector | None:
        config = self._config
        if config.mode == "jwt":
            return None
        address = config.introspection_url or metadata
        if address is None:
            return None
        return Introspector(
            address,
            http,
            tools,
            rules=rules,
            credentials=self._credentials(),
            ttl=config.cache_ttl,
        )
