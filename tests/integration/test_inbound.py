"""What is read from a request's headers."""

from __future__ import annotations

import re

import pytest

from fastapi_mesh.integration.inbound import read_inbound

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
MESH = object()


@pytest.mark.spec("X-06")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"x-mesh-timeout-ms", b"1500")], 1.5),
        ([(b"x-mesh-timeout-ms", b"0")], 0.0),
        ([(b"x-mesh-timeout-ms", b"-20")], 0.0),
        ([(b"x-mesh-timeout-ms", b"soon")], None),
        ([(b"x-mesh-timeout-ms", b"1e3")], None),
        ([(b"x-mesh-timeout-ms", b"9999999999")], None),
        ([(b"x-envoy-expected-rq-timeout-ms", b"200")], 0.2),
        ([(b"x-envoy-expected-rq-timeout-ms", b"0")], None),
        ([(b"grpc-timeout", b"3S")], 3.0),
        ([(b"grpc-timeout", b"250m")], 0.25),
        ([(b"grpc-timeout", b"1H")], 3600.0),
        ([(b"grpc-timeout", b"100u")], 0.0001),
        ([(b"grpc-timeout", b"3 S")], None),
        ([(b"x-mesh-timeout-ms", b"900"), (b"x-envoy-expected-rq-timeout-ms", b"300"), (b"grpc-timeout", b"5S")], 0.3),
    ],
    ids=str,
)
def test_the_deadline_is_the_earliest_that_can_be_read(headers, seconds):
    inbound = read_inbound(MESH, headers, 1000.0)
    assert inbound.deadline == (None if seconds is None else pytest.approx(1000.0 + seconds))


def test_a_well_formed_request_id_is_kept_and_one_is_made_where_there_is_none():
    assert read_inbound(MESH, [(b"x-request-id", b"req-1.a/b=")], 0.0).request_id == "req-1.a/b="
    made = [read_inbound(MESH, [], 0.0).request_id for _ in range(2)]
    assert all(UUID7.fullmatch(each) for each in made)
    assert made[0] != made[1]


@pytest.mark.parametrize("value", [b"", b"a b", b"a\nb", b"x" * 129, b"a\x00", b'"quoted"', "ü".encode(), b"a,b"])
def test_an_id_that_could_break_a_log_line_or_a_header_is_replaced(value):
    assert UUID7.fullmatch(read_inbound(MESH, [(b"x-request-id", value)], 0.0).request_id)


def test_an_id_that_is_not_trusted_is_replaced():
    inbound = read_inbound(MESH, [(b"x-request-id", b"mine")], 0.0, trust_request_id=False)
    assert UUID7.fullmatch(inbound.request_id)


@pytest.mark.spec("X-55")
def test_trace_headers_are_kept_as_they_came_and_nothing_else():
    kept = [
        (b"traceparent", b"00-1-2-01"),
        (b"tracestate", b"a=1"),
        (b"tracestate", b"b=2"),
        (b"baggage", b"user=3"),
        (b"b3", b"1-2-1"),
        (b"x-b3-traceid", b"1"),
        (b"x-b3-sampled", b"1"),
    ]
    others = [(b"authorization", b"Bearer x"), (b"cookie", b"a=1"), (b"x-request-id", b"r"), (b"host", b"h")]
    inbound = read_inbound(MESH, [*others[:2], *kept, *others[2:]], 0.0)
    assert inbound.propagate == tuple(kept)
    assert inbound.mesh is MESH
