"""A gateway's settings: routes, services, timeouts and retries, and what is refused in this version."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.gateway import GatewayConfig, GatewayServiceConfig, RouteConfig, check_routes
from fastapi_mesh.config.overlay import overlay
from fastapi_mesh.config.policies import CallPolicy, LoadBalancingStrategy, ServicePolicy
from fastapi_mesh.config.problems import keys_at
from tests.config.config_support import problems_of


@pytest.mark.spec("S-001", "S-062", "S-063")
def test_the_defaults_of_a_gateway() -> None:
    config = GatewayConfig()

    assert (config.host, config.port, config.prefix, config.via) == ("0.0.0.0", 8080, "", "fastapi-mesh")
    assert (config.request_timeout, config.upstream_timeout) == (30.0, 25.0)
    assert (config.max_retries, config.retry_backoff) == (3, 2.0)
    assert config.trusted_proxies == ()
    assert config.enable_metrics


@pytest.mark.spec("S-001", "S-011", "S-012", "S-013")
def test_a_service_is_one_url_or_a_list_or_a_table() -> None:
    services = GatewayConfig.model_validate(
        {
            "services": {
                "user-service": "http://user-service:8000",
                "order-service": ["http://a:1", "http://b:1"],
                "payment-service": {"instances": "http://c:1", "load_balancing": "least_connections"},
                "found-service": {},
            }
        }
    ).services

    assert services["user-service"].instances == ("http://user-service:8000",)
    assert services["order-service"].instances == ("http://a:1", "http://b:1")
    assert services["payment-service"].load_balancing is LoadBalancingStrategy.LEAST_CONNECTIONS
    assert services["found-service"].instances == ()


@pytest.mark.parametrize(
    ("service", "line"),
    [
        (
            {"circuit_breaker": {"failure_treshold": 3}},
            "circuit_breaker.failure_treshold: unknown key - did you mean 'failure_threshold'?",
        ),
        (
            {"load_balancing": "round-robin"},
            (
                "load_balancing: 'round-robin' is not one of round_robin, random, least_connections, "
                "least_response_time, consistent_hash - did you mean 'round_robin'?"
            ),
        ),
        (
            {"balancing": {"hash_on": "heder:X"}},
            (
                "balancing.hash_on: 'heder:X' is not 'path' or 'header:', 'cookie:' or 'query:' with a name, "
                "like 'header:X-User-ID'"
            ),
        ),
        ({"weights": {"a-1": 0}}, "weights.a-1: 0 is too small: it must be more than 0"),
        (
            {"instances": "http://a", "instanses": 1},
            "instanses: unknown key - did you mean 'instances'?",
        ),
    ],
)
def test_a_problem_of_a_service_is_one_line_with_its_path(service: dict[str, object], line: str) -> None:
    assert problems_of(GatewayConfig, services={"user-service": service}) == [f"services.user-service.{line}"]


@pytest.mark.parametrize(
    ("route", "line"),
    [
        ({"service": "a"}, "routes[0].path: is missing"),
        ({"path": "/a"}, "routes[0].service: is missing"),
        ({"path": "a", "service": "a"}, "routes[0].path: 'a' does not start with '/'"),
        ({"path": "", "service": "a"}, "routes[0].path: '' does not start with '/'"),
        (
            {"path": "/a?b", "service": "a"},
            "routes[0].path: '/a?b' has a space, '?' or '#' in it, which no path of a request has",
        ),
        ({"path": "/a*", "service": "a"}, "routes[0].path: '/a*': '*' stands alone at the end, as '/*'"),
        ({"path": "/*/a", "service": "a"}, "routes[0].path: '/*/a': '*' stands alone at the end, as '/*'"),
        (
            {"path": "/{a}.json", "service": "a"},
            "routes[0].path: '/{a}.json': a parameter is a whole segment, like '/{user_id}'",
        ),
        (
            {"path": "/{a", "service": "a"},
            "routes[0].path: '/{a': a parameter is a whole segment, like '/{user_id}'",
        ),
        ({"path": "/{a}/{a}", "service": "a"}, "routes[0].path: '/{a}/{a}' names a parameter twice"),
        ({"path": "/a", "service": "a", "methods": "GET"}, "routes[0].methods: 'GET' is not a list - write ['GET']"),
        (
            {"path": "/a", "service": "a", "methods": []},
            "routes[0].methods: is empty, so no request could match; leave it out for every method",
        ),
        (
            {"path": "/a", "service": "a", "methods": ["GET,POST"]},
            "routes[0].methods[0]: 'GET,POST' is not a token (RFC 9110 section 5.6.2)",
        ),
        (
            {"path": "/a", "service": "a", "xyzzy": 1},
            "routes[0].xyzzy: unknown key; known here: " + ", ".join(keys_at(RouteConfig, ())),
        ),
        (
            {"path": "/a", "service": "a", "strip_prefix": "maybe"},
            "routes[0].strip_prefix: 'maybe' is not true or false",
        ),
    ],
)
@pytest.mark.spec("S-004", "S-005", "S-006", "B1")
def test_a_problem_of_a_route_is_one_line_with_its_path(route: dict[str, object], line: str) -> None:
    assert problems_of(GatewayConfig, routes=[route]) == [line]


@pytest.mark.spec("S-004", "S-006")
def test_routes_of_the_description_are_taken_as_they_are() -> None:
    (route,) = GatewayConfig.model_validate(
        {"routes": [{"path": "/api/v1/users/*", "service": "user-service", "methods": ["GET", "post"]}]}
    ).routes

    assert route == RouteConfig(path="/api/v1/users/*", service="user-service", methods=("GET", "POST"))
    assert not route.strip_prefix


def test_two_routes_with_the_same_path_and_a_method_in_common_are_refused() -> None:
    routes = [
        {"path": "/a/{id}", "service": "a", "methods": ["GET", "POST"]},
        {"path": "/b", "service": "a"},
        {"path": "/a/{name}", "service": "b", "methods": ["PUT", "POST"]},
        {"path": "/b", "service": "b", "methods": ["GET"]},
        {"path": "/b", "service": "c"},
        {"path": "/a/{id}", "service": "a", "methods": ["DELETE"]},
    ]

    advice = "under the same conditions; remove one, split methods or give one a priority"
    assert problems_of(GatewayConfig, routes=routes) == [
        f"routes[2]: '/a/{{name}}' with POST is already routes[0], {advice}",
        f"routes[4]: '/b' with any method is already routes[1], {advice}",
    ]


@pytest.mark.spec("B14")
def test_trusted_proxies_are_addresses_or_networks() -> None:
    config = GatewayConfig.model_validate({"trusted_proxies": ["10.0.0.0/8", "127.0.0.1", "::1"]})

    assert config.trusted_proxies == ("10.0.0.0/8", "127.0.0.1/32", "::1/128")
    assert GatewayConfig.model_validate({"trusted_proxies": "10.1.2.3"}).trusted_proxies == ("10.1.2.3/32",)
    assert problems_of(GatewayConfig, trusted_proxies=["10.0.0.1/8", "proxy", "*"]) == [
        "trusted_proxies[0]: '10.0.0.1/8' has bits set outside of its mask - did you mean '10.0.0.0/8'?",
        "trusted_proxies[1]: 'proxy' is not an IP address or network like '10.0.0.0/8'",
        "trusted_proxies[2]: '*' is not an IP address or network like '10.0.0.0/8'",
    ]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"host": "0.0.0.0:80"}, "host: '0.0.0.0:80' is not a host name or IP address; a port is a setting of its own"),
        ({"port": -1}, "port: -1 is too small: it must be at least 0"),
        ({"via": "my gateway"}, "via: 'my gateway' is not a token (RFC 9110 section 5.6.2)"),
        ({"max_retries": 20}, "max_retries: 20 is too large: it must be at most 19"),
        ({"max_retries": 1.5}, "max_retries: 1.5 is not a whole number"),
        ({"max_retries": "many"}, "max_retries: 'many' is not a whole number"),
        ({"retry_backoff": 0.5}, "retry_backoff: 0.5 is too small: it must be at least 1"),
        ({"request_timeout": 0}, "request_timeout: 0 is too small: it must be more than 0"),
        ({"prefix": "api"}, "prefix: 'api' does not start with '/'"),
        ({"prefix": "/api/*"}, "prefix: '/api/*': a prefix has no '*' and no parameter"),
        (
            {"upstream_timeout": 40},
            (
                "upstream_timeout: upstream_timeout (40 s) is longer than request_timeout (30 s), so it could never "
                "end an attempt; lower upstream_timeout or raise request_timeout"
            ),
        ),
        (
            {"services": {"a": {"timeouts": {"attempt_timeout": 31}}}},
            (
                "services.a.timeouts: attempt_timeout (31 s) is longer than timeout (30 s), so it could never end an "
                "attempt; lower attempt_timeout or raise timeout"
            ),
        ),
    ],
)
@pytest.mark.spec("B5")
def test_a_problem_of_a_gateway_is_one_line_with_its_path(values: dict[str, object], line: str) -> None:
    assert problems_of(GatewayConfig, **values) == [line]


@pytest.mark.spec("B5")
def test_an_upstream_timeout_may_be_as_long_as_the_request_s() -> None:
    policy = GatewayConfig(request_timeout=40, upstream_timeout=40).policy_of("any")

    assert (policy.timeouts.timeout, policy.timeouts.attempt_timeout) == (40, 40)


def test_a_prefix_may_end_in_a_slash() -> None:
    assert GatewayConfig(prefix="/gateway/").prefix == "/gateway"
    assert GatewayConfig(prefix="/").prefix == ""


@pytest.mark.spec("B3", "B4", "B5")
def test_a_gateway_s_numbers_become_the_policy_of_its_services() -> None:
    policy = GatewayConfig(request_timeout=10, max_retries=2, retry_backoff=3.0).policy_of("any")

    compiled = CallPolicy.compile(policy)
    assert (compiled.timeout, compiled.attempt_timeout) == (10, 10)
    assert compiled.retry is not None
    assert compiled.retry.max_attempts == 3
    assert (compiled.retry.base_delay, compiled.retry.multiplier) == (0.1, 3.0)
    assert compiled.retry.max_delay == 10
    assert compiled.retry.jitter
    assert CallPolicy.compile(GatewayConfig(max_retries=0).policy_of("any")).retry is None


def test_what_is_set_for_a_service_lies_over_the_gateway_s_numbers() -> None:
    config = GatewayConfig.model_validate(
        {
            "services": {
                "a": {
                    "timeouts": {"timeout": 5},
                    "retry": {"max_attempts": 2},
                    "circuit_breaker": None,
                    "weights": {"a-1": 2},
                }
            }
        }
    )

    policy = config.policy_of("a")
    assert (policy.timeouts.timeout, policy.timeouts.attempt_timeout) == (5, 5)
    assert policy.retry is not None
    assert (policy.retry.max_attempts, policy.retry.base_delay) == (2, 0.1)
    assert policy.circuit_breaker is None
    assert policy.load_balancing.weights == {"a-1": 2}


def test_a_gateway_s_policy_leaves_alone_what_the_gateway_does_not_set() -> None:
    below = ServicePolicy.model_validate({"circuit_breaker": {"failure_threshold": 9}, "outlier": None})

    policy = overlay(below, GatewayConfig().policy_of("a"))

    assert policy.circuit_breaker is not None
    assert policy.circuit_breaker.failure_threshold == 9
    assert policy.outlier is None
    assert policy.retry is not None
    assert policy.retry.max_attempts == 4


def test_the_policy_of_a_service_holds_only_what_was_set() -> None:
    service = GatewayServiceConfig.model_validate({"load_balancing": "least_connections", "retry": {"jitter": False}})

    assert service.policy().model_dump(exclude_unset=True) == {
        "load_balancing": {"strategy": LoadBalancingStrategy.LEAST_CONNECTIONS},
        "retry": {"jitter": False},
    }


def test_a_route_to_an_unknown_service_is_a_problem_unless_it_can_be_discovered() -> None:
    routes = [RouteConfig(path=f"/{name}", service=name) for name in ("user-service", "usr-service", "banana")]

    assert check_routes(routes, ["user-service", "order-service"], discoverable=True) == []
    assert check_routes(routes, ["user-service", "order-service"], discoverable=False) == [
        "routes[1].service: 'usr-service' is not a known service - did you mean 'user-service'?",
        "routes[2].service: 'banana' is not a known service",
    ]
