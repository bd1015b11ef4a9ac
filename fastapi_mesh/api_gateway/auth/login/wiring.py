"""From providers to a gateway's logins: their engines, their cookies, their paths, and what can't be right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.login.cookies import Jar
from fastapi_mesh.api_gateway.auth.login.doors import Door, LoginDesk
from fastapi_mesh.api_gateway.auth.oauth2 import OAuth2AuthProvider
from fastapi_mesh.config.problems import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastapi_mesh.api_gateway.auth.base import AuthProvider, Tools
    from fastapi_mesh.api_gateway.auth.layer import AuthMeter
    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.config.edge.login import LoginConfig
    from fastapi_mesh.config.routes import RouteConfig

METHODS: Mapping[str, tuple[str, ...]] = {"login": ("GET",), "callback": ("GET",), "logout": ("GET", "POST")}
"""No HEAD: a code is used up by looking at its address once."""


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """The logins of an open gateway, by the name of their provider."""

    desks: Mapping[str, LoginDesk]
    jar: Jar

    def doors(self, meter: AuthMeter | None) -> dict[str, tuple[tuple[str, ...], Door]]:
        """What answers at each path of a login, and to which methods."""
        return {
            path: (METHODS[act], Door(desk, act, self.jar, meter))
            for desk in self.desks.values()
            for act, path in _paths(desk.logins.config)
        }


def new_logins(
    providers: Iterable[tuple[str, AuthProvider]], engines: Engines, tools: Tools, *, enabled: bool
) -> LoginPlan | None:
    """The plan for providers with their names; None where none of them logs anybody in. Where authentication is not
    `enabled` cookies are all that it knows: no service gets them either way.
    """
    desks = {}
    configs = []
    for name, provider in providers:
        if isinstance(provider, OAuth2AuthProvider) and provider.login is not None:
            configs.append(provider.login)
            if not enabled:
                continue
            own = replace(tools, name=name)
            settings = (provider.settings, tools.cache_size, tools.production)
            desks[name] = LoginDesk(engines.kept(f"login-{name}", settings, partial(provider.open_logins, own)))
    return LoginPlan(desks, Jar(configs)) if configs else None


def login_problems(
    providers: Sequence[tuple[str, AuthProvider]], routes: Iterable[tuple[RouteConfig, bool]], *, by_default: bool
) -> list[str]:
    """What is wrong with logins; each of `routes` with whether it asks for authentication.

    `by_default` is the gateway's `auth.login`.
    """
    logins = {
        name: provider.login
        for name, provider in providers
        if isinstance(provider, OAuth2AuthProvider) and provider.login is not None
    }
    taken: dict[str, str] = {}
    problems = [
        line(("auth", name, "login"), f"{what!r} is another login's too")
        for name, login in logins.items()
        for what in (*(path for _, path in _paths(login)), login.cookie)
        if taken.setdefault(what, name) != name
    ]
    fix = "give one of them login={'session_secret': ...}"
    if by_default and not logins:
        problems.append(line(("auth", "login"), f"no provider logs anybody in; {fix}"))
    for index, (route, asked) in enumerate(routes):
        own = None if route.auth is None else route.auth.login
        named = None if route.auth is None else route.auth.providers
        if own and not asked:
            problems.append(line(("routes", index, "auth", "login"), f"{route.path!r} asks for no authentication"))
        elif own and not any(named is None or name in named for name in logins):
            text = f"none of the providers of {route.path!r} logs anybody in; {fix}"
            problems.append(line(("routes", index, "auth", "login"), text))
        if route.path in taken:
            text = f"{route.path!r} is the path of a login of the provider {taken[route.path]!r}"
            problems.append(line(("routes", index, "path"), text))
    return problems


def _paths(login: LoginConfig) -> tuple[tuple[str, str], ...]:
    return ("callback", login.redirect_path), ("login", login.login_path), ("logout", login.logout_path)
