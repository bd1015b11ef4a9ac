"""Settings of what checks credentials at a gateway: tokens, an authorization server's tokens, and API keys."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, Secret, SecretStr, ValidationError, model_validator

from fastapi_mesh.config.edge.credentials import Algorithms, Names, PublicUrl, Roles, Scopes, url_problem
from fastapi_mesh.config.edge.login import Login
from fastapi_mesh.config.fields import Delay, Frozen, Problems, Seconds, Token, shown
from fastapi_mesh.config.problems import suggestion, texts_of


class _ProviderConfig(Frozen):
    """What all providers have."""

    name: Token | None = Field(default=None, description="What routes, metrics and logs call it; None: its type.")

    def urls(self) -> list[tuple[str, str]]:
        """Setting and value of each address that is called."""
        return []


class TokenConfig(_ProviderConfig):
    """What all providers of tokens have."""

    algorithm: Algorithms | None = Field(
        default=None,
        description="The algorithm a token must be signed with, or a list of them. None: HS256 with `secret_key`, "
        "RS256 with a key set, and what fits the key with `public_key`.",
    )
    issuer: str | None = Field(
        default=None,
        min_length=1,
        description="What `iss` must be. Without any key it is also where keys are found (OpenID Connect Discovery).",
    )
    audience: Names = Field(
        default=(),
        description="What `aud` must have one of. Without it a token that has an `aud` is refused, as it is meant for "
        "somebody else (RFC 7519 section 4.1.3); '*' takes any.",
    )
    leeway: Delay = Field(default=30.0, description="Seconds by which clocks may differ.")
    required_claims: Names = Field(default=("exp",), description="Claims that a token must have.")
    subject_claim: str = Field(default="sub", min_length=1, description="The claim that says who it is.")
    scopes_claim: str | None = Field(
        default=None, description="The claim with the scopes; None: `scope`, else `scp`. Dots lead into tables."
    )
    roles_claim: str = Field(
        default="roles", description="The claim with the roles, like 'realm_access.roles'. Dots lead into tables."
    )
    token_type: str | None = Field(
        default=None, description="What `typ` must be, like 'at+jwt'; None: JWT, at+jwt or nothing."
    )
    jwks_url: PublicUrl | None = Field(default=None, description="Where the issuer's key set is (RFC 7517).")
    jwks: Secret[dict[str, object]] | None = Field(default=None, description="The key set itself.")
    allow_http: bool = Field(
        default=False, description="Call the issuer without TLS, also where it is not on this machine."
    )
    keys_ttl: Seconds = Field(default=300.0, description="Seconds after which a key set is fetched anew.")
    keys_cooldown: Seconds = Field(
        default=30.0, description="Seconds between two fetches because of a key that is not in the set."
    )
    keys_stale: Seconds = Field(
        default=86_400.0, description="Seconds for which the last key set is good while its server can't be reached."
    )
    timeout: Seconds = Field(default=5.0, description="Seconds for a call to the issuer.")

    def urls(self) -> list[tuple[str, str]]:
        return [("jwks_url", self.jwks_url)] if self.jwks_url else []

    @model_validator(mode="after")
    def _calls_are_safe(self) -> TokenConfig:
        problems = [
            ((name,), f"{shown(url)}: {problem}")
            for name, url in self.urls()
            if (problem := url_problem(url, insecure=self.allow_http))
        ]
        if problems:
            raise Problems(problems)
        return self

    @model_validator(mode="after")
    def _one_family(self) -> TokenConfig:
        if self.algorithm is not None:
            if not self.algorithm:
                raise Problems([(("algorithm",), "is empty, so no token could be right")])
            if len({name.startswith("HS") for name in self.algorithm}) > 1:
                text = "mixes secrets (HS...) with public keys; make two providers"
                raise Problems([(("algorithm",), text)])
        return self


class JwtAuthConfig(TokenConfig):
    """Bearer tokens that are JWTs, checked here. Exactly one of the keys, or `issuer` alone."""

    type: Literal["jwt"] = Field(default="jwt", description="JSON Web Tokens.")
    secret_key: SecretStr | None = Field(default=None, description="The secret of HS256, HS384 or HS512.")
    secret_key_file: str | None = Field(default=None, description="A file with that secret.")
    public_key: str | None = Field(default=None, description="The issuer's public key or certificate, as PEM.")
    public_key_file: str | None = Field(default=None, description="A file with that key.")
    token_url: str | None = Field(
        default=None, description="Where clients get tokens; only the OpenAPI description says so."
    )

    @model_validator(mode="after")
    def _has_a_key(self) -> JwtAuthConfig:
        names = ("secret_key", "secret_key_file", "public_key", "public_key_file", "jwks_url", "jwks")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise Problems([((given[1],), f"is given beside {given[0]}: a provider has one source of keys")])
        if not given and self.issuer is None:
            raise Problems([((), f"has no key: it needs one of {', '.join(names)}, or issuer")])
        if not given and (problem := url_problem(self.issuer or "", insecure=self.allow_http)):
            text = f"{shown(self.issuer or '')}: {problem}; keys are found there, as no key is given"
            raise Problems([(("issuer",), text)])
        secret = bool(given) and given[0].startswith("secret_key")
        for name in self.algorithm or ():
            if secret != name.startswith("HS") and given != ["jwks"]:
                needs = "a secret" if name.startswith("HS") else "a public key"
                raise Problems(
                    [(("algorithm",), f"{name} needs {needs}, and {given[0] if given else 'issuer'} is not")]
                )
        if self.secret_key is not None and not self.secret_key.get_secret_value():
            raise Problems([(("secret_key",), "is empty")])
        return self


class OAuth2AuthConfig(TokenConfig):
    """Bearer tokens of an authorization server: JWTs by its keys, any others by asking it (RFC 7662)."""

    type: Literal["oauth2"] = Field(default="oauth2", description="An OAuth 2 or OpenID Connect server.")
    client_id: str = Field(min_length=1, description="The gateway's own client id.")
    client_secret: SecretStr | None = Field(default=None, description="The gateway's own client secret.")
    client_secret_file: str | None = Field(default=None, description="A file with that secret.")
    authorization_url: PublicUrl | None = Field(
        default=None,
        description="Where users log in, for `login` and the OpenAPI description; None: as the issuer's metadata says.",
    )
    token_url: PublicUrl | None = Field(
        default=None,
        description="Where tokens are given. Without `issuer`, `introspection_url` and keys, its origin is the issuer.",
    )
    introspection_url: PublicUrl | None = Field(
        default=None, description="Where the server says whether a token is good (RFC 7662)."
    )
    mode: Literal["auto", "jwt", "introspection"] = Field(
        default="auto",
        description="`jwt`: check here; `introspection`: ask for each new token; `auto`: JWTs here if there are keys.",
    )
    client_auth: Literal["basic", "post"] = Field(
        default="basic", description="How the gateway proves itself to the server (RFC 6749 section 2.3.1)."
    )
    cache_ttl: Delay = Field(
        default=60.0,
        description="Seconds for which an introspected token stays good, never past its `exp`; 0: asks always.",
    )
    login: Login = Field(
        default=None, description="Let browsers log in here (OpenID Connect, code flow with PKCE); None: they can't."
    )

    def urls(self) -> list[tuple[str, str]]:
        return [
            *super().urls(),
            *(
                (name, url)
                for name, url in (
                    ("introspection_url", self.introspection_url),
                    ("token_url", self.token_url),
                    ("authorization_url", self.authorization_url if self.login else None),
                )
                if url
            ),
        ]

    @property
    def has_keys(self) -> bool:
        """Whether tokens can be checked here: a key set is given, or is found at the issuer."""
        if self.mode == "introspection":
            return False
        if self.jwks_url or self.jwks or self.mode == "jwt":
            return True
        return self.introspection_url is None and self.discovered_issuer is not None

    @property
    def discovered_issuer(self) -> str | None:
        """Where the server's metadata is looked for; None where everything needed is given."""
        if self.issuer is not None:
            return self.issuer
        if self.introspection_url or self.jwks_url or self.jwks or not self.token_url:
            return None
        parts = urlsplit(self.token_url)
        return f"{parts.scheme}://{parts.netloc}"

    @model_validator(mode="after")
    def _can_check(self) -> OAuth2AuthConfig:
        issuer = self.discovered_issuer
        given = bool(self.jwks_url or self.jwks)
        if issuer is None and not given and not self.introspection_url:
            text = "can't check a token: it needs token_url, issuer, jwks_url, jwks or introspection_url"
            raise Problems([((), text)])
        if issuer is not None and not (given or self.introspection_url):
            problem = url_problem(issuer, insecure=self.allow_http)
            if problem:
                raise Problems([(("issuer",), f"{shown(issuer)}: {problem}; its keys are found there")])
        if self.client_secret is not None and self.client_secret_file is not None:
            raise Problems([(("client_secret_file",), "is given beside client_secret")])
        if any(name.startswith("HS") for name in self.algorithm or ()):
            raise Problems([(("algorithm",), "an authorization server's keys are public: no HS algorithm")])
        if self.mode == "jwt" and not (given or issuer):
            raise Problems([(("mode",), "jwt needs issuer, jwks_url or jwks")])
        return self

    @model_validator(mode="after")
    def _can_log_in(self) -> OAuth2AuthConfig:
        """OpenID Connect Core section 3.1.3.7: an ID token's `iss` is compared with something."""
        if self.login is not None and self.discovered_issuer is None:
            raise Problems([(("issuer",), "a login needs it: an ID token must be of that issuer")])
        return self


