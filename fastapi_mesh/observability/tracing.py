"""Spans of calls and attempts, and the headers that carry a trace on, over opentelemetry-api only.

Names follow the OpenTelemetry semantic conventions for HTTP client spans (1.44). The SERVER span is not made here: it
is FastAPI's own telemetry (or the contrib instrumentor) that reads the inbound headers and makes the span current.
"""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import ProxyTracerProvider, SpanKind, StatusCode, get_current_span

from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.observability.gateway_metrics import METHODS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from fastapi_mesh.core.context import Inbound
    from fastapi_mesh.core.events import CallRecord
    from fastapi_mesh.core.message import Header, Request

P = ParamSpec("P")
R = TypeVar("R")

PROPAGATED = frozenset(
    {
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-flags",
    }
)
"""The headers of a trace: W3C Trace Context and Baggage, and Zipkin's B3 in both its forms."""

LOOK_AGAIN = 1.0
"""Seconds between two looks for an OpenTelemetry SDK, as one look costs more than a span that nobody wants."""


class _HeaderSetter(Setter[list["Header"]]):
    def set(self, carrier: list[Header], key: str, value: str) -> None:
        carrier.append((key.lower().encode("latin-1"), value.encode("latin-1")))


_SETTER = _HeaderSetter()


class ActiveSpan:
    """A span that is current until it is ended, and what made it so."""

    __slots__ = ("span", "token")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.token: Token[Context] = otel_context.attach(trace.set_span_in_context(span))

    def end(self) -> None:
        otel_context.detach(self.token)
        self.span.end()


