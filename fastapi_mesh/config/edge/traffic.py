"""Settings of a route's traffic: which version answers, who gets a copy, which faults are planted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from fastapi_mesh.config.fields import Count, Delay, Frozen, NotBool, Ratio, Seconds, ServiceName, Token

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NotBool]
AbortStatus = Annotated[int, Field(ge=400, le=599), NotBool]
DAY = 86400.0


class SplitPolicy(Frozen):
    """A weighted split of a route's requests over several services (Envoy's weighted clusters, Istio's subsets)."""

    services: dict[ServiceName, Ratio] = Field(
        description="Service to its weight, in relation to the others; 0 switches it off."
    )
    sticky_header: Token | None = Field(
        default=None, description="Requests with the same value of this header go to the same service."
    )
    sticky_cookie: Token | None = Field(
        default=None, description="A cookie of this name keeps each browser with the service it got first."
    )
    cookie_max_age: Seconds = Field(default=DAY, description="Seconds that the cookie lives.")

    @model_validator(mode="before")
    @classmethod
    def _weights_alone(cls, value: object) -> object:
        """`{"orders": 90, "orders-next": 10}` stands for its `services`."""
        if isinstance(value, Mapping) and not set(value) & set(cls.model_fields):
            return {"services": value}
        return value

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        if not any(self.services.values()):
            raise ValueError("services: no service has a weight above 0, so nobody could answer")
        return self


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, (Mapping, Frozen)) else value


class CanaryRule(Frozen):
    """Requests with all of these headers and cookies go to `service`, whatever the split says."""

    service: ServiceName = Field(description="The service that answers.")
    headers: dict[Token, str] = Field(default={}, description="Header to its value; '*': any value, but present.")
    cookies: dict[Token, str] = Field(default={}, description="Cookie to its value; '*': any value, but present.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not (self.headers or self.cookies):
            raise ValueError("names no header and no cookie, so every request would match; use split for that")
        return self


CanaryRules = Annotated[tuple[CanaryRule, ...], BeforeValidator(_one_or_many)]


class MirrorPolicy(Frozen):
    """Copies of requests go to another service, whose answers nobody waits for (Envoy's request mirroring)."""

    service: ServiceName = Field(description="The service that gets the copies.")
    percent: Percent = Field(default=100.0, description="Share of the requests that are copied, in percent.")
    max_concurrent: Count = Field(default=64, description="Copies under way at the same time; more are left out.")


class DelayFault(Frozen):
    """Requests that wait before they are sent on."""

    seconds: Delay = Field(description="Seconds to wait.")
    percent: Percent = Field(default=100.0, description="Share of the requests that wait, in percent.")


class AbortFault(Frozen):
    """Requests that are answered with an error instead of being sent on."""

    status: AbortStatus = Field(description="The status of the answer, 400 to 599.")
    percent: Percent = Field(default=100.0, description="Share of the requests that fail, in percent.")


class FaultPolicy(Frozen):
    """Faults planted on purpose, to see what they do to the callers (Envoy's fault filter).

    A request may be delayed and then aborted. With `headers` only requests that carry them are concerned.
    """

    delay: DelayFault | None = Field(default=None, description="Waiting; None: never.")
    abort: AbortFault | None = Field(default=None, description="Failing; None: never.")
    headers: dict[Token, str] = Field(
        default={}, description="Only for requests with these headers; '*': any value, but present."
    )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.delay is None and self.abort is None:
            raise ValueError("plants neither a delay nor an abort; give one of them, or leave it out")
        return self
