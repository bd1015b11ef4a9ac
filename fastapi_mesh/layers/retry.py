"""A layer that repeats a failed attempt on another instance, within a budget; tenacity keeps the schedule.

The first attempt is made without tenacity, so that the happy path does not pay for it. What is repeated: connection
failures before the request was sent (any method), and for idempotent methods also a connection that broke, an attempt
timeout, the policy's statuses, and 429 or 503 with a Retry-After that fits into the deadline.
"""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from fastapi_mesh.config.policies import IDEMPOTENT_METHODS
from fastapi_mesh.core.body import replayable
from fastapi_mesh.core.events import BudgetExhausted
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import ServiceUnavailableError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.layers.base import OVERLOADED, REASON_HEADER, is_secondhand

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import RetryPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Request
    from fastapi_mesh.layers.base import Service

BUDGET_WINDOW = 10.0
BUDGET_SLICES = 10
IDEMPOTENCY_KEY = b"idempotency-key"
RETRY_AFTER_STATUSES = (429, 503)


class RetryBudget:
    """Retries allowed in relation to calls, over 10 s (Finagle's RetryBudget).

    `ratio` of the calls of the last 10 s, plus `min_per_second * 10` that are there from the start and come back at
    that rate. Kept in one-second slices, so a deposit is an addition.
    """

    __slots__ = ("_clock", "_deposits", "_ratio", "_reserve", "_slice", "_withdrawn")

    def __init__(self, ratio: float, min_per_second: float, *, clock: Clock) -> None:
        self._clock = clock
        self._ratio = ratio
        self._reserve = min_per_second * BUDGET_WINDOW
        self._deposits = [0] * BUDGET_SLICES
        self._withdrawn = [0] * BUDGET_SLICES
        self._slice = int(clock.now())

    def statistics(self) -> dict[str, float]:
        self._turn()
        return {"calls": sum(self._deposits), "retries": sum(self._withdrawn), "left": self._left()}

    def deposit(self) -> None:
        now = int(self._clock.now())
        if now != self._slice:
            self._turn()
        self._deposits[now % BUDGET_SLICES] += 1

    def withdraw(self) -> bool:
        self._turn()
        if self._left() < 1:
            return False
        self._withdrawn[self._slice % BUDGET_SLICES] += 1
        return True

    def _left(self) -> float:
        return self._reserve + self._ratio * sum(self._deposits) - sum(self._withdrawn)

    def _turn(self) -> None:
        now = int(self._clock.now())
        for second in range(max(self._slice + 1, now - BUDGET_SLICES + 1), now + 1):
            self._deposits[second % BUDGET_SLICES] = 0
            self._withdrawn[second % BUDGET_SLICES] = 0
        self._slice = now


class Jittered(wait_base):
    """Another schedule, drawn between nothing and its value (full jitter)."""

    def __init__(self, inner: wait_base) -> None:
        self._inner = inner

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        return random.uniform(0.0, self._inner(retry_state))


class AtLeast(wait_base):
    """Another schedule, but not less than what the service asked for with Retry-After."""

    def __init__(self, inner: wait_base) -> None:
        self._inner = inner

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        outcome = retry_state.outcome
        asked = None
        if outcome is not None and not outcome.failed:
            asked = retry_after(outcome.result())
        return max(self._inner(retry_state), asked or 0.0)


def schedule(policy: RetryPolicy) -> wait_base:
    """The waits of `policy`, as a tenacity schedule."""
    if policy.backoff_strategy == "linear":
        waits: wait_base = tenacity.wait_incrementing(
            start=policy.base_delay, increment=policy.base_delay, max=policy.max_delay
        )
    else:
        waits = tenacity.wait_exponential(
            multiplier=policy.base_delay, max=policy.max_delay, exp_base=policy.multiplier, min=0
        )
    return AtLeast(Jittered(waits) if policy.jitter else waits)


def retry_after(response: Response) -> float | None:
    """Seconds that a 429 or 503 asks for (RFC 9110 section 10.2.3: a number or a date), None when it doesn't."""
    if response.status not in RETRY_AFTER_STATUSES:
        return None
    value = response.header(b"retry-after")
    if value is None or response.header(REASON_HEADER) == OVERLOADED:
        return None  # an overloaded instance asks for patience, and the next attempt goes to another one
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


