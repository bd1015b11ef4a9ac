"""A layer that refuses calls to a service while its circuit is open: pybreaker's state machine, driven from asyncio.

pybreaker keeps the states, thresholds and counters. What it lacks on an event loop is here: a cap on trial calls while
half-open, neutral results (a cancelled call is neither success nor failure), and generations, so that a call which
began before the circuit opened can't open it again when it fails late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pybreaker

from fastapi_mesh.core.events import CircuitChanged
from fastapi_mesh.core.message import Outcome
from fastapi_mesh.exceptions import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    MeshError,
    ServiceUnavailableError,
    UpstreamConnectionError,
)
from fastapi_mesh.layers.base import is_secondhand

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import BreakerPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.core.state import Breaker
    from fastapi_mesh.layers.base import Service

CLOSED: str = pybreaker.STATE_CLOSED
OPEN: str = pybreaker.STATE_OPEN
HALF_OPEN: str = pybreaker.STATE_HALF_OPEN


class _Failed(Exception):
    """What pybreaker is told when a call has failed."""


def _succeed() -> None:
    """What pybreaker is told when a call has succeeded."""


def _fail() -> None:
    raise _Failed


class PyBreaker(pybreaker.CircuitBreakerListener):
    """One service's circuit: `admit` gives a ticket (the generation), and the ticket says later how it went."""

    def __init__(
        self, name: str, policy: BreakerPolicy, *, clock: Clock, observer: Observer, label: str | None = None
    ) -> None:
        """`name` is the service; `label` what its changes are told under, where it has more than one circuit."""
        self._name = name
        self._label = label or name
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._generation = 0
        self._trials = 0
        self._failures = 0
        self._opened_at = 0.0
        self.state: str = CLOSED
        self._machine = pybreaker.CircuitBreaker(
            fail_max=policy.failure_threshold,
            reset_timeout=policy.recovery_timeout,
            success_threshold=policy.half_open_max_calls,
            listeners=[self],
            name=name,
            throw_new_error_on_trip=False,
        )

    def state_change(self, cb: object, old_state: object, new_state: pybreaker.CircuitBreakerState) -> None:
        """Hear of a change from pybreaker, in the middle of it: `current_state` is still the old one here."""
        before, self.state = self.state, new_state.name
        self._generation += 1
        self._trials = 0
        self._failures = 0
        if self.state == OPEN:
            self._opened_at = self._clock.now()
        if before != self.state:
            self._observer(CircuitChanged(self._label, before, self.state))

    def statistics(self) -> dict[str, float | str]:
        retry_in = self._opened_at + self._policy.recovery_timeout - self._clock.now() if self.state == OPEN else 0.0
        return {"state": self.state, "failures": self._failures, "retry_in": max(0.0, retry_in)}

    def admit(self) -> int:
        if self.state != CLOSED:
            self._admit_trial()
        return self._generation

    def _admit_trial(self) -> None:
        if self.state == OPEN:
            left = self._opened_at + self._policy.recovery_timeout - self._clock.now()
            if left > 0:
                self._refuse(f"open for another {left:.1f} s", left)
            self._machine.half_open()
        if self._trials >= self._policy.half_open_max_calls:
            self._refuse(f"half-open, and its {self._policy.half_open_max_calls} trial calls are taken", 1.0)
        self._trials += 1

    def _refuse(self, why: str, retry_after: float) -> None:
        error = CircuitBreakerOpenError(f"the circuit of {self._name} is {why}", service=self._name)
        error.retry_after = retry_after
        raise error

    def succeed(self, ticket: int) -> None:
        if ticket != self._generation or (self.state == CLOSED and not self._failures):
            return  # stale, or nothing that a success could change
        self._failures = 0
        self._machine.call(_succeed)

    def fail(self, ticket: int) -> None:
        if ticket != self._generation:
            return
        self._failures += 1
        try:
            self._machine.call(_fail)
        except _Failed:
            return

    def forget(self, ticket: int) -> None:
        if ticket == self._generation and self.state == HALF_OPEN and self._trials:
            self._trials -= 1


class ServiceBreaker:
    """Counts logical calls, not attempts; a full bulkhead and the caller's own cancellation are neutral.

    A connection that failed at one instance says nothing about the service while the call left another healthy
    instance untried: that is the instance's failure, and InstanceHealth counts it. And all calls that were under way
    together when their connections failed count as one failure: one process has died, however many calls it had.
    """

    __slots__ = ("_clock", "inner")

    def __init__(self, inner: Service, *, clock: Clock) -> None:
        self.inner = inner
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        context = request.context
        breaker = context.state.breaker
        policy = context.policy.breaker
        assert policy is not None, "ServiceBreaker is only in chains of policies with a breaker section"
        if breaker is None:
            return await self.inner(request)
        try:
            ticket = breaker.admit()
        except CircuitBreakerOpenError as error:
            error.counted_for = request.service
            if context.record is not None:
                context.record.refused_by = "circuit_breaker"
            raise
        try:
            response = await self.inner(request)
        except BaseException as error:
            if self._blames_service(error, context):
                breaker.fail(ticket)
            else:
                breaker.forget(ticket)
            if isinstance(error, MeshError):
                error.counted_for = request.service
            raise
        if response.status >= 500 and response.status in policy.failure_statuses:
            if is_secondhand(response):
                breaker.forget(ticket)
            else:
                breaker.fail(ticket)
        elif response.at_end:
            breaker.succeed(ticket)
        else:
            response.on_close(self._closed, (breaker, ticket, context))
        return response

    def _blames_service(self, error: BaseException, context: CallContext) -> bool:
        if not isinstance(error, ServiceUnavailableError) or isinstance(error, BulkheadFullError):
            return False
        policy = context.policy.breaker
        if policy is not None and not policy.counts(error):
            return False
        if not isinstance(error, UpstreamConnectionError):
            return True
        last, state = context.instance, context.state
        if any(each is not last and each not in context.tried for each in state.candidates):
            return False
        if context.started < state.lost_at:
            return False
        state.lost_at = self._clock.now()
        return True

    def _closed(
        self, argument: tuple[Breaker, int, CallContext], outcome: Outcome, error: BaseException | None
    ) -> None:
        breaker, ticket, context = argument
        if outcome is Outcome.COMPLETE:
            breaker.succeed(ticket)
        elif error is not None and self._blames_service(error, context):
            breaker.fail(ticket)
        else:
            breaker.forget(ticket)
