"""A layer that sees each logical call once: one record, one span, one event, the headers that say so."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.core.events import CallFinished, CallRecord
from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.layers.base import reason_of

if TYPE_CHECKING:
    from collections import deque

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Outcome, Request, Response
    from fastapi_mesh.layers.base import Service

ATTEMPTS_HEADER = b"x-mesh-attempts"
DIGITS = tuple(str(number).encode() for number in range(64))


class CallTracer(Protocol):
    """Makes the span of a logical call; a port, so that layers know no tracing library."""

    def start_call(self, request: Request) -> object:
        """Begin a span and return what `end_call` needs; sets `context.record.trace_id`."""
        ...

    def end_call(self, span: object, record: CallRecord, error: BaseException | None) -> None: ...


class Observe:
    """Writes the CallRecord, keeps the last ones, counts, and tells the observer.

    A call is counted when its response head is here (or it failed); how the body ended is added to its record later.
    The response gets `x-mesh-attempts`.
    """

    __slots__ = ("_clock", "_observer", "_records", "_source", "_tracer", "inner")

    def __init__(
        self,
        inner: Service,
        *,
        clock: Clock,
        observer: Observer,
        source: str,
        tracer: CallTracer | None,
        records: deque[CallRecord],
    ) -> None:
        self.inner = inner
        self._records = records
        self._clock = clock
        self._observer = observer
        self._source = source
        self._tracer = tracer

    async def __call__(self, request: Request) -> Response:
        context = request.context
        started = context.started = self._clock.now()
        record = CallRecord(self._source, request.service, request.method, context.template, time.time())
        context.record = record
        record.request_id = context.request_id
        span = None if self._tracer is None else self._tracer.start_call(request)
        try:
            response = await self.inner(request)
        except BaseException as error:
            record.duration = self._clock.now() - started
            self._failed(context, record, error)
            if self._tracer is not None:
                self._tracer.end_call(span, record, error)
            raise
        record.duration = self._clock.now() - started
        record.status = status = response.status
        statistics = context.state.statistics
        statistics.calls += 1
        statistics.latency += record.duration
        statistics.retries += context.attempt - 1
        if status >= 500:
            statistics.failures += 1
            record.outcome = "failure"
        else:
            record.outcome = "success"
        response.headers.append((ATTEMPTS_HEADER, DIGITS[context.attempt]))
        response.on_close(self._closed, record)
        if self._tracer is not None:
            self._tracer.end_call(span, record, None)
        self._records.append(record)
        self._observer(CallFinished(record))
        return response

    def _failed(self, context: CallContext, record: CallRecord, error: BaseException) -> None:
        statistics = context.state.statistics
        statistics.calls += 1
        statistics.latency += record.duration
        statistics.retries += max(0, context.attempt - 1)
        record.reason = reason_of(error)
        if isinstance(error, asyncio.CancelledError):
            record.outcome = "cancelled"
        else:
            statistics.failures += 1
            record.outcome = "failure" if context.attempt else "refused"
        if isinstance(error, MeshError):
            error.attempts = context.attempt
            error.service = error.service or record.service
        self._records.append(record)
        self._observer(CallFinished(record))

    @staticmethod
    def _closed(record: CallRecord, outcome: Outcome, error: BaseException | None) -> None:
        record.body_outcome = outcome.value
        if error is not None:
            record.reason = reason_of(error)