class Retry:
    """Repeats what `policy.retry` allows; each attempt passes the budget and may go to another instance.

    A body larger than 64 KiB, or a streamed one, is never sent twice; only a connection that failed before a byte was
    sent is tried elsewhere with it. For a retryable request a short answer is held until it is complete
    (`context.hold`), so that an instance which dies in the middle of it is retried too.
    """

    __slots__ = ("_clock", "_observer", "_schedules", "inner")

    def __init__(self, inner: Service, *, clock: Clock, observer: Observer) -> None:
        self.inner = inner
        self._clock = clock
        self._observer = observer
        self._schedules: dict[tuple[str, float, float, float, bool], wait_base] = {}

    async def __call__(self, request: Request) -> Response:
        context = request.context
        policy = context.policy.retry
        budget = context.state.budget
        assert policy is not None, "Retry is only in chains of policies with a retry section"
        if budget is not None:
            budget.deposit()
        body = request.body
        again = (not body or replayable(body)) and (
            request.method in IDEMPOTENT_METHODS or policy.retry_non_idempotent or _has_idempotency_key(request)
        )
        context.hold = again
        try:
            response = await self.inner(request)
        except ServiceUnavailableError as error:
            if not _worth_repeating(error, again):
                raise
            return await self._repeat(request, policy, again, error)
        if response.status < 429 or not again or not _asks_for_another(response, policy):
            return response
        return await self._repeat(request, policy, again, response)

    async def _repeat(
        self, request: Request, policy: RetryPolicy, again: bool, first: Response | ServiceUnavailableError
    ) -> Response:
        context = request.context
        held: Response | ServiceUnavailableError | None = first

        async def attempt() -> Response:
            nonlocal held
            if held is not None:
                outcome, held = held, None
                if isinstance(outcome, Response):
                    return outcome
                raise outcome
            return await self.inner(request)

        async def before_next(state: tenacity.RetryCallState) -> None:
            if context.instance is not None and context.instance not in context.tried:
                context.tried.append(context.instance)
            if state.outcome is not None and not state.outcome.failed:
                answer: Response = state.outcome.result()
                await answer.aclose()

        retrying = tenacity.AsyncRetrying(
            sleep=self._clock.sleep,
            stop=_Stop(self, request, policy),
            wait=self._schedule(policy),
            retry=tenacity.retry_if_exception(lambda error: _worth_repeating(error, again))
            | tenacity.retry_if_result(lambda answer: again and _asks_for_another(answer, policy)),
            before_sleep=before_next,
            retry_error_callback=lambda state: state.outcome.result(),  # type: ignore[union-attr]  # set by then
        )
        return await retrying(attempt)

    def _schedule(self, policy: RetryPolicy) -> wait_base:
        key = (policy.backoff_strategy, policy.base_delay, policy.max_delay, policy.multiplier, policy.jitter)
        if key not in self._schedules:
            if len(self._schedules) > 1000:
                self._schedules.clear()  # per-call policies must not collect here
            self._schedules[key] = schedule(policy)
        return self._schedules[key]

    def allows(self, context: CallContext, policy: RetryPolicy, attempt: int, wait: float) -> bool:
        """Whether one more attempt may follow, `wait` seconds from now. Takes it out of the budget if so."""
        if attempt >= policy.max_attempts:
            return False
        if context.deadline is not None and self._clock.now() + wait >= context.deadline:
            _note(context, "no retry: the wait would pass the deadline")
            return False
        budget = context.state.budget
        if budget is not None and not budget.withdraw():
            _note(context, "no retry: the budget is used up")
            self._observer(BudgetExhausted(context.state.name))
            return False
        return True


class _Stop(stop_base):
    """tenacity's stop, asked after the wait is known."""

    def __init__(self, layer: Retry, request: Request, policy: RetryPolicy) -> None:
        self._layer = layer
        self._request = request
        self._policy = policy

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        context = self._request.context
        return not self._layer.allows(context, self._policy, retry_state.attempt_number, retry_state.upcoming_sleep)


def _worth_repeating(error: BaseException, again: bool) -> bool:
    """`again` is whether the request may be executed twice."""
    if isinstance(error, UpstreamConnectionError | UpstreamTimeoutError):
        return again or not error.request_sent
    return False


def _asks_for_another(response: Response, policy: RetryPolicy) -> bool:
    if is_secondhand(response):
        return response.header(REASON_HEADER) == OVERLOADED and response.status in policy.retry_statuses
    return response.status in policy.retry_statuses or retry_after(response) is not None


def _has_idempotency_key(request: Request) -> bool:
    return any(name.lower() == IDEMPOTENCY_KEY for name, _ in request.headers)


def _note(context: CallContext, text: str) -> None:
    if context.record is not None:
        context.record.notes = (*context.record.notes, text)
