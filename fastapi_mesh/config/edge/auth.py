"""Settings of a gateway's authentication: what a route asks for, and what services learn of the client."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from fastapi_mesh.config.edge.credentials import Names, PublicUrl, Roles, Scopes, known_algorithm, url_problem
from fastapi_mesh.config.edge.providers import Provider
from fastapi_mesh.config.fields import Count, Frozen, Problems, Seconds, Token, shown


class IdentityConfig(Frozen):
    """How services learn who the client is. What clients themselves send in these headers never reaches a service."""

    mode: Literal["headers", "signed", "none"] = Field(
        default="headers",
        description="`headers`: x-auth-subject, -provider, -scopes, -roles; `signed`: a short-lived JWT in `header`.",
    )
    header: Token = Field(default="x-auth-identity", description="The header of the signed form.")
    key: SecretStr | None = Field(default=None, description="The signed form's key: a secret, or a private key as PEM.")
    key_file: str | None = Field(default=None, description="A file with that key.")
    algorithm: Annotated[str, AfterValidator(known_algorithm)] = Field(
        default="HS256", description="The signed form's algorithm."
    )
    key_id: str | None = Field(default=None, description="The signed form's `kid`.")
    issuer: str = Field(default="fastapi-mesh", description="The signed form's `iss`; its `aud` is the service's name.")
    ttl: Seconds = Field(default=60.0, description="Seconds that the signed form is good for.")

    @model_validator(mode="after")
    def _can_sign(self) -> IdentityConfig:
        if self.mode == "signed" and (self.key is None) == (self.key_file is None):
            raise Problems([(("key",), "the signed form needs key or key_file, one of them")])
        return self


class AuthConfig(Frozen):
    """Who may use a gateway."""

    enabled: bool = Field(
        default=True,
        description="False lets everybody through, loudly; refused in production. GATEWAY_AUTH_ENABLED sets it.",
    )
    required: bool = Field(default=False, description="Whether routes ask for authentication that don't say.")
    providers: tuple[Provider, ...] = Field(
        default=(), description="What checks credentials, in order, after those that `configure_auth` was given."
    )
    realm: str = Field(default="gateway", pattern=r"^[\x20\x21\x23-\x5b\x5d-\x7e]{1,64}$", description="In challenges.")
    try_next: bool = Field(
        default=False,
        description="Try the other credentials of a request whose first one is wrong, instead of refusing it.",
    )
    login: bool = Field(
        default=False,
        description="Send browsers that nobody has logged in to log in, where the route doesn't say. Others get 401.",
    )
    forward_credentials: bool = Field(
        default=False, description="Send checked credentials on to the service, where the route doesn't say."
    )
    identity: IdentityConfig = Field(default=IdentityConfig(), description="How services learn who the client is.")
    cache_size: Count = Field(default=10_000, description="Checked tokens that each provider remembers at most.")


class RouteAuthConfig(Frozen):
    """What a route asks of a client."""

    providers: Names | None = Field(default=None, description="Names of the providers that count here; None: all.")
    scopes: Scopes = Field(default=(), description="Scopes that the client must have, all of them.")
    roles: Roles = Field(default=(), description="Roles of which the client must have one.")
    optional: bool = Field(
        default=False, description="Let clients without a credential through; a wrong credential is refused."
    )
    login: bool | None = Field(
        default=None, description="Send browsers without a session to log in; others get 401. None: as the gateway."
    )
    forward_credentials: bool | None = Field(
        default=None, description="Send the checked credential on to the service; None: as the gateway."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> RouteAuthConfig:
        if self.providers is not None and not self.providers:
            raise Problems([(("providers",), "is empty, so nobody could be let in; leave it out for all")])
        if self.optional and (self.scopes or self.roles):
            raise Problems([(("optional",), "clients without a credential have no scope and no role")])
        if self.optional and self.login:
            raise Problems([(("login",), "nobody is sent to log in where authentication is optional")])
        return self


class UpstreamTokenConfig(Frozen):
    """A token of the gateway's own for a service (RFC 6749 section 4.4), sent as `Authorization: Bearer`."""

    token_url: PublicUrl = Field(description="Where tokens are given.")
    client_id: str = Field(min_length=1, description="The gateway's client id.")
    client_secret: SecretStr | None = Field(default=None, description="The gateway's client secret.")
    client_secret_file: str | None = Field(default=None, description="A file with that secret.")
    client_auth: Literal["basic", "post"] = Field(default="basic", description="How the secret is sent.")
    scopes: Scopes = Field(default=(), description="What the token is for.")
    audience: str | None = Field(default=None, description="The parameter `audience` that some servers want.")
    resource: str | None = Field(default=None, description="The parameter `resource` (RFC 8707).")
    allow_http: bool = Field(default=False, description="Call it without TLS, also where it is not on this machine.")
    timeout: Seconds = Field(default=5.0, description="Seconds for a call.")

    @model_validator(mode="after")
    def _is_usable(self) -> UpstreamTokenConfig:
        if problem := url_problem(self.token_url, insecure=self.allow_http):
            raise Problems([(("token_url",), f"{shown(self.token_url)}: {problem}")])
        if (self.client_secret is None) == (self.client_secret_file is None):
            raise Problems([(("client_secret",), "it needs client_secret or client_secret_file, one of them")])
        return self
