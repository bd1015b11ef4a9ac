"""A layer that refuses calls to a service while its circuit is open, and tells the circuit how each call went."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.core.state import Breaker
    from fastapi_mesh.layers.base import Service


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
        if any(each is not last and each not in context.tried for each in state.reserve):
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
