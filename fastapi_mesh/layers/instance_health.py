"""A layer that judges each attempt for the health of its instance, up to the end of the body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.core.message import Outcome
from fastapi_mesh.exceptions import ServiceUnavailableError, UpstreamConnectionError
from fastapi_mesh.health.outlier import note_failure, note_nothing, note_success
from fastapi_mesh.health.success_rate import note_failed_attempt
from fastapi_mesh.layers.base import is_secondhand

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.layers.base import Service


class InstanceHealth:
    """Feeds `health/outlier.py`: a connection failure, a timeout or a failure status is a failure of the instance.

    What the caller did (cancelling, a bad request, a body that broke off) says nothing about the instance.
    """

    __slots__ = ("_clock", "_observer", "inner")

    def __init__(self, inner: Service, *, clock: Clock, observer: Observer) -> None:
        self.inner = inner
        self._clock = clock
        self._observer = observer

    async def __call__(self, request: Request) -> Response:
        context = request.context
        instance = context.instance
        assert instance is not None, "Balance sits outside InstanceHealth"
        policy = context.policy.outlier
        assert policy is not None, "InstanceHealth is only in chains of policies with an outlier section"
        try:
            response = await self.inner(request)
        except BaseException as error:
            if isinstance(error, ServiceUnavailableError):
                self._fail(context, instance, refused=isinstance(error.__cause__, ConnectionRefusedError))
                if isinstance(error, UpstreamConnectionError):
                    context.unreachable.append(instance)
            else:
                note_nothing(context.state, instance)
            raise
        if response.status >= 500 and response.status in policy.failure_statuses:
            if is_secondhand(response):
                note_nothing(context.state, instance)
            else:
                self._fail(context, instance)
            return response
        if response.at_end:
            instance.succeeded += 1
            if instance.failures_in_row or instance.ejected_until:
                note_success(context.state, instance, self._observer)
            return response
        response.on_close(self._closed, (context, instance))
        return response

    def _fail(self, context: CallContext, instance: InstanceState, *, refused: bool = False) -> None:
        policy = context.policy.outlier
        assert policy is not None
        now = self._clock.now()
        instance.failed += 1
        note_failure(context.state, instance, policy, now, self._observer, refused=refused)
        note_failed_attempt(context.state, policy, now, self._observer)

    def _closed(
        self, argument: tuple[CallContext, InstanceState], outcome: Outcome, error: BaseException | None
    ) -> None:
        context, instance = argument
        if outcome is Outcome.FAILED and isinstance(error, ServiceUnavailableError):
            self._fail(context, instance)
        elif outcome is Outcome.COMPLETE:
            instance.succeeded += 1
            if instance.failures_in_row or instance.ejected_until:
                note_success(context.state, instance, self._observer)
        else:
            note_nothing(context.state, instance)
