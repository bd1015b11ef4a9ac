"""What is counted for Prometheus: calls, circuits, a gateway, and a node's own server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fastapi_mesh.core.events import (
    AttemptRecord,
    BudgetExhausted,
    CallFinished,
    CallRecord,
    CircuitChanged,
    ExcessDropped,
    InstanceEjected,
    InstanceRestored,
    InstancesChanged,
    LoopFailed,
    TrailersDropped,
)
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.observability.gateway_metrics import GatewayMetrics
from fastapi_mesh.observability.metrics import MAX_SERVICES, MeshMetrics
from fastapi_mesh.observability.server import measure_server


def call(
    service: str = "users", *, status: int | None = 200, reason: str = "", tries: tuple[int | str, ...] = (200,)
) -> CallFinished:
    record = CallRecord("shop", service, b"GET", "/users/{}", 0.0)
    record.status = status
    record.reason = reason
    record.outcome = "success" if status is not None and status < 500 else "failure"
    record.duration = 0.02
    record.attempts = tuple(
        AttemptRecord("i", 0.01, each if isinstance(each, int) else None, each if isinstance(each, str) else None)
        for each in tries
    )
    return CallFinished(record)


def value(metrics: MeshMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.mark.spec("S-302", "X-54")
def test_a_call_is_counted_by_its_status_or_by_the_reason_why_there_is_none():
    metrics = MeshMetrics("shop")

    metrics(call())
    metrics(call())
    metrics(call(status=503, tries=(503, 503, 503)))
    metrics(call(status=None, reason="circuit-open", tries=()))
    metrics(call(status=None, reason="connection-failed", tries=("connection-failed", "connection-failed")))

    def count(status: str) -> float | None:
        return value(metrics, "mesh_service_calls_total", source_service="shop", target_service="users", status=status)

    assert [count(status) for status in ("200", "503", "circuit-open", "connection-failed")] == [2, 1, 1, 1]
    assert value(metrics, "mesh_attempts_total", target_service="users", status="503") == 3
    assert value(metrics, "mesh_attempts_total", target_service="users", status="connection-failed") == 2
    assert value(metrics, "mesh_retries_total", target_service="users") == 3
    assert value(metrics, "mesh_call_duration_seconds_count", source_service="shop", target_service="users") == 5


@pytest.mark.spec("S-303")
def test_the_circuit_is_0_closed_from_the_first_call_on_1_open_2_half_open():
    metrics = MeshMetrics("shop")
    metrics(call())
    seen = [value(metrics, "mesh_circuit_breaker_state", service="users")]
    for before, after in (("closed", "open"), ("open", "half-open"), ("half-open", "closed")):
        metrics(CircuitChanged("users", before, after))
        seen.append(value(metrics, "mesh_circuit_breaker_state", service="users"))

    assert seen == [0, 1, 2, 0]


@pytest.mark.spec("X-54")
def test_every_other_event_has_its_metric():
    metrics = MeshMetrics("shop")
    metrics(InstancesChanged("users", ("a", "b"), (), 2))
    metrics(InstanceEjected("users", "a", 30.0))
    metrics(InstanceRestored("users", "a"))
    metrics(BudgetExhausted("users"))
    metrics(TrailersDropped("users"))
    metrics(ExcessDropped("users", "10.0.0.1:8080", True))
    metrics(LoopFailed("watch users", "OSError: no", 0.1))

    assert value(metrics, "mesh_instances", service="users") == 2
    for name in ("ejections", "restorations", "retry_budget_exhausted", "trailers_dropped", "excess_dropped"):
        assert value(metrics, f"mesh_{name}_total", service="users") == 1, name
    assert value(metrics, "mesh_loop_failures_total", loop="watch users") == 1


@pytest.mark.spec("X-54")
def test_service_names_without_end_share_one_label_and_do_not_fill_the_memory():
    metrics = MeshMetrics("shop")
    for number in range(MAX_SERVICES + 50):
        metrics(call(f"service-{number}"))

    assert (
        value(metrics, "mesh_service_calls_total", source_service="shop", target_service="__other__", status="200")
        == 50
    )
    assert metrics.statistics() == {"services": MAX_SERVICES, "series": 2 * MAX_SERVICES}


@pytest.mark.spec("S-300", "S-301")
def test_gateway_requests_have_the_labels_of_the_description_and_methods_are_bounded():
    metrics = MeshMetrics("gateway")
    metrics.gateway.request(b"GET", "/api/v1/users/*", 200, 0.01)
    metrics.gateway.request(b"GET", "/api/v1/users/*", 200, 0.01)
    for number in range(20):
        metrics.gateway.request(b"M%d" % number, "/api/v1/users/*", 405, 0.01)
    metrics.gateway.local("/api/v1/users/*", "circuit-open")

    path = "/api/v1/users/*"
    assert value(metrics, "gateway_requests_total", method="GET", path=path, status="200") == 2
    assert value(metrics, "gateway_requests_total", method="OTHER", path=path, status="405") == 20
    assert value(metrics, "gateway_request_duration_seconds_count", method="GET", path=path) == 2
    assert value(metrics, "gateway_local_responses_total", path=path, reason="circuit-open") == 1


@pytest.mark.spec("S-304")
def test_a_registry_of_ones_own_is_used_and_a_second_mesh_on_it_is_refused_with_the_way_out():
    registry = CollectorRegistry()
    metrics = MeshMetrics("shop", registry)
    metrics(call())

    assert registry.get_sample_value("mesh_attempts_total", {"target_service": "users", "status": "200"}) == 1
    with pytest.raises(ConfigurationError, match=r"metrics_registry: .*CollectorRegistry of its own"):
        MeshMetrics("other", registry)
    with pytest.raises(ConfigurationError, match="got dict"):
        MeshMetrics("other", {})


def test_two_meshes_of_one_process_count_apart_and_the_global_registry_stays_untouched():
    before = {family.name for family in REGISTRY.collect()}
    one, two = MeshMetrics("one"), MeshMetrics("two")
    one(call())

    labels = {"target_service": "users", "status": "200"}
    assert value(one, "mesh_attempts_total", **labels) == 1
    assert value(two, "mesh_attempts_total", **labels) is None
    assert {family.name for family in REGISTRY.collect()} == before


def test_a_scrape_is_prometheus_text_or_openmetrics_as_asked():
    metrics = MeshMetrics("shop")
    metrics(call())

    plain, plain_type = metrics.render("")
    openmetrics, open_type = metrics.render("application/openmetrics-text; version=1.0.0")

    assert plain_type.startswith("text/plain; version=0.0.4")
    assert open_type.startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.rstrip().endswith(b"# EOF")
    assert {"mesh_service_calls", "process_cpu_seconds"} <= {
        family.name for family in text_string_to_metric_families(plain.decode())
    }


@pytest.mark.spec("X-54")
def test_the_names_keep_prometheus_rules():
    metrics = MeshMetrics("shop")
    assert metrics.gateway is metrics.gateway
    for family in metrics.registry.collect():
        assert family.documentation, family.name
        if family.name.startswith(("mesh_", "gateway_")):
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds")), family.name
            if family.type == "histogram":
                assert family.name.endswith("_seconds"), family.name


@pytest.mark.spec("X-54")
def test_worker_processes_are_read_as_one_and_an_ended_one_takes_its_gauges_along(tmp_path):
    workers = """
