"""Settings of a gateway's routes, and what can be wrong with several of them together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fastapi_mesh.config.edge.auth import RouteAuthConfig, UpstreamTokenConfig
from fastapi_mesh.config.edge.cache import CacheTtl, RouteCache
from fastapi_mesh.config.edge.conflicts import duplicate_routes
from fastapi_mesh.config.edge.cors import CorsConfig
from fastapi_mesh.config.edge.limits import RateLimitSetting
from fastapi_mesh.config.edge.routing import (
    REQUEST_ID,
    REST,
    HeaderMatches,
    HostPatterns,
    HostPolicy,
    MaxBody,
    Priority,
    QueryMatches,
    RequestHeaders,
    ResponseHeaders,
    Rewrite,
    placeholders,
)
from fastapi_mesh.config.edge.traffic import CanaryRules, FaultPolicy, MirrorPolicy, SplitPolicy
from fastapi_mesh.config.edge.transform import TransformConfig
from fastapi_mesh.config.edge.websocket import WebSocketPolicy
from fastapi_mesh.config.fields import Frozen, Problems, ServiceName, Token, shown
from fastapi_mesh.config.policies import BreakerPolicy, BulkheadPolicy, RetryPolicy, ServicePolicy, TimeoutPolicy
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


_SECTIONS = frozenset({"timeouts", "retry", "circuit_breaker", "bulkhead"})


class RouteSettings(Frozen):
    """What can be said of a route besides its path and service; also of all dynamic routes together."""

    methods: Methods | None = Field(default=None, description="HTTP methods of this route; None: all.")
    name: str | None = Field(default=None, min_length=1, description="What problems and logs call this route.")
    host: HostPatterns = Field(
        default=(), description="Hosts that are asked for: names, or '*.example.com' for all below; empty: any."
    )
    headers: HeaderMatches = Field(
        default={}, description="Headers to a value, true (there is one), false (there is none) or a table."
    )
    query: QueryMatches = Field(default={}, description="Query parameters, likewise.")
    priority: Priority = Field(
        default=0, description="Of routes with the same path, the one with the higher priority is asked first."
    )
    strip_prefix: bool = Field(
        default=False, description="Take what stands before '*' off the path before it is sent on."
    )
    rewrite: Rewrite | None = Field(
        default=None,
        description="The path that is sent on, like '/v2/users/{id}'; '/v2/*' ends in what '*' stands for.",
    )
    preserve_host: HostPolicy | None = Field(
        default=None,
        description="The Host that the service sees. true: the client's; false: its instance's own; or a name; "
        "None: what the gateway says.",
    )
    request_headers: RequestHeaders | None = Field(
        default=None, description="Changes of the headers that the service gets; None: none."
    )
    response_headers: ResponseHeaders | None = Field(
        default=None, description="Changes of the headers of the service's answers; None: none."
    )
    max_body: MaxBody | None = Field(
        default=None, description="Bytes of a request body; more are refused. Not set: the gateway's; None: any."
    )
    timeouts: TimeoutPolicy | None = Field(
        default=None, description="What differs from the service's timeouts; None: nothing."
    )
    retry: RetryPolicy | None = Field(
        default=None,
        description="What differs from the service's retries, with a budget of its own. Not set: nothing; None: never.",
    )
    circuit_breaker: BreakerPolicy | None = Field(
        default=None,
        description="What differs from the service's, as a circuit of its own. Not set: the service's; None: none.",
    )
    bulkhead: BulkheadPolicy | None = Field(
        default=None, description="Calls in flight of this route alone. Not set: the service's; None: no limit."
    )
    request_priority: Literal["low", "normal", "high"] | None = Field(
        default=None,
        description="How important its requests are: low ones are refused first where there is a limit on how many run "
        "at the same time, here or at a service. None: normal.",
    )
    split: SplitPolicy | None = Field(
        default=None, description="Weighted shares of several services; None: `service` gets everything."
    )
    canary: CanaryRules = Field(default=(), description="Requests with certain headers or cookies go elsewhere.")
    mirror: MirrorPolicy | None = Field(default=None, description="Copies of requests to another service; None: none.")
    fault: FaultPolicy | None = Field(default=None, description="Faults planted on purpose; None: none.")
    websocket: WebSocketPolicy | None = Field(
        default=None, description="WebSockets of this route, over the gateway's `websocket`; false: none."
    )
    cors: CorsConfig | Literal[False] | None = Field(
        default=None,
        description="What pages of other origins may do here; None: what the gateway says; false: nothing.",
    )
    transform: TransformConfig | None = Field(
        default=None, description="What transformers may cost here; None: what the gateway says."
    )
    auth_required: bool | None = Field(
        default=None,
        description="Whether only authenticated clients may use it; None: if it has `auth`, else as the gateway.",
    )
    auth: RouteAuthConfig | None = Field(
        default=None, description="Which providers count, and which scopes and roles a client must have."
    )
    upstream_token: UpstreamTokenConfig | None = Field(
        default=None, description="A token of the gateway's own that the service gets; None: as the service has."
    )
    rate_limit: RateLimitSetting = Field(
        default=None, description="How much a client may ask for in which time, like '100/minute'; None: no limit."
    )
    default_rate_limit: bool = Field(default=True, description="Whether the gateway's `rate_limit` applies here too.")
    cache_ttl: CacheTtl | None = Field(
        default=None,
        description="Seconds for which answers are cached where the service says nothing about it; 0: no caching.",
    )
    cache: RouteCache | None = Field(
        default=None,
        description="What differs from the gateway's `cache`; true: cache what the service allows; false: no caching.",
    )
    require_https: bool | None = Field(
        default=None, description="Refuse plain HTTP: GET and HEAD are redirected (308); None: what the gateway says."
    )

    @model_validator(mode="after")
    def _one_way_to_change_a_path(self) -> Self:
        if self.strip_prefix and self.rewrite is not None:
            raise ValueError("strip_prefix and rewrite exclude each other; a rewrite '/*' is what strip_prefix does")
        return self

    @property
    def overrides(self) -> frozenset[str]:
        """The sections of the service's policy that differ here."""
        own = _SECTIONS & self.model_fields_set
        return own - {"timeouts"} if self.timeouts is None else own

    def policy(self) -> ServicePolicy:
        """What is set here, and nothing else, as a policy to lay over the service's (`overlay`)."""
        return ServicePolicy.model_validate({name: getattr(self, name) for name in self.overrides})


