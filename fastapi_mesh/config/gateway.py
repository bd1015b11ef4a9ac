"""Settings of a gateway: where it listens, its routes, and the services behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fastapi_mesh.config.edge.auth import AuthConfig, UpstreamTokenConfig
from fastapi_mesh.config.edge.cache import CacheConfig, CacheTtl, cache_policy, force_problem
from fastapi_mesh.config.edge.cors import CorsConfig
from fastapi_mesh.config.edge.limits import RateLimitingConfig, RateLimitSetting
from fastapi_mesh.config.edge.listener import Listener
from fastapi_mesh.config.edge.logging import AccessLog, Level
from fastapi_mesh.config.edge.routing import HostPolicy, MaxBody
from fastapi_mesh.config.edge.transform import TransformConfig
from fastapi_mesh.config.edge.websocket import WebSocketPolicy
from fastapi_mesh.config.fields import (
    Factor,
    Frozen,
    InstanceUrls,
    NotBool,
    OneOrMany,
    Port,
    Problems,
    Proxy,
    Seconds,
    ServiceName,
    Token,
    Weight,
)
from fastapi_mesh.config.overlay import misfits, overlay
from fastapi_mesh.config.policies import (
    BalancingPolicy,
    BreakerPolicy,
    BulkheadPolicy,
    LoadBalancingStrategy,
    OutlierPolicy,
    RetryPolicy,
    ServicePolicy,
    TimeoutPolicy,
    attempt_misfit,
)
from fastapi_mesh.config.probes import HealthCheck, ProbePolicy, timeout_misfit
from fastapi_mesh.config.routes import DynamicRoutes, RouteConfig, Routes, check_routes, route_path

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

__all__ = ["RETRY_BASE_DELAY", "GatewayConfig", "GatewayServiceConfig", "RouteConfig", "Routes", "check_routes"]

RETRY_BASE_DELAY = 0.1
"""Seconds of a gateway's first wait, which `retry_backoff` multiplies."""


