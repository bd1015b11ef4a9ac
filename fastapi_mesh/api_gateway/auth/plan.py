"""From settings and providers to each route's layers: who is asked, what is stripped, and what can't be right."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.api_key import APIKeyAuthProvider
from fastapi_mesh.api_gateway.auth.base import AuthProvider
from fastapi_mesh.api_gateway.auth.challenges import Challenges
from fastapi_mesh.api_gateway.auth.identity import Identity, PlainIdentity, SignedIdentity, Told, identity_names
from fastapi_mesh.api_gateway.auth.jwt import JWTAuthProvider
from fastapi_mesh.api_gateway.auth.layer import Authenticate, Authorize, Entry, StripIdentity
from fastapi_mesh.api_gateway.auth.login.layer import AuthenticateBrowser, Browsers, StripSessions
from fastapi_mesh.api_gateway.auth.login.wiring import LoginPlan, login_problems, new_logins
from fastapi_mesh.api_gateway.auth.oauth2 import OAuth2AuthProvider
from fastapi_mesh.api_gateway.auth.reading import Reader
from fastapi_mesh.api_gateway.auth.tokens import UpstreamToken, UpstreamTokens, new_upstream_tokens
from fastapi_mesh.config.edge.auth import RouteAuthConfig
from fastapi_mesh.config.edge.providers import JwtAuthConfig, OAuth2AuthConfig
from fastapi_mesh.config.problems import line, suggestion
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_mesh.api_gateway.auth.base import Tools, Verifier
    from fastapi_mesh.api_gateway.auth.layer import AuthMeter
    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.edge.auth import AuthConfig
    from fastapi_mesh.config.edge.providers import ProviderConfig
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.config.routes import RouteConfig

logger = logging.getLogger("fastapi_mesh.gateway")

_NOTHING = RouteAuthConfig()


@dataclass(frozen=True, slots=True)
class AuthPlan:
    """What all routes share. Made by `new_plan`; each method gives a route's layer, or None where it needs none."""

    config: AuthConfig
    entries: tuple[Entry, ...]
    told: Told
    never: frozenset[bytes]
    strips: bool
    """Whether routes that ask nobody drop what clients say of who they are: services of this gateway believe it."""
    tokens: dict[int, dict[str, UpstreamTokens]]
    """By the id of the route, which lives as long as its chain; then by service."""
    logins: LoginPlan | None = None

    def authenticate(self, inner: GatewayService, route: Route, meter: AuthMeter | None) -> GatewayService | None:
        """The layer that finds out who it is, or the one that lets nobody pretend to have been asked."""
        config = route.config
        if not self.config.enabled or not is_asked(config, self.config):
            stripped = StripIdentity(inner, self.never) if self.strips else None
            return stripped if self.logins is None else StripSessions(stripped or inner, self.logins.jar)
        asked = config.auth or _NOTHING
        keep = self.config.forward_credentials if asked.forward_credentials is None else asked.forward_credentials
        entries = self._entries_of(asked)
        reader = Reader((place for entry in entries for place in entry.places), keep=keep, never=self.never)
        credentials = Authenticate(
            inner,
            entries,
            reader,
            self._challenges(asked),
            optional=asked.optional,
            try_next=self.config.try_next,
            meter=meter,
        )
        if self.logins is None:
            return credentials
        desks = tuple(self.logins.desks[entry.name] for entry in entries if entry.name in self.logins.desks)
        redirects = bool(desks) and (self.config.login if asked.login is None else asked.login)
        return AuthenticateBrowser(inner, credentials, Browsers(desks, self.logins.jar, redirects))

    def authorize(self, inner: GatewayService, route: Route, meter: AuthMeter | None) -> GatewayService | None:
        """The layer that asks for scopes and roles."""
        asked = route.config.auth
        if asked is None or not (asked.scopes or asked.roles) or not self.config.enabled:
            return None
        return Authorize(inner, frozenset(asked.scopes), frozenset(asked.roles), self._challenges(asked), meter)

    def identity(self, inner: GatewayService, route: Route) -> GatewayService | None:
        """The layer that tells the service who it is."""
        if not self.config.enabled or self.config.identity.mode == "none" or not is_asked(route.config, self.config):
            return None
        return Identity(inner, self.told)

    def upstream_token(self, inner: GatewayService, route: Route) -> GatewayService | None:
        """The layer that sends a token of the gateway's own."""
        tokens = self.tokens.get(id(route))
        return UpstreamToken(inner, tokens) if tokens else None

    def _entries_of(self, asked: RouteAuthConfig) -> tuple[Entry, ...]:
        if asked.providers is None:
            return self.entries
        by_name = {entry.name: entry for entry in self.entries}
        return tuple(by_name[name] for name in asked.providers)

    def _challenges(self, asked: RouteAuthConfig) -> Challenges:
        schemes = [entry.scheme for entry in self._entries_of(asked)]
        return Challenges(schemes, self.config.realm, asked.scopes)