class RouteConfig(RouteSettings, RoutePlace):
    """A route: requests whose path and method match, and all of whose conditions hold, go to `service`."""

    @property
    def label(self) -> str:
        """What problems call this route."""
        return self.name or self.path

    @property
    def identity(self) -> str:
        """What makes it the same route after a change of its other settings."""
        if self.name is not None:
            return self.name
        conditions = (self.host, self.headers, self.query, self.priority)
        return f"{self.path} {','.join(self.methods or ('*',))} {conditions!r}"

    @model_validator(mode="after")
    def _templates_fit_the_path(self) -> Self:
        parameters = _PARAMETER.findall(self.path)
        tail = self.path.endswith("/*")
        problems: list[tuple[tuple[str | int, ...], str]] = []
        if self.rewrite is not None:
            known = [*parameters, *([REST] if tail else [])]
            problems += _unknown_names("rewrite", placeholders(self.rewrite), known)
            if REST in parameters:
                problems.append(
                    (("path",), "'{rest}' is what '*' stands for in a rewrite; call the parameter something else")
                )
            if self.rewrite.endswith("/*") and not tail:
                problems.append((("rewrite",), f"{self.rewrite!r} ends in '*', and the path {self.path!r} does not"))
        for field, operations in (
            ("request_headers", self.request_headers),
            ("response_headers", self.response_headers),
        ):
            if operations is not None:
                problems += _unknown_names(field, operations.names_used(), [*parameters, REQUEST_ID])
        if problems:
            raise Problems(problems)
        return self


class DynamicRoutes(RouteSettings):
    """What is said of all routes that are made from discovered services."""

    @model_validator(mode="after")
    def _nothing_of_one_route(self) -> Self:
        problems: list[tuple[tuple[str | int, ...], str]] = [
            ((name,), "belongs to one route; the prefix of a dynamic route is always taken off")
            for name in ("name", "strip_prefix", "rewrite")
            if getattr(self, name)
        ]
        if problems:
            raise Problems(problems)
        return self


def _unknown_names(field: str, used: Iterable[str], known: list[str]) -> list[tuple[tuple[str | int, ...], str]]:
    there = ", ".join(f"{{{each}}}" for each in known) or "none"
    return [
        ((field,), f"'{{{name}}}' is not known here{suggestion(name, known) or f'; known are: {there}'}")
        for name in dict.fromkeys(used)
        if name not in known
    ]


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