class GatewayServiceConfig(Frozen):
    """A service behind a gateway. A plain URL or list of URLs stands for its `instances`."""

    instances: InstanceUrls = Field(
        default=(), description="Its addresses: one URL or a list; empty: the mesh finds them."
    )
    load_balancing: LoadBalancingStrategy = Field(
        default=LoadBalancingStrategy.ROUND_ROBIN, description="How the next instance is picked."
    )
    balancing: BalancingPolicy = Field(
        default=BalancingPolicy(),
        description="Everything else of balancing: sticky sessions, tiers, zones... `load_balancing`, `weights` and "
        "`health_check_required` beside it are short for its own, and win over them.",
    )
    weights: dict[str, Weight] = Field(
        default={}, description="Share of an instance by its id, in relation to the others; 1.0 where absent."
    )
    timeouts: TimeoutPolicy = Field(default=TimeoutPolicy(), description="What differs from the gateway's timeouts.")
    retry: RetryPolicy | None = Field(
        default=RetryPolicy(), description="What differs from the gateway's retries; None: never."
    )
    circuit_breaker: BreakerPolicy | None = Field(
        default=BreakerPolicy(), description="Refusing calls to a service that fails; None: never."
    )
    bulkhead: BulkheadPolicy | None = Field(default=None, description="Calls in flight; None: no limit.")
    outlier: OutlierPolicy | None = Field(
        default=OutlierPolicy(), description="Leaving out an instance that fails; None: never."
    )
    upstream_token: UpstreamTokenConfig | None = Field(
        default=None, description="A token of the gateway's own that it gets; None: none."
    )
    health_check: HealthCheck = Field(
        default=None,
        description="Asking its instances how they are: a path like '/health', true for the paths that they have "
        "registered, or a table; None: never.",
    )
    health_check_interval: Seconds | None = Field(
        default=None, description="Short for `health_check.interval`: seconds between two probes; None: 30."
    )
    health_check_required: bool = Field(
        default=False, description="Use an instance only once its registration or a probe has said that it is well."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _urls_alone(cls, value: object) -> object:
        return {"instances": value} if isinstance(value, (str, list, tuple)) else value

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        check, interval = self.health_check, self.health_check_interval
        if interval is None:
            return self
        problem = ""
        if check is None:
            problem = "there is no health_check whose interval it could be; set health_check to a path, or leave it out"
        elif "interval" in check.model_fields_set and check.interval != interval:
            problem = f"{interval:g} s, but health_check.interval is {check.interval:g} s; leave one of them out"
        else:
            problem = timeout_misfit(check.timeout, "health_check_interval", interval)
        if problem:
            raise Problems([(("health_check_interval",), problem)])
        return self

    def _probes(self) -> ProbePolicy | None:
        """What is set of probes, the short form worked in."""
        if self.health_check is None or self.health_check_interval is None:
            return self.health_check
        own = self.health_check.model_dump(exclude_unset=True)
        return ProbePolicy.model_validate({**own, "interval": self.health_check_interval})

    def policy(self) -> ServicePolicy:
        """What is set here, and nothing else, as a policy to lay over another (`overlay`)."""
        sections = {"timeouts", "retry", "circuit_breaker", "bulkhead", "outlier"} & self.model_fields_set
        balancing: dict[str, object] = self.balancing.model_dump(exclude_unset=True)
        if "load_balancing" in self.model_fields_set:
            balancing["strategy"] = self.load_balancing
        if "weights" in self.model_fields_set:
            balancing["weights"] = self.weights
        if "health_check_required" in self.model_fields_set:
            balancing["health_check_required"] = self.health_check_required
        data: dict[str, object] = {name: getattr(self, name) for name in sections}
        if "health_check" in self.model_fields_set:
            data["health_check"] = self._probes()
        if balancing:
            data["load_balancing"] = BalancingPolicy.model_validate(balancing)
        return ServicePolicy.model_validate(data)


class GatewayConfig(Listener):
    """Everything a gateway can be told."""

    prefix: str = Field(default="", description="A path before every route, like '/gateway'; it is not sent on.")
    request_timeout: Seconds = Field(
        default=30.0, description="Seconds for a whole request with all attempts, up to the response head."
    )
    upstream_timeout: Seconds = Field(
        default=25.0, description="Seconds for one attempt, up to the response head; at most `request_timeout`."
    )
    max_retries: Annotated[int, Field(ge=0, le=19), NotBool] = Field(
        default=3,
        description="Extra attempts after the first: 3 makes 4 in total (a mesh's max_attempts is the total).",
    )
    retry_backoff: Factor = Field(
        default=2.0, description="Growth of the wait between attempts; the first is 0.1 s, all with full jitter."
    )
    trusted_proxies: Annotated[tuple[Proxy, ...], OneOrMany] = Field(
        default=(),
        description="Addresses or networks whose forwarding headers are believed; 'unix' is whoever connects over a "
        "Unix socket. None by default.",
    )
    via: Token = Field(default="fastapi-mesh", description="The name of this gateway in the Via header.")
    enable_metrics: bool = Field(default=True, description="Count requests and answer /metrics.")
    circuit_breakers: dict[ServiceName, BreakerPolicy | None] = Field(
        default={},
        description="Service to its circuit breaker, instead of the one in `services`; null: none.",
    )
    services: dict[ServiceName, GatewayServiceConfig] = Field(
        default={},
        validate_default=True,
        description="Service to its addresses and what differs for it; one URL or a list is enough.",
    )
    routes: Routes = Field(default=(), description="Which requests go to which service.")
    websocket: WebSocketPolicy = Field(
        default=WebSocketPolicy(), description="WebSockets of all routes; false: none, unless a route says otherwise."
    )
    cors: CorsConfig | None = Field(default=None, description="What pages of other origins may do; None: nothing.")
    transform: TransformConfig = Field(default=TransformConfig(), description="What transformers may cost.")
    auth: AuthConfig = Field(default=AuthConfig(), description="Who may use the gateway.")
    cache_ttl: CacheTtl | None = Field(
        default=None, description="Seconds, as a route's `cache_ttl`, for all routes that don't say otherwise."
    )
    cache: CacheConfig = Field(
        default=CacheConfig(), description="The shared cache: its store, and the rules of all routes that use it."
    )
    access_log: AccessLog = Field(default=None, description="A line for each request; None: none.")
    error_log: bool = Field(
        default=True,
        description="Write the gateway's own warnings and errors to stderr; standalone, where no logging is set up.",
    )
    log_level: Level = Field(default="INFO", description="The least level that is written there.")
    dynamic_routing: bool = Field(
        default=False, description="Make a route '<route_prefix>/<service>/*' for each service that discovery knows."
    )
    route_prefix: str = Field(default="", description="What is before the service in a dynamic route, like '/api/v1'.")
    dynamic_routes: DynamicRoutes = Field(
        default=DynamicRoutes(), description="What a route can be told, for all dynamic routes."
    )
    require_https: bool = Field(
        default=False, description="Refuse plain HTTP on all routes that don't say otherwise; see `https_port`."
    )
    https_port: Port = Field(default=443, description="The port that a redirect to HTTPS names.")
    max_body: MaxBody | None = Field(
        default=None, description="Bytes of a request body, on routes that don't say otherwise; None: any."
    )
    inbound_limit: BulkheadPolicy | None = Field(
        default=None,
        description="Requests that the gateway answers at the same time, all routes together; more get 503. None: no "
        "limit.",
    )
    preserve_host: HostPolicy = Field(
        default=True,
        description="The Host that services see. true: the client's; false: their instance's own; or a name.",
    )
    rate_limit: RateLimitSetting = Field(
        default=None,
        description="How much a client may ask of all routes together, like '1000/hour', besides the routes' own "
        "limits; None: no limit.",
    )
    ip_rate_limit: RateLimitSetting = Field(
        default=None,
        description="How much may come from one address, checked before authentication; its key is 'ip' unless set.",
    )
    rate_limiting: RateLimitingConfig = Field(
        default=RateLimitingConfig(), description="What all rate limits have in common: their storage and strategy."
    )

    @field_validator("prefix", "route_prefix")
    @classmethod
    def _prefix_is_a_path(cls, prefix: str) -> str:
        trimmed = prefix.rstrip("/")
        if trimmed and set("*{}") & set(route_path(trimmed)):
            raise ValueError(f"{prefix!r}: a prefix has no '*' and no parameter")
        return trimmed

    @field_validator("upstream_timeout")
    @classmethod
    def _attempt_fits(cls, upstream_timeout: float, info: ValidationInfo) -> float:
        total = info.data.get("request_timeout")
        if problem := attempt_misfit("upstream_timeout", upstream_timeout, "request_timeout", total):
            raise ValueError(problem)
        return upstream_timeout

    @field_validator("services")
    @classmethod
    def _with_breakers(
        cls, services: dict[str, GatewayServiceConfig], info: ValidationInfo
    ) -> dict[str, GatewayServiceConfig]:
        """The services with the breakers that are set by themselves."""
        breakers: dict[str, BreakerPolicy | None] = info.data.get("circuit_breakers", {})
        return services | {
            name: services.get(name, GatewayServiceConfig()).model_copy(update={"circuit_breaker": breaker})
            for name, breaker in breakers.items()
        }

    @field_validator("services")
    @classmethod
    def _services_fit(
        cls, services: dict[str, GatewayServiceConfig], info: ValidationInfo
    ) -> dict[str, GatewayServiceConfig]:
        total = ServicePolicy(timeouts=TimeoutPolicy(timeout=info.data.get("request_timeout")))
        if problems := [
            ((service, *place), text)
            for service, own in services.items()
            for place, text in misfits(total, own.policy())
        ]:
            raise Problems(problems)
        return services

    @model_validator(mode="after")
    def _routes_fit(self) -> Self:
        """What a route says of timeouts, retries and caching, over what its service and the gateway have."""
        problems: list[tuple[tuple[str | int, ...], str]] = []
        for index, route in enumerate(self.routes):
            if route.overrides:
                base = self.policy_of(route.service)
                problems += [(("routes", index, *place), text) for place, text in misfits(base, route.policy())]
            caching = cache_policy(self.cache, self.cache_ttl, route.cache, route.cache_ttl)
            if problem := force_problem(caching):
                problems.append((("routes", index, "cache"), problem))
        if problems:
            raise Problems(problems)
        return self

    def policy_of(self, service: str) -> ServicePolicy:
        """The effective policy of `service`: what is set for it over the gateway's own timeouts and retries."""
        base = ServicePolicy(
            timeouts=TimeoutPolicy(
                timeout=self.request_timeout, attempt_timeout=min(self.upstream_timeout, self.request_timeout)
            ),
            retry=RetryPolicy(
                max_attempts=self.max_retries + 1,
                base_delay=RETRY_BASE_DELAY,
                multiplier=self.retry_backoff,
                max_delay=self.request_timeout,
            ),
        )
        own = self.services.get(service)
        return base if own is None else overlay(base, own.policy())
