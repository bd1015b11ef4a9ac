"""Spans and trace headers, with an SDK and without."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext, Inbound
from fastapi_mesh.core.events import CallRecord
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Header, Request
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.exceptions import UpstreamConnectionError
from fastapi_mesh.observability.tracing import Tracing, current_trace_id

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())
B3 = (b"b3", f"{TRACE}-b7ad6b7169203331-1".encode())


class _First:
    def pick(self, instances: object, request: object) -> InstanceState:
        raise AssertionError("no pick in these tests")


def call(*, method: bytes = b"GET", inbound: Inbound | None = None, headers: tuple[Header, ...] = ()) -> Request:
    instances: Live[tuple[InstanceState, ...]] = Live(())
    context = CallContext(
        CallPolicy.compile(ServicePolicy()),
        ServiceState("users", instances=instances, picker=_First()),
        template="/users/{}",
        inbound=inbound,
    )
    context.record = CallRecord("shop", "users", method, "/users/{}", 0.0)
    return Request(method, "users", b"/users/3?token=secret", list(headers), b"", context)


def attempt_at(request: Request, number: int) -> None:
    request.context.attempt = number
    request.context.instance = InstanceState(Instance("users", f"users-{number}", "127.0.0.1", 8000 + number))


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.mark.spec("X-55")
def test_one_client_span_for_the_call_and_one_inside_it_for_each_attempt(spans, provider):
    tracing = Tracing(tracer_provider=provider)
    request = call()
    error = UpstreamConnectionError("127.0.0.1:8001 refused", service="users")

    outer = tracing.start_call(request)
    attempt_at(request, 1)
    first = tracing.start_attempt(request)
    tracing.end_attempt(first, None, error)
    attempt_at(request, 2)
    second = tracing.start_attempt(request)
    tracing.end_attempt(second, 200, None)
    record = request.context.record
    record.status = 200
    record.skipped = (("users-3", "ejected"),)
    tracing.end_call(outer, record, None)

    failed, answered, whole = spans.get_finished_spans()
    assert [span.name for span in (failed, answered, whole)] == ["GET /users/{}"] * 3
    assert {span.kind for span in (failed, answered, whole)} == {SpanKind.CLIENT}
    assert failed.parent.span_id == answered.parent.span_id == whole.context.span_id
    assert whole.parent is None
    assert record.trace_id == trace.format_trace_id(whole.context.trace_id)
    assert dict(whole.attributes) == {
        "http.request.method": "GET",
        "mesh.target_service": "users",
        "mesh.source_service": "shop",
        "url.template": "/users/{}",
        "server.address": "users",
        "mesh.attempts": 0,
        "http.response.status_code": 200,
    }
    assert [(event.name, dict(event.attributes)) for event in whole.events] == [
        ("mesh.skipped", {"mesh.instance": "users-3", "mesh.why": "ejected"})
    ]
    assert failed.attributes["error.type"] == "connection-failed"
    assert failed.status.status_code is StatusCode.ERROR
    assert "http.request.resend_count" not in failed.attributes
    assert answered.attributes["http.request.resend_count"] == 1
    assert answered.attributes["server.address"] == "127.0.0.1"
    assert answered.attributes["server.port"] == 8002
    assert answered.attributes["mesh.instance"] == "users-2"
    assert answered.attributes["url.full"] == "http://127.0.0.1:8002/users/3"  # without its query
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.spec("X-55")
def test_a_4xx_or_5xx_answer_marks_the_span_and_a_strange_method_is_bounded(spans, provider):
    tracing = Tracing(tracer_provider=provider)
    request = call(method=b"BREW")
    span = tracing.start_attempt(request)
    tracing.end_attempt(span, 404, None)

    (finished,) = spans.get_finished_spans()
    assert finished.name == "HTTP /users/{}"
    assert finished.attributes["http.request.method"] == "_OTHER"
    assert finished.attributes["http.request.method_original"] == "BREW"
    assert finished.attributes["error.type"] == "404"
    assert finished.status.status_code is StatusCode.ERROR


@pytest.mark.spec("X-55")
def test_the_attempt_s_own_context_replaces_what_the_client_sent(provider):
    tracing = Tracing(tracer_provider=provider)
    request = call(headers=(PARENT, (b"accept", b"*/*"), B3), inbound=Inbound(None, propagate=(PARENT,)))
    outer = tracing.start_call(request)
    span = tracing.start_attempt(request)
    tracing.inject(request.headers, request)
    tracing.end_attempt(span, 200, None)
    tracing.end_call(outer, request.context.record, None)

    own = trace.format_span_id(span.span.get_span_context().span_id)
    names = [name for name, _ in request.headers]
    assert names == [b"accept", b"traceparent"]
    assert own in dict(request.headers)[b"traceparent"].decode()


@pytest.mark.spec("X-55")
def test_without_an_sdk_the_inbound_trace_is_passed_on_as_it_came():
    tracing = Tracing()
    request = call(inbound=Inbound(None, propagate=(PARENT, (b"baggage", b"user=3"), B3)))

    assert tracing.start_call(request) is None
    assert tracing.start_attempt(request) is None
    tracing.inject(request.headers, request)

    assert request.headers == [PARENT, (b"baggage", b"user=3"), B3]
    assert request.context.record.trace_id == TRACE


def test_headers_that_already_carry_a_trace_are_left_alone():
    request = call(inbound=Inbound(None, propagate=(PARENT,)), headers=(B3,))
    Tracing().inject(request.headers, request)
    assert request.headers == [B3]


def test_switched_off_it_adds_nothing_at_all(spans, provider):
    tracing = Tracing(enabled=False, tracer_provider=provider)
    request = call(inbound=Inbound(None, propagate=(PARENT,)))
    assert tracing.start_call(request) is None
    assert tracing.start_attempt(request) is None
    tracing.inject(request.headers, request)
    assert request.headers == []
    assert tracing.traced(lambda: 3, "three")() == 3
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("propagate", "expected"),
    [
        ((), ""),
        ((PARENT,), TRACE),
        ((B3,), TRACE),
        (((b"x-b3-traceid", TRACE.encode()),), TRACE),
        (((b"b3", b"0"),), ""),
        (((b"traceparent", b"garbage"),), ""),
    ],
)
def test_the_trace_id_is_read_from_every_form_of_header(propagate, expected):
    assert current_trace_id(Inbound(None, propagate=propagate)) == expected


@pytest.mark.spec("S-151", "S-153")
def test_traced_functions_are_spans_around_what_happens_in_them(spans, provider):
    tracing = Tracing(tracer_provider=provider)
    own = provider.get_tracer("application")

    async def process_order(order: int) -> int:
        """Process it."""
        with own.start_as_current_span("charge"):
            await asyncio.sleep(0)
        return order + 1

    def price(order: int) -> int:
        raise KeyError(order)

    wrapped = tracing.traced(process_order, "process_order")
    assert asyncio.run(wrapped(3)) == 4
    assert wrapped.__doc__ == "Process it."
    with pytest.raises(KeyError):
        tracing.traced(price)(3)

    charge, process, priced = spans.get_finished_spans()
    assert (charge.name, process.name) == ("charge", "process_order")
    assert charge.parent.span_id == process.context.span_id
    assert priced.name.endswith("price")
    assert priced.status.status_code is StatusCode.ERROR


def test_an_sdk_set_up_after_the_mesh_was_made_is_found():
    code = """
import time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from fastapi_mesh.observability import tracing
made = tracing.Tracing()
wrapped = made.traced(lambda: trace.get_current_span().get_span_context().is_valid, "f")
tracing.LOOK_AGAIN = 0.0
before = wrapped()
trace.set_tracer_provider(TracerProvider())
print(before, wrapped())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