class ApiKeyConfig(Frozen):
    """An API key, and what its owner may do."""

    key: SecretStr = Field(description="The key, or 'sha256:' and the hexadecimal SHA-256 of it.")
    scopes: Scopes = Field(default=(), description="What its owner may do.")
    roles: Roles = Field(default=(), description="The roles of its owner.")

    @model_validator(mode="before")
    @classmethod
    def _key_alone(cls, value: object) -> object:
        return {"key": value} if isinstance(value, (str, SecretStr)) else value

    @model_validator(mode="after")
    def _is_a_key(self) -> ApiKeyConfig:
        text = self.key.get_secret_value()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise Problems([(("key",), "is not a key: printable ASCII without spaces")])
        if text.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
            raise Problems([(("key",), "is not 'sha256:' and 64 hexadecimal digits")])
        return self


def _numbered(value: object) -> object:
    """A plain list of keys is a table: they are called by the beginning of their hash."""
    if isinstance(value, (list, tuple)):
        return {f"{position}": each for position, each in enumerate(value, 1)}
    return value


class ApiKeyAuthConfig(_ProviderConfig):
    """API keys. The first of header, query and cookie that a request has counts; two at once are refused."""

    type: Literal["api_key"] = Field(default="api_key", description="API keys.")
    api_key_header: Token | None = Field(default="X-API-Key", description="The header with the key; None: no header.")
    api_key_query: str | None = Field(
        default="api_key", min_length=1, description="The query parameter with the key; None: none."
    )
    api_key_cookie: Token | None = Field(default=None, description="The cookie with the key; None: none.")
    keys: Annotated[dict[str, ApiKeyConfig], BeforeValidator(_numbered, json_schema_input_type=dict | list)] = Field(
        default={}, description="Name of the owner to the key; a plain list names them '1', '2', ..."
    )
    cache_ttl: Delay = Field(
        default=60.0, description="Seconds for which the answer of a `verify` function stays good; 0: asks always."
    )

    @model_validator(mode="after")
    def _has_a_place(self) -> ApiKeyAuthConfig:
        if not (self.api_key_header or self.api_key_query or self.api_key_cookie):
            raise Problems([((), "has no place for the key: api_key_header, api_key_query or api_key_cookie")])
        if (self.api_key_header or "").lower() in ("authorization", "cookie", "host"):
            raise Problems([(("api_key_header",), f"{self.api_key_header!r} has a meaning of its own")])
        return self


ProviderConfig = JwtAuthConfig | OAuth2AuthConfig | ApiKeyAuthConfig
_BY_TYPE: dict[str, type[ProviderConfig]] = {
    "jwt": JwtAuthConfig,
    "oauth2": OAuth2AuthConfig,
    "api_key": ApiKeyAuthConfig,
}


def _by_type(value: object) -> object:
    """One provider, read by its `type`, so that its problems have their own paths."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    model = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = ", ".join(_BY_TYPE)
        hint = suggestion(kind, _BY_TYPE) if isinstance(kind, str) else ""
        said = "is missing: " if kind is None else f"{shown(str(kind))} is not "
        raise Problems([(("type",), f"{said}one of {known}{hint}")])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Problems(texts_of(error, model)) from None


Provider = Annotated[ProviderConfig, BeforeValidator(_by_type, json_schema_input_type=ProviderConfig)]