import os, sys
from fastapi_mesh.core.events import CircuitChanged
from fastapi_mesh.observability.metrics import MeshMetrics

def work(state, end):
    metrics = MeshMetrics("gateway")
    metrics.gateway.request(b"GET", "/a", 200, 0.01)
    metrics(CircuitChanged("users", "closed", state))
    if end == "close":
        metrics.close()
    lines = metrics.render()[0].decode().splitlines()
    print(*(line for line in lines if line.startswith(("gateway_requests_total{", "mesh_circuit"))), sep="\\n")

for state, end in (("open", "crash"), ("half-open", "crash"), ("closed", "close")):
    print("===", flush=True)
    pid = os.fork()
    if not pid:
        work(state, end)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": ""}
    printed = subprocess.check_output([sys.executable, "-c", workers], text=True, env=environment)
    _, _, second, third = (lines.splitlines() for lines in printed.split("===\n"))

    assert 'gateway_requests_total{method="GET",path="/a",status="200"} 2.0' in second
    assert 'mesh_circuit_breaker_state{service="users"} 2.0' in second
    assert 'gateway_requests_total{method="GET",path="/a",status="200"} 3.0' in third
    assert 'mesh_circuit_breaker_state{service="users"} 2.0' in third  # of the crashed ones; its own is gone


def app_with_routes() -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/v1")

    @router.get("/items/{item}")
    def item(item: int) -> int:
        return item

    @app.get("/health")
    def health() -> str:
        return "mine"

    app.include_router(router)
    return app


def measured(app: FastAPI, registry: CollectorRegistry) -> TestClient:
    app.add_middleware(lambda inner: measure_server(inner, registry, exclude=("/health",)))  # type: ignore[arg-type]
    return TestClient(app)


@pytest.mark.spec("X-54")
def test_a_node_s_requests_are_counted_by_template_with_bounded_methods():
    registry = CollectorRegistry()
    client = measured(app_with_routes(), registry)
    client.get("/v1/items/1")
    client.get("/v1/items/2")
    client.get("/nowhere/1")
    client.request("BREW", "/v1/items/1")
    client.get("/health")

    def count(**labels: str) -> float | None:
        return registry.get_sample_value("http_requests_total", labels)

    assert count(method="GET", handler="/v1/items/{item}", status="2xx") == 2
    assert count(method="GET", handler="none", status="4xx") == 1
    assert count(method="OTHER", handler="/v1/items/{item}", status="4xx") == 1
    assert count(method="GET", handler="/health", status="2xx") is None


def test_two_applications_on_one_registry_are_refused_instead_of_losing_one():
    registry = CollectorRegistry()
    measure_server(app_with_routes(), registry)
    with pytest.raises(ConfigurationError, match="another application"):
        measure_server(app_with_routes(), registry)


def test_two_gateways_on_one_registry_are_refused():
    metrics = MeshMetrics("gateway")
    assert metrics.gateway is metrics.gateway
    with pytest.raises(ConfigurationError, match="metrics_registry"):
        GatewayMetrics(metrics.registry)