class Tracing:
    """One CLIENT span per logical call and one inside it per attempt, where an OpenTelemetry SDK is configured.

    Without an SDK there are no spans, and calls pass the trace headers of the request they are made in on unchanged;
    this costs less than 1 us. `tracer_provider` is one that isn't the global provider. With `enabled=False` nothing
    is added to calls at all.
    """

    def __init__(self, enabled: bool = True, *, tracer_provider: TracerProvider | None = None) -> None:
        self.enabled = enabled
        self._provider = tracer_provider
        self._tracer: Tracer | None = None
        self._next_look = 0.0

    def start_call(self, request: Request) -> ActiveSpan | None:
        """Begin the span of a logical call and make it current; sets `context.record.trace_id`."""
        context = request.context
        record = context.record
        tracer = self._active_tracer() if self.enabled else None
        if tracer is None:
            if record is not None and (context.inbound is not None or otel_context.get_current()):
                record.trace_id = current_trace_id(context.inbound)
            return None
        span = tracer.start_span(self._name(request), kind=SpanKind.CLIENT)
        if record is not None:
            record.trace_id = _hex(span)
        if span.is_recording():
            span.set_attributes(self._describe(request))
            span.set_attribute("server.address", request.service)
        return ActiveSpan(span)

    def end_call(self, span: object, record: CallRecord, error: BaseException | None) -> None:
        """End what `start_call` returned, with the call's outcome and the reasons of its decision record."""
        if not isinstance(span, ActiveSpan):
            return
        if span.span.is_recording():
            span.span.set_attribute("mesh.attempts", len(record.attempts))
            if record.refused_by:
                span.span.set_attribute("mesh.refused_by", record.refused_by)
            for instance, why in record.skipped:
                span.span.add_event("mesh.skipped", {"mesh.instance": instance, "mesh.why": why})
            for note in record.notes:
                span.span.add_event(note)
            _finish(span.span, record.status, error)
        span.end()

    def start_attempt(self, request: Request) -> ActiveSpan | None:
        """Begin the span of one try and make it current."""
        tracer = self._active_tracer() if self.enabled else None
        if tracer is None:
            return None
        span = tracer.start_span(self._name(request), kind=SpanKind.CLIENT)
        if span.is_recording():
            span.set_attributes(self._describe(request))
            _describe_instance(span, request)
        return ActiveSpan(span)

    def end_attempt(self, span: object, status: int | None, error: BaseException | None) -> None:
        """End what `start_attempt` returned."""
        if not isinstance(span, ActiveSpan):
            return
        if span.span.is_recording():
            _finish(span.span, status, error)
        span.end()

    def inject(self, headers: list[Header], request: Request) -> None:
        """Add the trace headers of the current span, replacing any in `headers`.

        Where there is no span, those of the inbound request are passed on, unless `headers` has its own.
        """
        if not self.enabled:
            return
        if otel_context.get_current() and get_current_span().get_span_context().is_valid:
            if _has_trace(headers):
                headers[:] = [header for header in headers if header[0] not in PROPAGATED]
            propagate.inject(headers, setter=_SETTER)
            return
        inbound = request.context.inbound
        if inbound is not None and inbound.propagate and not _has_trace(headers):
            headers.extend(inbound.propagate)

    def trace_id(self, inbound: Inbound | None = None) -> str:
        """See `current_trace_id`."""
        return current_trace_id(inbound)

    def traced(self, function: Callable[P, R], name: str = "") -> Callable[P, R]:
        """Wrap a function or coroutine function so that each call of it is a span (S-151).

        `name` defaults to the function's qualified name. Calls made in it are children of that span.
        """
        title = name or function.__qualname__
        if inspect.iscoroutinefunction(function):
            awaitable = cast("Callable[P, Awaitable[object]]", function)

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> object:
                tracer = self._active_tracer() if self.enabled else None
                if tracer is None:
                    return await awaitable(*args, **kwargs)
                with tracer.start_as_current_span(title):
                    return await awaitable(*args, **kwargs)

            return cast("Callable[P, R]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            tracer = self._active_tracer() if self.enabled else None
            if tracer is None:
                return function(*args, **kwargs)
            with tracer.start_as_current_span(title):
                return function(*args, **kwargs)

        return run

    def _active_tracer(self) -> Tracer | None:
        """The tracer of the configured SDK, None without one; looked for once a second."""
        if self._tracer is None:
            now = time.monotonic()
            if now < self._next_look:
                return None
            self._next_look = now + LOOK_AGAIN
            provider = self._provider or trace.get_tracer_provider()
            if isinstance(provider, ProxyTracerProvider):
                return None
            self._tracer = provider.get_tracer("fastapi_mesh")
        return self._tracer

    @staticmethod
    def _name(request: Request) -> str:
        """`{method} {template}`; the path itself would have no bounds."""
        method = METHODS.get(request.method, "HTTP")
        template = request.context.template
        return f"{method} {template}" if template else method

    @staticmethod
    def _describe(request: Request) -> dict[str, AttributeValue]:
        context = request.context
        known = METHODS.get(request.method)
        attributes: dict[str, AttributeValue] = {
            "http.request.method": known or "_OTHER",
            "mesh.target_service": request.service,
        }
        if known is None:
            attributes["http.request.method_original"] = request.method.decode("latin-1")
        if context.template:
            attributes["url.template"] = context.template
        if context.record is not None:
            attributes["mesh.source_service"] = context.record.source
        if context.request_id:
            attributes["mesh.request_id"] = context.request_id
        return attributes


def traced(function: Callable[P, R], name: str = "") -> Callable[P, R]:
    """`Tracing.traced` for a function that belongs to no mesh yet, as a decorator of a module finds it."""
    return Tracing().traced(function, name)


def current_trace_id(inbound: Inbound | None = None) -> str:
    """The trace id in hex: of the current span, else of the inbound request's headers, else ""."""
    if otel_context.get_current():
        span = get_current_span()
        if span.get_span_context().is_valid:
            return _hex(span)
    if inbound is not None:
        for name, value in inbound.propagate:
            if name == b"traceparent" and len(value) >= 55:  # W3C Trace Context section 3.2
                return value[3:35].decode("latin-1")
            if name == b"x-b3-traceid" or (name == b"b3" and b"-" in value):
                return value.split(b"-")[0].decode("latin-1")
    return ""


def _has_trace(headers: list[Header]) -> bool:
    return not PROPAGATED.isdisjoint(dict(headers))


def _describe_instance(span: Span, request: Request) -> None:
    """Where this attempt goes. `url.full` leaves the query out, since it may hold secrets."""
    context = request.context
    span.set_attribute("mesh.attempt", context.attempt)
    if context.attempt > 1:
        span.set_attribute("http.request.resend_count", context.attempt - 1)
    if context.instance is None:
        return
    instance = context.instance.instance
    span.set_attribute("mesh.instance", instance.id)
    span.set_attribute("server.address", instance.address)
    span.set_attribute("server.port", instance.port)
    scheme = "https" if instance.scheme in ("https", "h2") else "http"
    path = (instance.base_path + request.target.split(b"?", 1)[0]).decode("latin-1")
    span.set_attribute("url.full", f"{scheme}://{instance.authority.decode('latin-1')}{path}")


def _finish(span: Span, status: int | None, error: BaseException | None) -> None:
    """Set what came of it; an error status means the span failed, as the conventions say of CLIENT spans."""
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if error is not None:
        kind = error.reason if isinstance(error, MeshError) else type(error).__qualname__
        span.set_attribute("error.type", kind)
        span.set_status(StatusCode.ERROR, kind)
    elif status is not None and status >= 400:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


def _hex(span: Span) -> str:
    return trace.format_trace_id(span.get_span_context().trace_id)
