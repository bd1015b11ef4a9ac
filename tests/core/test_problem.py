"""Problem details: what a client may see of an error, and what it must not."""

from __future__ import annotations

import json
import math

import pytest

from fastapi_mesh import exceptions
from fastapi_mesh.core.problem import DETAILS, document, problem
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    ConfigurationError,
    MeshError,
    ServiceResponseError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)


def all_errors() -> list[type[MeshError]]:
    return [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, MeshError)]


def test_it_is_rfc_9457_with_a_string_detail_and_names_rule_service_and_trace():
    error = CircuitBreakerOpenError("open", service="users")
    error.retry_after = 12.3

    status, headers, body = problem(error, "abc123")

    assert status == 503
    assert dict(headers) == {
        b"content-type": b"application/problem+json",
        b"content-length": str(len(body)).encode(),
        b"cache-control": b"no-store",
        b"x-mesh-reason": b"circuit-open",
        b"retry-after": b"13",
    }
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "calls to users are suspended because too many of them failed",
        "reason": "circuit-open",
        "service": "users",
        "trace_id": "abc123",
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UpstreamConnectionError("10.1.2.3:8000 refused", service="users"), 502),
        (UpstreamTimeoutError("10.1.2.3:8000 is slow", service="users"), 504),
        (ServiceResponseError("404 from 10.1.2.3", service="users", status_code=404, body=b"10.1.2.3"), 502),
        (ConfigurationError("discovery.path: /var/10.1.2.3"), 500),
        (MeshError("10.1.2.3"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_error_s_own_text_stays_inside_and_an_inner_4xx_is_a_502(error, status):
    code, headers, body = problem(error)
    assert code == status
    assert b"10.1.2.3" not in body + b"".join(value for _, value in headers)
    assert json.loads(body)["status"] == status


def test_every_error_of_the_tree_has_a_sentence_of_its_own():
    reasons = {each.reason for each in all_errors()} - {MeshError.reason}
    at_the_door = {"overloaded"}  # no error of a call: a node that has enough to do says it of a request
    assert reasons | at_the_door == set(DETAILS)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, b"1"), (0.2, b"1"), (2.0, b"2"), (math.inf, None), (None, None)])
def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one(seconds, header):
    _, headers, _ = document(503, "x", "y", retry_after=seconds)
    assert dict(headers).get(b"retry-after") == header


def test_statuses_outside_the_registry_have_a_title_too():
    assert json.loads(document(499, "x", "y")[2])["title"] == "Client Closed Request"
    assert json.loads(document(599, "x", "y")[2])["title"] == "Error"
