"""A layer around one try: its time limit, its record and span, and the headers that each try carries anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.core.events import AttemptRecord
from fastapi_mesh.core.priority import NORMAL, PRIORITIES, PRIORITY_HEADER
from fastapi_mesh.exceptions import DeadlineExceededError, UpstreamTimeoutError
from fastapi_mesh.layers.base import reason_of

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Header, Request, Response
    from fastapi_mesh.layers.base import Service

DEADLINE_HEADER = b"x-mesh-timeout-ms"
"""Milliseconds left for the callee, as `x-envoy-expected-rq-timeout-ms` has them."""
HEAD_ONLY: Header = (b"x-mesh-timeout-covers", b"head")
"""Said of a streamed call: the deadline ends with the head of the answer, so a long body is not cut off by it."""


class AttemptTracer(Protocol):
    """Makes the span of one attempt and the trace headers it sends."""

    def start_attempt(self, request: Request) -> object: ...

    def inject(self, headers: list[Header], request: Request) -> None:
        """Append the trace headers of the attempt (or pass the inbound request's on)."""
        ...

    def end_attempt(self, span: object, status: int | None, error: BaseException | None) -> None: ...


class Attempt:
    """Sets `attempt_deadline`: the policy's attempt timeout, at most the deadline of the call.

    A time-out of the wire that falls on the call's deadline leaves as DeadlineExceededError.
    """

    __slots__ = ("_clock", "_tracer", "inner")

    def __init__(self, inner: Service, *, clock: Clock, tracer: AttemptTracer | None) -> None:
        self.inner = inner
        self._clock = clock
        self._tracer = tracer

    async def __call__(self, request: Request) -> Response:
        context = request.context
        started = self._clock.now()
        context.attempt += 1
        deadline = context.deadline
        timeout = context.policy.attempt_timeout
        if timeout is not None and (deadline is None or started + timeout < deadline):
            context.attempt_deadline = started + timeout
        else:
            context.attempt_deadline = deadline
        headers = request.headers
        own = len(headers)  # what is added below belongs to this attempt, and goes with it
        if deadline is not None:
            headers.append((DEADLINE_HEADER, b"%d" % max(1, (deadline - started) * 1000)))
            if not context.buffered:
                headers.append(HEAD_ONLY)
        if context.priority != NORMAL and not any(name == PRIORITY_HEADER for name, _ in headers):
            headers.append((PRIORITY_HEADER, PRIORITIES[context.priority]))
        span = None
        if self._tracer is not None:
            span = self._tracer.start_attempt(request)
            self._tracer.inject(headers, request)
        try:
            response = await self.inner(request)
        except BaseException as error:
            self._note(context, self._clock.now() - started, None, reason_of(error))
            if self._tracer is not None:
                self._tracer.end_attempt(span, None, error)
            if isinstance(error, UpstreamTimeoutError) and deadline is not None and self._clock.now() >= deadline:
                late = DeadlineExceededError(f"the deadline passed while waiting for {request.service}")
                late.service = request.service
                raise late from error
            raise
        finally:
            del headers[own:]
        self._note(context, self._clock.now() - started, response.status, None)
        if self._tracer is not None:
            self._tracer.end_attempt(span, response.status, None)
        return response

    @staticmethod
    def _note(context: CallContext, duration: float, status: int | None, error: str | None) -> None:
        if context.record is not None and context.instance is not None:
            attempt = AttemptRecord(context.instance.instance.id, duration, status, error)
            context.record.attempts = (*context.record.attempts, attempt)
