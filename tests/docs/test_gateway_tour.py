"""The tour shows every gateway option and name of the product description; `test_snippets` runs it."""

from __future__ import annotations

import pytest

from tests.docs.generate import DOCS
from tests.docs.snippets import snippets_of

PAGE = DOCS / "tutorial" / "gateway-tour.md"
DESCRIBED = {
    "S-001": ["APIGateway(", 'host="0.0.0.0"', "port=8080", '"user-service": "http://user-service:8000"'],
    "S-003": ["configure_routes(routes)", '"path"', '"service"', '"methods"', '"auth_required": True'],
    "S-008": ['"rate_limit": "100/minute"', '"cache_ttl": 300', '"require_https": True'],
    "S-011": ["configure_services(", '"instances"', '"round_robin"', '"least_connections"'],
    "S-014": ['"health_check": "/health"'],
    "S-015": ['"health_check_interval": 30'],
    "S-016": ["gateway.start()"],
    "S-017": ["gateway.add_middleware(["],
    "S-018": ["@gateway.health_check"],
    "S-020": ["CORSMiddleware(", "allow_origins", "allow_methods", "allow_headers"],
    "S-021": ["AuthenticationMiddleware(", "jwt_secret", "jwt_algorithm"],
    "S-022": ["RateLimitingMiddleware(", "default_rate_limit", "storage"],
    "S-023": ["CachingMiddleware(", "cache_backend", "default_ttl"],
    "S-024": ["LoggingMiddleware(", "log_requests", "log_responses", "log_level"],
    "S-030": ["transform_request(self, request)", "request.headers[", "request.path", "request.body"],
    "S-031": ["transform_response(self, response)", "response.elapsed", "response.body"],
    "S-034": ["gateway.add_transformers(", "request_transformer=", "response_transformer="],
    "S-040": ["CircuitBreaker(", "failure_threshold", "recovery_timeout", "expected_exception=ConnectionError"],
    "S-041": ["gateway.configure_circuit_breakers("],
    "S-050": ["JWTAuthProvider(", "OAuth2AuthProvider(", "APIKeyAuthProvider(", "gateway.configure_auth("],
    "S-060": ["ssl_cert", "ssl_key", "max_connections", "keepalive_timeout"],
    "S-062": ["request_timeout=30", "upstream_timeout=25", "max_retries=3", "retry_backoff=2.0"],
    "S-064": ["enable_metrics=True", "metrics_port=9090", "access_log=True", "error_log=True"],
    "S-066": ["service_mesh=mesh", "dynamic_routing=True", 'route_prefix="/api/v1"'],
}


@pytest.mark.parametrize("item", [pytest.param(item, marks=pytest.mark.spec(item)) for item in DESCRIBED])
def test_the_tour_shows_what_is_described(item: str) -> None:
    code = "\n".join(snippet.source for snippet in snippets_of(PAGE))
    assert [text for text in DESCRIBED[item] if text not in code] == []


def test_what_was_corrected_is_named() -> None:
    assert PAGE.read_text().count("**Corrected**:") == 4
