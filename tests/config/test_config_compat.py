"""The product description's shapes: routes, services, breakers, retries, balancing, its ConfigMap, its variables."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh.config.compat import (
    balancing_policies,
    breaker_policies,
    get_protocol_config,
    retry_policies,
    with_section,
)
from fastapi_mesh.config.compat_gateway import routes_from_description, services_from_description
from fastapi_mesh.config.gateway import GatewayServiceConfig, RouteConfig
from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.policies import (
    BalancingPolicy,
    BreakerPolicy,
    LoadBalancingStrategy,
    RetryPolicy,
    ServicePolicy,
    TimeoutPolicy,
)
from fastapi_mesh.config.probes import ProbePolicy
from tests.config.config_support import mesh_problems, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.spec("S-003", "S-004", "S-005", "S-006")
def test_routes_of_the_description_without_later_options_are_taken() -> None:
    routes = routes_from_description(
        [
            {"path": "/api/v1/users/*", "service": "user-service", "methods": ["GET", "POST"], "auth_required": False},
            RouteConfig(path="/api/v1/orders/*", service="order-service"),
        ]
    )

    assert routes == (
        RouteConfig(path="/api/v1/users/*", service="user-service", methods=("GET", "POST"), auth_required=False),
        RouteConfig(path="/api/v1/orders/*", service="order-service"),
    )


@pytest.mark.spec("S-003", "S-007", "S-008", "S-009", "S-010")
def test_the_description_s_own_routes_are_refused_for_what_this_version_has_not() -> None:
    error = refused(
        lambda: routes_from_description(
            [
                {
                    "path": "/api/v1/users/*",
                    "service": "user-service",
                    "auth_required": True,
                    "rate_limit": "100/minute",
                },
                {"path": "/api/v1/orders/*", "service": "order-service", "cache_ttl": "long"},
                {"path": "/api/v1/payments/*", "service": "payment-service", "methods": "POST", "require_https": True},
            ]
        )
    )

    assert error.source == "configure_routes"
    assert error.problems == (
        "routes[1].cache_ttl: 'long' is not a number of seconds",
        "routes[2].methods: 'POST' is not a list - write ['POST']",
    )


def test_routes_that_are_no_list_or_stand_in_each_other_s_way_are_refused() -> None:
    same = [{"path": "/a", "service": "a"}, {"path": "/a", "service": "b"}]

    assert refused(lambda: routes_from_description(same)).problems == (
        (
            "routes[1]: '/a' with any method is already routes[0], under the same conditions; "
            "remove one, split methods or give one a priority"
        ),
    )
    assert refused(lambda: routes_from_description({"path": "/a"})).problems == ("routes: a table is not a list",)  # type: ignore[arg-type]  # the mistake


@pytest.mark.spec("S-011", "S-012", "S-013")
def test_services_of_the_description_are_taken() -> None:
    instances = ["http://user-service-1:8000", "http://user-service-2:8000"]

    services = services_from_description(
        {"user-service": {"instances": instances, "load_balancing": "least_connections"}, "b": "http://b"}
    )

    assert services == {
        "user-service": GatewayServiceConfig(
            instances=tuple(instances), load_balancing=LoadBalancingStrategy.LEAST_CONNECTIONS
        ),
        "b": GatewayServiceConfig(instances=("http://b",)),
    }


@pytest.mark.spec("S-014", "S-015")
def test_a_path_to_probe_and_its_interval_are_a_policy_of_the_service() -> None:
    services = services_from_description(
        {
            "user-service": {"instances": ["http://a:1"], "health_check": "/health", "health_check_interval": 10},
            "order-service": {"instances": ["http://b:1"], "health_check": "/health"},
            "other-service": {"instances": ["http://c:1"]},
        }
    )

    assert services["user-service"].policy().health_check == ProbePolicy(path="/health", interval=10.0)
    assert services["order-service"].policy().health_check == ProbePolicy(path="/health", interval=30.0)
    assert services["other-service"].policy().health_check is None


@pytest.mark.spec("S-130", "B24")
def test_a_breaker_s_timeout_is_the_limit_of_each_attempt() -> None:
    sections = breaker_policies(
        {
            "external-api": {"failure_threshold": 5, "recovery_timeout": 60, "half_open_max_calls": 3},
            "payment-gateway": {"failure_threshold": 3, "recovery_timeout": 120, "timeout": 10.0},
        }
    )

    assert sections == {
        "external-api": {
            "circuit_breaker": BreakerPolicy(failure_threshold=5, recovery_timeout=60, half_open_max_calls=3)
        },
        "payment-gateway": {
            "circuit_breaker": BreakerPolicy(failure_threshold=3, recovery_timeout=120),
            "timeouts": {"attempt_timeout": 10.0},
        },
    }
    policy = with_section(ServicePolicy(timeouts=TimeoutPolicy(timeout=20)), **sections["payment-gateway"])
    assert policy.timeouts == TimeoutPolicy(timeout=20, attempt_timeout=10)
    assert policy.circuit_breaker == BreakerPolicy(failure_threshold=3, recovery_timeout=120)


@pytest.mark.spec("S-140", "B3")
def test_retries_of_the_description_are_taken() -> None:
    policies = retry_policies(
        {
            "user-service": {
                "max_attempts": 3,
                "backoff_strategy": "exponential",
                "base_delay": 1.0,
                "max_delay": 10.0,
                "jitter": True,
            },
            "notification-service": {"max_attempts": 5, "backoff_strategy": "linear", "base_delay": 0.5},
            "other-service": {"max_attempts": 2},
            "model-service": RetryPolicy(max_attempts=4),
        }
    )

    assert policies["user-service"] == RetryPolicy(max_attempts=3, base_delay=1, max_delay=10)
    assert policies["notification-service"] == RetryPolicy(
        max_attempts=5, backoff_strategy="linear", base_delay=0.5, max_delay=5
    )
    assert policies["other-service"] == RetryPolicy(max_attempts=2)
    assert policies["model-service"] == RetryPolicy(max_attempts=4)


@pytest.mark.spec("S-121")
def test_balancing_of_the_description_is_taken_with_enum_or_text() -> None:
    policies = balancing_policies(
        {
            "order-service": {
                "strategy": LoadBalancingStrategy.LEAST_RESPONSE_TIME,
                "health_check_required": True,
                "weights": {"order-service-2": 2.0},
            },
            "payment-service": {
                "strategy": "round_robin",
                "sticky_sessions": True,
                "session_affinity_header": "X-Customer",
            },
        }
    )

    assert policies == {
        "order-service": BalancingPolicy(
            strategy=LoadBalancingStrategy.LEAST_RESPONSE_TIME,
            weights={"order-service-2": 2.0},
            health_check_required=True,
        ),
        "payment-service": BalancingPolicy(sticky_sessions=True, session_affinity_header="X-Customer"),
    }


@pytest.mark.spec("S-121", "S-130", "S-140")
@pytest.mark.parametrize(
    ("read", "source", "given", "problems"),
    [
        (
            retry_policies,
            "configure_retry_policies",
            {
                "user-service": {"max_atempts": 3, "base_delay": "1s", "jitter": "x"},
                "b": {"base_delay": 2, "max_delay": 1, "backoff_strategy": "expo"},
                "c": 3,
            },
            (
                "user-service.base_delay: '1s' is not a number of seconds - write 1",
                "user-service.jitter: 'x' is not true or false",
                "user-service.max_atempts: unknown key - did you mean 'max_attempts'?",
                "b.backoff_strategy: 'expo' is not one of exponential, linear",
                "c: 3 is not a table of settings",
            ),
        ),
        (
            retry_policies,
            "configure_retry_policies",
            {"a": {"base_delay": 2, "max_delay": 1}},
            ("a: max_delay (1 s) is shorter than base_delay (2 s); raise it or lower base_delay",),
        ),
        (
            breaker_policies,
            "configure_circuit_breakers",
            {"a": {"failure_threshold": 0, "timeuot": 1}, "b c": {}},
            (
                "a.failure_threshold: 0 is too small: it must be at least 1",
                "a.timeuot: unknown key - did you mean 'timeout'?",
                "'b c': 'b c' is not a service name: letters, digits, '-', '_' and '.', a letter or digit at both ends",
            ),
        ),
        (
            balancing_policies,
            "configure_load_balancing",
            {
                "order-service": {
                    "strategy": "least_respons_time",
                    "health_check_required": "perhaps",
                    "weights": {"o": 0},
                },
                "payment-service": {"sticky_sessions": "maybe", "session_affinity_header": "X User"},
            },
            (
                (
                    "order-service.strategy: 'least_respons_time' is not one of round_robin, random, "
                    "least_connections, least_response_time, consistent_hash - did you mean 'least_response_time'?"
                ),
                "order-service.weights.o: 0 is too small: it must be more than 0",
                "order-service.health_check_required: 'perhaps' is not true or false",
                "payment-service.sticky_sessions: 'maybe' is not true or false",
                "payment-service.session_affinity_header: 'X User' is not a token (RFC 9110 section 5.6.2)",
            ),
        ),
        (balancing_policies, "configure_load_balancing", [], ("a list is not a table of settings",)),
    ],
)
def test_problems_have_the_path_below_the_call_that_was_made(
    read: Callable[[object], object], source: str, given: object, problems: tuple[str, ...]
) -> None:
    error = refused(lambda: read(given))

    assert error.source == source
    assert error.problems == problems


CONFIG_MAP = """
service_mesh:
  discovery:
    backend: local
    namespace: shop
  security:
    enable_mtls: false
    auto_cert_renewal: false
  load_balancing:
    default_strategy: least_connections
  circuit_breaker:
    default_failure_threshold: 7
    default_recovery_timeout: 90
