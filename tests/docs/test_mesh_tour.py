"""The tour shows every option and name of the product description's mesh half; `test_snippets` runs it."""

from __future__ import annotations

import pytest

from tests.docs.generate import DOCS
from tests.docs.snippets import snippets_of

PAGE = DOCS / "tutorial" / "mesh-tour.md"
DESCRIBED = {
    "S-101": ["ServiceMesh(", 'service_name="user-service"', 'service_version="1.0.0"', 'namespace="production"'],
    "S-102": ['discovery_backend="consul"'],
    "S-103": ["discovery_config={", '"host"', '"port": 8500'],
    "S-110": [
        "mesh.register_service(",
        "service_id=",
        "address=",
        "port=8000",
        'health_check="/health"',
        "tags=[",
        "metadata={",
    ],
    "S-111": ["@mesh.health_check", '"status": "unhealthy"'],
    "S-112": ["mesh.discover_service(", "order_service.address", "order_service.port"],
    "S-113": ["mesh.discover_services(", "service.health"],
    "S-114": ["@mesh.watch_service(", '"added"', '"removed"', '"updated"'],
    "S-120": ["LoadBalancingStrategy.LEAST_RESPONSE_TIME", "LoadBalancingStrategy.ROUND_ROBIN"],
    "S-121": ["configure_load_balancing(", "health_check_required", "weights", "sticky_sessions", "X-User-ID"],
    "S-130": [
        "configure_circuit_breakers(",
        "failure_threshold",
        "recovery_timeout",
        "half_open_max_calls",
        '"timeout": 10.0',
    ],
    "S-131": ['@mesh.circuit_breaker("external-api")'],
    "S-132": ['async with mesh.get_client("external-api") as client', 'client.post("/api/process", json=data)'],
    "S-140": [
        "configure_retry_policies(",
        "max_attempts",
        '"exponential"',
        '"linear"',
        "base_delay",
        "max_delay",
        "jitter",
    ],
    "S-141": ['@retry_policy("profile-service")'],
    "S-150": ["mesh.get_metrics()", "metrics.total_calls", "metrics.success_rate", "metrics.avg_latency"],
    "S-151": ["@mesh.trace_calls"],
    "S-152": ['call_service("user-service", "/users/{}", ', 'call_service("payment-service", "/payments", '],
    "S-153": ["trace.get_tracer(", "start_as_current_span("],
    "S-170": ['mesh.get_config("database")', 'config.get("pool_size", 10)'],
    "S-171": ['@mesh.watch_config("feature_flags")'],
    "S-201": ["ServiceMeshMiddleware", "enable_tracing=True", "enable_metrics=True", "enable_service_discovery=True"],
    "S-202": ["Depends(get_service_mesh)"],
    "S-204": ["class UserService:", "@circuit_breaker(", "@retry_policy(", "@trace_calls"],
    "S-313": ["except CircuitBreakerOpenError", "except ServiceUnavailableError", "except ServiceDiscoveryError"],
}


@pytest.mark.parametrize("item", [pytest.param(item, marks=pytest.mark.spec(item)) for item in DESCRIBED])
def test_the_tour_shows_what_is_described(item: str) -> None:
    code = "\n".join(snippet.source for snippet in snippets_of(PAGE))
    assert [text for text in DESCRIBED[item] if text not in code] == []


def test_what_was_corrected_is_named() -> None:
    assert PAGE.read_text().count("**Corrected**:") == 4
