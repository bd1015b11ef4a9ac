"""Settings of a gateway: where it listens, its routes, and the services behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fastapi_mesh.config.edge.cors import CorsConfig
from fastapi_mesh.config.edge.listener import Listener
from fastapi_mesh.config.fields import (
    Factor,
    Frozen,
    InstanceUrls,
    Network,
    NotBool,
    OneOrMany,
    Problems,
    Seconds,
    ServiceName,
    Token,
    Weight,
)
from fastapi_mesh.config.later import LaterOption, later
from fastapi_mesh.config.overlay import misfits, overlay
from fastapi_mesh.config.policies import (
    BalancingPolicy,
    BreakerPolicy,
    BulkheadPolicy,
    LoadBalancingStrategy,
    OutlierPolicy,
    RetryPolicy,
    ServicePolicy,
    Strategy,
    TimeoutPolicy,
    attempt_misfit,
)
from fastapi_mesh.config.routes import RouteConfig, Routes, check_routes, route_path

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
    load_balancing: Strategy = Field(
        default=LoadBalancingStrategy.ROUND_ROBIN, description="How the next instance is picked."
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
    health_check: LaterOption = later("health_check")
    health_check_interval: LaterOption = later("health_check_interval")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _urls_alone(cls, value: object) -> object:
        return {"instances": value} if isinstance(value, (str, list, tuple)) else value

    def policy(self) -> ServicePolicy:
        """What is set here, and nothing else, as a policy to lay over another (`overlay`)."""
        sections = {"timeouts", "retry", "circuit_breaker", "bulkhead", "outlier"} & self.model_fields_set
        balancing: dict[str, object] = {}
        if "load_balancing" in self.model_fields_set:
            balancing["strategy"] = self.load_balancing
        if "weights" in self.model_fields_set:
            balancing["weights"] = self.weights
        data: dict[str, object] = {name: getattr(self, name) for name in sections}
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
    trusted_proxies: Annotated[tuple[Network, ...], OneOrMany] = Field(
        default=(), description="Addresses or networks whose forwarding headers are believed; none by default."
    )
    via: Token = Field(default="fastapi-mesh", description="The name of this gateway in the Via header.")
    enable_metrics: bool = Field(default=True, description="Count requests and answer /metrics.")
    services: dict[ServiceName, GatewayServiceConfig] = Field(
        default={}, description="Service to its addresses and what differs for it; one URL or a list is enough."
    )
    routes: Routes = Field(default=(), description="Which requests go to which service.")
    cors: CorsConfig | None = Field(default=None, description="What pages of other origins may do; None: nothing.")
    access_log: LaterOption = later("access_log")
    error_log: LaterOption = later("error_log")
    log_level: LaterOption = later("log_level")
    dynamic_routing: LaterOption = later("dynamic_routing")
    route_prefix: LaterOption = later("route_prefix")
    rate_limit: LaterOption = later("rate_limit")

    @field_validator("prefix")
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
