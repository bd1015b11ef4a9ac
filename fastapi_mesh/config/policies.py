"""The policies of a call: how long, how often, to which instance. Frozen; durations are float seconds."""

from __future__ import annotations

import builtins
import difflib
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fastapi_mesh import exceptions
from fastapi_mesh.config.balancing import BalancingPolicy as BalancingPolicy
from fastapi_mesh.config.balancing import LoadBalancingStrategy as LoadBalancingStrategy
from fastapi_mesh.config.bulkhead import AdaptiveLimit as AdaptiveLimit
from fastapi_mesh.config.bulkhead import BulkheadPolicy as BulkheadPolicy
from fastapi_mesh.config.edge.redis import RedisUrl
from fastapi_mesh.config.fields import (
    Count,
    Delay,
    Factor,
    Frozen,
    NotBool,
    Noun,
    Ratio,
    Seconds,
    Status,
    shown,
)
from fastapi_mesh.config.hedging import HedgingPolicy as HedgingPolicy
from fastapi_mesh.config.outlier import SuccessRatePolicy
from fastapi_mesh.config.probes import HealthCheck

IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 section 9.2.2."""

REPLAY_LIMIT = 64 * 1024
"""Bytes of a request body kept for another attempt, and of an answer held until it is complete."""


def _shorter(longest_name: str, longest: float, first_name: str, first: float) -> str:
    return f"{longest_name} ({longest:g} s) is shorter than {first_name} ({first:g} s); raise it or lower {first_name}"


def _exceptions(value: object) -> object:
    """A class, a name, or several of them, as a tuple of classes."""
    given = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    return tuple(_exception(each) if isinstance(each, str) else each for each in given)


def _exception(name: str) -> type[BaseException]:
    found = getattr(exceptions, name, None) or getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        known = [each for module in (exceptions, builtins) for each in vars(module) if each.endswith("Error")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" - did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{shown(name)} is no exception of Python or of fastapi_mesh{hint}")
    return found


ExceptionTypes = Annotated[
    tuple[type[Exception], ...],
    BeforeValidator(_exceptions, json_schema_input_type=str | list[str]),
    PlainSerializer(lambda value: value and [each.__name__ for each in value], when_used="json"),
    Noun("an exception, or a list of them"),
]
"""Classes of exceptions; in files and variables their names."""


class RetryPolicy(Frozen):
    """When and how often a failed attempt is repeated.

    `max_attempts` is the total, the first included. The wait before attempt n+1 is drawn between 0 and
    `base_delay * multiplier**(n-1)` (exponential, full jitter) or is `base_delay * n` (linear), at most `max_delay`.
    A retry also needs room in the budget: `budget_ratio` of the recent calls plus `budget_min_per_second`, over 10 s
    (Finagle's RetryBudget).
    """

    max_attempts: Annotated[int, Field(ge=1, le=20), NotBool] = Field(
        default=3, description="Attempts in total, the first included; 1 switches retries off."
    )
    backoff_strategy: Literal["exponential", "linear"] = Field(
        default="exponential", description="How the wait grows from attempt to attempt."
    )
    base_delay: Delay = Field(default=0.025, description="Seconds of the first wait, before jitter.")
    max_delay: Delay = Field(default=1.0, description="Seconds of the longest wait.")
    multiplier: Factor = Field(default=2.0, description="Growth of the wait per attempt (exponential only).")
    jitter: bool = Field(default=True, description="Draw each wait between 0 and its value (full jitter).")
    retry_statuses: frozenset[Status] = Field(
        default=frozenset({502, 503, 504}),
        description="Answers that are worth another attempt; "
        "429 and 503 with Retry-After always are when the wait fits.",
    )
    retry_non_idempotent: bool = Field(
        default=False, description="Also repeat POST and PATCH after they may have been executed."
    )
    budget_ratio: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), NotBool] = Field(
        default=0.2, description="Retries allowed per recent call (10 s), on top of `budget_min_per_second`."
    )
    budget_min_per_second: Ratio = Field(default=10.0, description="Retries per second that are always allowed.")

    @model_validator(mode="after")
    def _delays_fit(self) -> Self:
        if {"base_delay", "max_delay"} <= self.model_fields_set and self.base_delay > self.max_delay:
            raise ValueError(_shorter("max_delay", self.max_delay, "base_delay", self.base_delay))
        return self


class BreakerPolicy(Frozen):
    """The circuit breaker of a service: opens after `failure_threshold` failed calls in a row. With `failure_rate`:
    when that share of the calls of the last `window` seconds has failed, and there were at least `minimum_calls`.
    """

    failure_threshold: Count = Field(default=5, description="Failed calls in a row that open the circuit.")
    recovery_timeout: Seconds = Field(default=60.0, description="Seconds open before trial calls are let through.")
    half_open_max_calls: Count = Field(
        default=3, description="Trial calls at once while half-open; as many successes close the circuit."
    )
    failure_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NotBool] | None = Field(
        default=None,
        description="Share of failed calls that opens the circuit (0.5: half), in place of `failure_threshold`.",
    )
    window: Seconds = Field(default=10.0, description="Seconds whose calls count for `failure_rate`.")
    minimum_calls: Count = Field(
        default=20, description="Calls within `window` from which on `failure_rate` counts at all."
    )
    shared: RedisUrl | None = Field(
        default=None,
        description="URL of a Redis over which the processes of one service tell each other which circuits opened "
        "and closed; while it does not answer, each goes on alone. None: each for itself.",
    )
    failure_statuses: frozenset[Status] = Field(
        default=frozenset({500, 502, 503, 504}), description="Answers that count as failures."
    )
    expected_exception: ExceptionTypes | None = Field(
        default=None,
        description="Errors that count as failures, as classes or by name ('ConnectionError', 'TimeoutError'); None: "
        "all. Statuses count whatever stands here.",
    )

    def counts(self, error: BaseException) -> bool:
        """Whether `error` may count as a failure (`expected_exception`)."""
        return self.expected_exception is None or isinstance(error, self.expected_exception)


class OutlierPolicy(Frozen):
    """Ejection of a failing instance (Linkerd's failure accrual): after `consecutive_failures` it gets no calls for
    `base_ejection * n` seconds, at most `max_ejection`; then one trial call decides. One that refuses a connection, as
    nothing listens there any more, is left out at once, for `refused_ejection * n` seconds.
    """

    consecutive_failures: Count = Field(default=5, description="Failed attempts in a row that eject an instance.")
    base_ejection: Seconds = Field(default=30.0, description="Seconds of the first ejection; the n-th lasts n times.")
    refused_ejection: Seconds = Field(
        default=2.0, description="Seconds of the first ejection of an instance that refuses a connection, likewise."
    )
    max_ejection: Seconds = Field(default=300.0, description="Seconds of the longest ejection.")
    failure_statuses: frozenset[Status] = Field(
        default=frozenset({500, 502, 503, 504}), description="Answers that count as failures."
    )
    success_rate: SuccessRatePolicy | None = Field(
        default=SuccessRatePolicy(),
        description="Leaving out an instance that fails much more often than the others; None: never for that.",
    )

    @model_validator(mode="after")
    def _ejections_fit(self) -> Self:
        if {"base_ejection", "max_ejection"} <= self.model_fields_set and self.base_ejection > self.max_ejection:
            raise ValueError(_shorter("max_ejection", self.max_ejection, "base_ejection", self.base_ejection))
        return self


class TimeoutPolicy(Frozen):
    """How long things may take. `timeout` covers the whole call with all attempts, up to the response head."""

    timeout: Seconds | None = Field(
        default=30.0, description="Seconds for the whole call with all attempts, up to the response head; None: no end."
    )
    attempt_timeout: Seconds | None = Field(
        default=25.0, description="Seconds for one attempt, up to the response head; at most `timeout`."
    )
    connect_timeout: Seconds = Field(default=5.0, description="Seconds to open a connection.")
    idle_timeout: Seconds = Field(
        default=60.0, description="Seconds of the longest pause between two parts of a body, each way."
    )
    max_stream_duration: Seconds | None = Field(
        default=None, description="Seconds for a whole streamed response; None: no end."
    )

    @model_validator(mode="after")
    def _attempt_fits(self) -> Self:
        """Both were set, and don't fit. One alone is judged where it meets the other: `config.overlay`."""
        if {"timeout", "attempt_timeout"} <= self.model_fields_set and (
            problem := attempt_misfit("attempt_timeout", self.attempt_timeout, "timeout", self.timeout)
        ):
            raise ValueError(problem)
        return self


def attempt_misfit(attempt_name: str, attempt: float | None, total_name: str, total: float | None) -> str:
    """Why a limit for one attempt could never end it; "" when it can."""
    if attempt is None or total is None or attempt <= total:
        return ""
    return (
        f"{attempt_name} ({attempt:g} s) is longer than {total_name} ({total:g} s), "
        f"so it could never end an attempt; lower {attempt_name} or raise {total_name}"
    )


class ServicePolicy(Frozen):
    """All policies of one service; a section that is None switches its layer off."""

    timeouts: TimeoutPolicy = Field(default=TimeoutPolicy(), description="How long things may take.")
    retry: RetryPolicy | None = Field(default=RetryPolicy(), description="Repeating failed attempts; None: never.")
    circuit_breaker: BreakerPolicy | None = Field(
        default=BreakerPolicy(), description="Refusing calls to a service that fails; None: never."
    )
    bulkhead: BulkheadPolicy | None = Field(default=None, description="Calls in flight; None: no limit.")
    outlier: OutlierPolicy | None = Field(
        default=OutlierPolicy(), description="Leaving out an instance that fails; None: never."
    )
    hedging: HedgingPolicy | None = Field(
        default=None, description="A second attempt beside a slow first one; None: never."
    )
    load_balancing: BalancingPolicy = Field(default=BalancingPolicy(), description="How instances are picked.")
    health_check: HealthCheck = Field(
        default=None, description="Asking instances how they are: a path like '/health', or a table; None: never."
    )


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
    hedging: HedgingPolicy | None = None
    sections: int = field(init=False, default=0)
    """Which optional layers are on, as bits: 1 breaker, 2 bulkhead, 4 retry, 8 outlier, 16 response times, 32
    hedging. One chain per value.
    """

    def __post_init__(self) -> None:
        quick = self.measures_response_times or None
        optional = (self.breaker, self.bulkhead, self.retry, self.outlier, quick, self.hedging)
        object.__setattr__(self, "sections", sum(1 << bit for bit, each in enumerate(optional) if each is not None))

    @property
    def measures_response_times(self) -> bool:
        """Whether instances are picked by how quickly they answer."""
        return self.balancing.strategy is LoadBalancingStrategy.LEAST_RESPONSE_TIME

    @classmethod
    def compile(cls, policy: ServicePolicy) -> CallPolicy:
        times = policy.timeouts
        retry = policy.retry if policy.retry is not None and policy.retry.max_attempts > 1 else None
        attempt = times.attempt_timeout
        if attempt is not None and times.timeout is not None:
            attempt = min(attempt, times.timeout)
        return cls(
            timeout=times.timeout,
            attempt_timeout=attempt,
            connect_timeout=times.connect_timeout,
            idle_timeout=times.idle_timeout,
            max_stream_duration=times.max_stream_duration,
            retry=retry,
            breaker=policy.circuit_breaker,
            bulkhead=policy.bulkhead,
            outlier=policy.outlier,
            balancing=policy.load_balancing,
            hedging=policy.hedging,
        )
