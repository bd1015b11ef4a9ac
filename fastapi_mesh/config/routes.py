"""Settings of a gateway's routes, and what can be wrong with several of them together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from fastapi_mesh.config.edge.traffic import CanaryRules, FaultPolicy, MirrorPolicy, SplitPolicy
from fastapi_mesh.config.fields import Frozen, Problems, ServiceName, Token, shown
from fastapi_mesh.config.later import LaterOption, later
from fastapi_mesh.config.problems import line, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable

_PARAMETER = re.compile(r"\{([A-Za-z_]\w*)\}", re.ASCII)


def route_path(value: str) -> str:
    """`value`, if it can be the path of a route; raises ValueError that says why not."""
    if not value.startswith("/"):
        raise ValueError(f"{shown(value)} does not start with '/'")
    if any(letter <= " " or letter in "?#" for letter in value):
        raise ValueError(f"{value!r} has a space, '?' or '#' in it, which no path of a request has")
    names = []
    segments = value[1:].split("/")
    for index, segment in enumerate(segments):
        if match := _PARAMETER.fullmatch(segment):
            names.append(match[1])
        elif "*" in segment and (segment != "*" or index < len(segments) - 1):
            raise ValueError(f"{value!r}: '*' stands alone at the end, as '/*'")
        elif set("{}") & set(segment):
            raise ValueError(f"{value!r}: a parameter is a whole segment, like '/{{user_id}}'")
    if len(names) > len(set(names)):
        raise ValueError(f"{value!r} names a parameter twice")
    return value


def _shape(path: str) -> str:
    """Paths that match the same requests have the same shape."""
    return _PARAMETER.sub("{}", path)


def _methods(value: object) -> object:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return value
    return tuple(each.upper() if isinstance(each, str) else each for each in value)


def _any(methods: tuple[str, ...]) -> tuple[str, ...]:
    if not methods:
        raise ValueError("is empty, so no request could match; leave it out for every method")
    return methods


RoutePath = Annotated[str, AfterValidator(route_path)]
Methods = Annotated[tuple[Token, ...], BeforeValidator(_methods), AfterValidator(_any)]


class RoutePlace(Frozen):
    """What a route leads from and to."""

    path: RoutePath = Field(
        description="What the path must be: '/api/users/*' is everything below and '/api/users' itself, "
        "'{name}' one segment."
    )
    service: ServiceName = Field(description="The service that answers.")


class RouteSettings(Frozen):
    """What can be said of a route besides its path and service; also of all dynamic routes together."""

    methods: Methods | None = Field(default=None, description="HTTP methods of this route; None: all.")
    strip_prefix: bool = Field(
        default=False, description="Take what stands before '*' off the path before it is sent on."
    )
    split: SplitPolicy | None = Field(
        default=None, description="Weighted shares of several services; None: `service` gets everything."
    )
    canary: CanaryRules = Field(default=(), description="Requests with certain headers or cookies go elsewhere.")
    mirror: MirrorPolicy | None = Field(default=None, description="Copies of requests to another service; None: none.")
    fault: FaultPolicy | None = Field(default=None, description="Faults planted on purpose; None: none.")
    auth_required: LaterOption = later("auth_required")
    rate_limit: LaterOption = later("rate_limit")
    cache_ttl: LaterOption = later("cache_ttl")
    require_https: LaterOption = later("require_https")


class RouteConfig(RouteSettings, RoutePlace):
    """A route: requests whose path and method match go to `service`."""


def duplicate_routes(routes: tuple[RouteConfig, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    """Routes that can't be told apart: the same path, and a method in common. (index,) and a text for each."""
    seen: dict[str, list[tuple[int, RouteConfig]]] = {}
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, route in enumerate(routes):
        earlier = seen.setdefault(_shape(route.path), [])
        for other_index, other in earlier:
            if route.methods is None and other.methods is None:
                shared = ["any method"]
            else:
                shared = [method for method in route.methods or () if method in (other.methods or ())]
            if shared:
                claimed = f"{route.path!r} with {', '.join(shared)} is already routes[{other_index}]"
                problems.append(((index,), f"{claimed}; remove one or split methods"))
                break
        earlier.append((index, route))
    return problems


def _no_duplicates(routes: tuple[RouteConfig, ...]) -> tuple[RouteConfig, ...]:
    if problems := duplicate_routes(routes):
        raise Problems(problems)
    return routes


Routes = Annotated[tuple[RouteConfig, ...], AfterValidator(_no_duplicates)]


def answering(route: RouteConfig) -> tuple[str, ...]:
    """The services that may answer the requests of a route, `service` first."""
    others = () if route.split is None else route.split.services
    return tuple(dict.fromkeys((route.service, *others, *(rule.service for rule in route.canary))))


def _named(route: RouteConfig) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """Every place of a route that names a service, and the name."""
    yield ("service",), route.service
    for name in () if route.split is None else route.split.services:
        yield ("split", "services", name), name
    for index, rule in enumerate(route.canary):
        yield ("canary", index, "service"), rule.service
    if route.mirror is not None:
        yield ("mirror", "service"), route.mirror.service


def check_routes(routes: Iterable[RouteConfig], known_services: Iterable[str], *, discoverable: bool) -> list[str]:
    """A line for each route to a service that nobody knows.

    With `discoverable` the mesh may still find it, so there is nothing to say.
    """
    if discoverable:
        return []
    known = set(known_services)
    return [
        line(("routes", index, *place), unknown_service(name, known))
        for index, route in enumerate(routes)
        for place, name in _named(route)
        if name not in known
    ]


def unknown_service(service: str, known: Iterable[str]) -> str:
    """What is wrong with the name of a service that is not `known`."""
    return f"{service!r} is not a known service{suggestion(service, sorted(known))}"