"""


@pytest.mark.spec("S-340", "S-341", "S-342", "S-343")
def test_the_description_s_config_map_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG_MAP)

    config = load_mesh_config(file=file, env={})

    assert (config.namespace, config.discovery.backend) == ("shop", "local")
    assert config.defaults.load_balancing.strategy is LoadBalancingStrategy.LEAST_CONNECTIONS
    assert config.defaults.circuit_breaker == BreakerPolicy(failure_threshold=7, recovery_timeout=90)
    assert config.enable_mtls is None


@pytest.mark.spec("S-342", "S-343")
def test_its_defaults_are_ours() -> None:
    assert ServicePolicy().load_balancing.strategy == "round_robin"
    assert ServicePolicy().circuit_breaker == BreakerPolicy(failure_threshold=5, recovery_timeout=60)


def test_our_own_keys_lie_over_the_config_map(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{CONFIG_MAP}\nnamespace: mine\ndefaults:\n  circuit_breaker:\n    failure_threshold: 2\n")

    config = load_mesh_config(file=file, env={})

    assert config.namespace == "mine"
    assert config.defaults.circuit_breaker == BreakerPolicy(failure_threshold=2, recovery_timeout=90)


def test_our_own_keys_beside_the_config_map_keep_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("service_mesh: {}\ndefaults:\n  timeouts:\n    timeout: soon\n")

    assert mesh_problems(file=file) == ["defaults.timeouts.timeout (line 4): 'soon' is not a number of seconds"]


def test_a_gateway_s_file_may_hold_the_config_map_of_its_mesh(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{CONFIG_MAP}\nport: 9000\nroutes: []\n")
    env = {"MESH_CONFIG_FILE": str(file)}

    assert load_gateway_config(file=file, env={}).port == 9000
    assert load_mesh_config(env=env).namespace == "shop"


@pytest.mark.spec("S-340", "S-341")
def test_problems_of_the_config_map_have_its_own_paths_and_lines(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        textwrap.dedent("""\
            service_mesh:
              discovery: {backend: kubernets, namespce: x}
              security:
                enable_mtls: true
              load_balancing: round_robin
              circuit_breaker:
                default_failure_treshold: 5
                default_recovery_timeout: soon
              retries: {}
            """)
    )

    assert mesh_problems(file=file) == [
        "service_mesh.retries (line 9): unknown key",
        "service_mesh.discovery.namespce (line 2): unknown key - did you mean 'namespace'?",
        "service_mesh.load_balancing (line 5): is not a table of settings",
        (
            "service_mesh.circuit_breaker.default_failure_treshold (line 7): "
            "unknown key - did you mean 'default_failure_threshold'?"
        ),
        (
            "discovery.backend (service_mesh.discovery.backend, line 2): 'kubernets' is none of local, static, memory, "
            "consul, etcd, kubernetes, dns - did you mean 'kubernetes'?"
        ),
        (
            "defaults.circuit_breaker.recovery_timeout (service_mesh.circuit_breaker.default_recovery_timeout, line 8)"
            ": 'soon' is not a number of seconds"
        ),
        "enable_mtls (service_mesh.security.enable_mtls, line 4): mutual TLS is not part of this version (0.1)",
    ]


def test_a_config_map_that_is_no_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"service_mesh": "on"}')

    assert mesh_problems(file=file) == ["service_mesh: is not a table of settings"]


@pytest.mark.spec("S-330")
def test_get_protocol_config_has_exactly_the_description_s_defaults() -> None:
    assert get_protocol_config({}) == {
        "api_gateway": {"host": "0.0.0.0", "port": 8080, "enable_auth": True, "rate_limit": "1000/hour"},
        "service_mesh": {
            "service_name": None,
            "discovery_backend": "kubernetes",
            "enable_mtls": True,
            "namespace": "default",
        },
    }


@pytest.mark.spec("S-330", "S-320", "S-321", "S-322", "S-323", "S-324", "S-325", "S-326", "S-327")
def test_get_protocol_config_reads_the_description_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": "9000",
        "GATEWAY_AUTH_ENABLED": "False",
        "GATEWAY_RATE_LIMIT": "5/second",
        "SERVICE_NAME": "user-service",
        "DISCOVERY_BACKEND": "consul",
        "MTLS_ENABLED": "no",
        "SERVICE_NAMESPACE": "shop",
    }
    expected = {
        "api_gateway": {"host": "127.0.0.1", "port": 9000, "enable_auth": False, "rate_limit": "5/second"},
        "service_mesh": {
            "service_name": "user-service",
            "discovery_backend": "consul",
            "enable_mtls": False,
            "namespace": "shop",
        },
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert get_protocol_config(variables) == expected
    assert get_protocol_config() == expected


def test_get_protocol_config_names_a_port_that_is_none() -> None:
    assert str(refused(lambda: get_protocol_config({"GATEWAY_PORT": "http"}))) == (
        "GATEWAY_PORT: 'http' is not a port number"
    )
