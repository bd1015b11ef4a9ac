"""The policies of a call: how long, how often, to which instance. Frozen; durations are float seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Annotated[int, Field(ge=100, le=599)]

IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 section 9.2.2."""

REPLAY_LIMIT = 64 * 1024
"""Bytes of a request body kept for another attempt, and of an answer held until it is complete."""


class Frozen(BaseModel):
    """A settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


class LoadBalancingStrategy(StrEnum):
    """How an instance is picked. The values are the names used in configuration files."""

    ROUND_ROBIN = "round_robin"
    """Smooth weighted round robin (nginx)."""
    LEAST_CONNECTIONS = "least_connections"
    """The better of two random instances by calls in flight per weight (power of two choices)."""


class RetryPolicy(Frozen):
    """When and how often a failed attempt is repeated.

    `max_attempts` is the total, the first included. The wait before attempt n+1 is drawn between 0 and
    `base_delay * multiplier**(n-1)` (exponential, full jitter) or is `base_delay * n` (linear), at most `max_delay`.
    A retry also needs room in the budget: `budget_ratio` of the recent calls plus `budget_min_per_second`, over 10 s
    (Finagle's RetryBudget).
    """

    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    backoff_strategy: Literal["exponential", "linear"] = "exponential"
    base_delay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.025
    max_delay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    multiplier: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    jitter: bool = True
    retry_statuses: frozenset[Status] = frozenset({502, 503, 504})
    """Answers that are worth another attempt; 429 and 503 with Retry-After always are when the wait fits."""
    retry_non_idempotent: bool = False
    """Also repeat POST and PATCH after they may have been executed."""
    budget_ratio: Annotated[float, Field(ge=0, le=10)] = 0.2
    budget_min_per_second: Annotated[float, Field(ge=0)] = 10.0


class BreakerPolicy(Frozen):
    """The circuit breaker of a service: opens after `failure_threshold` failed calls in a row."""

    failure_threshold: Annotated[int, Field(ge=1)] = 5
    recovery_timeout: Seconds = 60.0
    """Seconds open before trial calls are let through."""
    half_open_max_calls: Annotated[int, Field(ge=1)] = 3
    """Trial calls at once while half-open; as many successes close the circuit."""
    failure_statuses: frozenset[Status] = frozenset({500, 502, 503, 504})


class BulkheadPolicy(Frozen):
    """Calls in flight to one service: `max_concurrent` run, `max_queue` wait, the rest is refused."""

    max_concurrent: Annotated[int, Field(ge=1)]
    max_queue: Annotated[int, Field(ge=0)] = 0


class OutlierPolicy(Frozen):
    """Ejection of a failing instance (Linkerd's failure accrual): after `consecutive_failures` it gets no calls for
    `base_ejection * n` seconds, at most `max_ejection`; then one trial call decides.
    """

    consecutive_failures: Annotated[int, Field(ge=1)] = 5
    base_ejection: Seconds = 30.0
    max_ejection: Seconds = 300.0
    failure_statuses: frozenset[Status] = frozenset({500, 502, 503, 504})


class BalancingPolicy(Frozen):
    """How instances are picked; `weights` is by instance id, 1.0 where absent."""

    strategy: LoadBalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}


class TimeoutPolicy(Frozen):
    """How long things may take. `timeout` covers the whole call with all attempts, up to the response head."""

    timeout: Seconds | None = 30.0
    attempt_timeout: Seconds | None = 25.0
    connect_timeout: Seconds = 5.0
    idle_timeout: Seconds = 60.0
    """Longest pause between two parts of a body, each way."""
    max_stream_duration: Seconds | None = None

    @model_validator(mode="after")
    def _attempt_fits(self) -> Self:
        if self.timeout is not None and self.attempt_timeout is not None and self.attempt_timeout > self.timeout:
            raise ValueError(
                f"attempt_timeout ({self.attempt_timeout:g} s) is longer than timeout ({self.timeout:g} s), "
                "so it could never end an attempt; lower attempt_timeout or raise timeout"
            )
        return self


class ServicePolicy(Frozen):
    """All policies of one service; a section that is None switches its layer off."""

    timeouts: TimeoutPolicy = TimeoutPolicy()
    retry: RetryPolicy | None = RetryPolicy()
    circuit_breaker: BreakerPolicy | None = BreakerPolicy()
    bulkhead: BulkheadPolicy | None = None
    outlier: OutlierPolicy | None = OutlierPolicy()
    load_balancing: BalancingPolicy = BalancingPolicy()


@dataclass(frozen=True, slots=True, eq=False)
class CallPolicy:
    """What the layers read: one frozen object per (service, route), compiled when the configuration is loaded."""

    timeout: float | None
    attempt_timeout: float | None
    connect_timeout: float
    idle_timeout: float
    max_stream_duration: float | None
    retry: RetryPolicy | None
    breaker: BreakerPolicy | None
    bulkhead: BulkheadPolicy | None
    outlier: OutlierPolicy | None
    balancing: BalancingPolicy
    sections: int = field(init=False, default=0)
    """Which optional layers are on, as bits: 1 breaker, 2 bulkhead, 4 retry, 8 outlier. One compiled chain per value."""

    def __post_init__(self) -> None:
        optional = (self.breaker, self.bulkhead, self.retry, self.outlier)
        object.__setattr__(self, "sections", sum(1 << bit for bit, each in enumerate(optional) if each is not None))

    @classmethod
    def compile(cls, policy: ServicePolicy) -> CallPolicy:
        times = policy.timeouts
        retry = policy.retry if policy.retry is not None and policy.retry.max_attempts > 1 else None
        return cls(
            timeout=times.timeout,
            attempt_timeout=times.attempt_timeout,
            connect_timeout=times.connect_timeout,
            idle_timeout=times.idle_timeout,
            max_stream_duration=times.max_stream_duration,
            retry=retry,
            breaker=policy.circuit_breaker,
            bulkhead=policy.bulkhead,
            outlier=policy.outlier,
            balancing=policy.load_balancing,
        )