def new_plan(
    config: GatewayConfig,
    given: Iterable[AuthProvider],
    routes: Sequence[Route],
    engines: Engines,
    tools: Tools,
) -> AuthPlan:
    """The plan for `config`, with the providers that code has given before those of the settings.

    Raises ConfigurationError: a route that asks for authentication and can't have it is never served (B42).
    """
    auth = config.auth
    providers = _named([*given, *(new_provider(each) for each in auth.providers)])
    problems = _problems([route.config for route in routes], auth, [name for name, _ in providers])
    problems += login_problems(
        providers, ((route.config, is_asked(route.config, auth)) for route in routes), by_default=auth.login
    )
    if tools.production:
        problems += [line(("auth", name), text) for name, each in providers for text in each.warnings()]
        if not auth.enabled:
            text = "authentication can't be switched off in production (MESH_ENVIRONMENT=production)"
            problems.append(line(("auth", "enabled"), text))
    if problems:
        raise ConfigurationError(problems=problems, source="gateway")
    tools = replace(tools, cache_size=auth.cache_size)
    entries = tuple(
        Entry(name, each.challenge, each.places, _opened(name, each, engines, tools))
        for name, each in providers
        if auth.enabled
    )
    if not auth.enabled:
        _say_bypass([route.config for route in routes], auth)
    signed = auth.identity.mode == "signed"
    return AuthPlan(
        auth,
        entries,
        SignedIdentity(auth.identity, tools.wall) if signed else PlainIdentity(),
        identity_names(auth.identity),
        bool(providers),
        _tokens(config, routes, engines, tools),
        new_logins(providers, engines, tools, enabled=auth.enabled),
    )


def new_provider(config: ProviderConfig) -> AuthProvider:
    """The provider that settings describe. Raises ConfigurationError."""
    if isinstance(config, JwtAuthConfig):
        return JWTAuthProvider.from_config(config)
    if isinstance(config, OAuth2AuthConfig):
        return OAuth2AuthProvider.from_config(config)
    return APIKeyAuthProvider.from_config(config)


def checked_providers(providers: Iterable[object]) -> tuple[AuthProvider, ...]:
    """What `configure_auth` was given. Raises ConfigurationError for what is no provider."""
    listed = tuple(providers)
    wrong = [
        f"[{index}]: a value of type {type(each).__name__} is no provider"
        for index, each in enumerate(listed)
        if not isinstance(each, AuthProvider)
    ]
    if wrong:
        raise ConfigurationError(problems=wrong, source="configure_auth")
    return tuple(each for each in listed if isinstance(each, AuthProvider))


def is_asked(route: RouteConfig, auth: AuthConfig) -> bool:
    """Whether a route asks who the client is: it says so, it has `auth`, or the gateway's default says so."""
    if route.auth_required is not None:
        return route.auth_required
    return route.auth is not None or auth.required


def _named(providers: Iterable[AuthProvider]) -> list[tuple[str, AuthProvider]]:
    """Each provider with a name of its own: the second `jwt` is `jwt-2`."""
    counts: dict[str, int] = {}
    named = []
    for provider in providers:
        count = counts[provider.name] = counts.get(provider.name, 0) + 1
        named.append((provider.name if count == 1 else f"{provider.name}-{count}", provider))
    return named


def _opened(name: str, provider: AuthProvider, engines: Engines, tools: Tools) -> Verifier:
    tools = replace(tools, name=name)

    def open_it() -> Verifier:
        for text in provider.warnings():
            logger.warning("authentication provider %s: %s", name, text)
        return provider.open(tools)

    return engines.kept(f"auth-{name}", (provider.settings, tools.cache_size, tools.production), open_it)


def _problems(routes: Iterable[RouteConfig], auth: AuthConfig, names: list[str]) -> list[str]:
    problems = []
    for index, route in enumerate(routes):
        asked = route.auth
        if route.auth_required is False and asked is not None:
            problems.append(line(("routes", index, "auth"), f"{route.path!r} has auth, and auth_required is false"))
        if route.auth_required and asked is not None and asked.optional:
            text = f"{route.path!r} has auth_required, and auth.optional lets everybody in"
            problems.append(line(("routes", index, "auth", "optional"), text))
        if is_asked(route, auth) and not names:
            setting = "auth_required" if route.auth_required else "auth"
            text = (
                f"{route.path!r} asks for authentication, and there is no provider; "
                "give one with gateway.configure_auth([...]) or auth.providers"
            )
            problems.append(line(("routes", index, setting), text))
        elif asked is not None:
            problems += [
                line(
                    ("routes", index, "auth", "providers"),
                    f"{name!r} is no provider; there are {', '.join(names)}{suggestion(name, names)}",
                )
                for name in asked.providers or ()
                if name not in names
            ]
    return problems


def _say_bypass(routes: Iterable[RouteConfig], auth: AuthConfig) -> None:
    open_now = [route.path for route in routes if is_asked(route, auth)]
    logger.warning(
        "AUTHENTICATION IS OFF (auth.enabled=false, or GATEWAY_AUTH_ENABLED): everybody may use %d routes that ask "
        "for it: %s",
        len(open_now),
        ", ".join(open_now[:10]) or "none",
    )


def _tokens(
    config: GatewayConfig, routes: Sequence[Route], engines: Engines, tools: Tools
) -> dict[int, dict[str, UpstreamTokens]]:
    """For each route that needs it, the tokens of the services that may answer; the route's own setting wins.

    Equal settings have one engine, whoever has them.
    """
    made: dict[str, UpstreamTokens] = {}
    found: dict[int, dict[str, UpstreamTokens]] = {}
    for route in routes:
        of_route: dict[str, UpstreamTokens] = {}
        for service in route.services:
            own = config.services.get(service)
            wanted = route.config.upstream_token or (None if own is None else own.upstream_token)
            if wanted is not None:
                new = new_upstream_tokens(wanted, tools)
                name = f"upstream-token-{new.purpose}"
                if name not in made:
                    made[name] = _kept(engines, name, new)
                of_route[service] = made[name]
        if of_route:
            found[id(route)] = of_route
    return found


def _kept(engines: Engines, name: str, new: UpstreamTokens) -> UpstreamTokens:
    return engines.kept(name, new.settings, lambda: new)
