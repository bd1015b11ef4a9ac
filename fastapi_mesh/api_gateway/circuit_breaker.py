"""A service's circuit breaker as the product description writes it: settings of the mesh's own, no second one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from fastapi_mesh.config.policies import BreakerPolicy
from fastapi_mesh.config.problems import explain
from fastapi_mesh.exceptions import (
    ConfigurationError,
    DeadlineExceededError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CircuitBreaker"]

_RAISED = (
    DeadlineExceededError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
"""What a call of the mesh fails with where a breaker could count it."""


class CircuitBreaker:
    """When calls to a service are refused: `gateway.configure_circuit_breakers({"user-service": CircuitBreaker()})`.

    It opens after `failure_threshold` failures in a row, and lets `half_open_max_calls` trial calls through after
    `recovery_timeout` seconds. `expected_exception` (one class, several, or their names) are the errors that count;
    None: every failed call. It filters errors only: answers with one of `failure_statuses` (500, 502, 503 and 504)
    count as failures whatever it says, and a 4xx never does.

    Raises ConfigurationError, also for exceptions that no call of the mesh ever fails with.
    """

    __slots__ = ("policy",)

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        expected_exception: type[Exception] | str | Iterable[type[Exception] | str] | None = None,
        *,
        half_open_max_calls: int = 3,
        failure_statuses: Iterable[int] = (500, 502, 503, 504),
    ) -> None:
        self.policy = _policy(
            {
                "failure_threshold": failure_threshold,
                "recovery_timeout": recovery_timeout,
                "expected_exception": expected_exception,
                "half_open_max_calls": half_open_max_calls,
                "failure_statuses": failure_statuses,
            }
        )

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.policy})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CircuitBreaker) and self.policy == other.policy

    def __hash__(self) -> int:
        return hash((self.policy.failure_threshold, self.policy.recovery_timeout, self.policy.failure_statuses))


def breakers_of(given: Mapping[str, CircuitBreaker | BreakerPolicy | Mapping[str, object] | None]) -> dict[str, object]:
    """What `circuit_breakers` of a gateway's settings is, with these."""
    return {name: each.policy if isinstance(each, CircuitBreaker) else each for name, each in given.items()}


def _policy(settings: Mapping[str, object]) -> BreakerPolicy:
    try:
        policy = BreakerPolicy.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(problems=explain(error, BreakerPolicy), source="CircuitBreaker") from error
    never = [
        each for each in policy.expected_exception or () if not any(issubclass(raised, each) for raised in _RAISED)
    ]
    if never:
        problems = [
            f"expected_exception: no call through a gateway fails with {each.__module__}.{each.__qualname__}; "
            "ConnectionError and TimeoutError are what it fails with"
            for each in never
        ]
        raise ConfigurationError(problems=problems, source="CircuitBreaker")
    return policy
