"""Variables: names to places, texts to values, and names that mean nothing."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.policies import RetryPolicy
from tests.config.config_support import gateway_problems, mesh_problems

pytestmark = pytest.mark.spec("B32", "X-53")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("MESH_DISCOVRY__BACKEND", "unknown variable - did you mean 'MESH_DISCOVERY__BACKEND'?"),
        ("MESH_DISCOVERY__BACKND", "unknown variable - did you mean 'MESH_DISCOVERY__BACKEND'?"),
        (
            "MESH_POLICIES__USER_SERVICE__TIMOUTS__TIMEOUT",
            "unknown variable - did you mean 'MESH_POLICIES__USER_SERVICE__TIMEOUTS__TIMEOUT'?",
        ),
        ("MESH_GATWAY__PORT", "unknown variable - did you mean 'MESH_GATEWAY__PORT'?"),
        ("MESH_GATEWAY", "unknown variable; a gateway's begin with MESH_GATEWAY__"),
        ("MESH_BANANA", "unknown variable"),
        ("MESH_", "unknown variable"),
        ("MESH_PORT__X", "unknown variable"),
        ("MESH_POLICIES__", "unknown variable"),
        ("MESH_SERVICES__A__B", "unknown variable"),
    ],
)
def test_a_name_that_means_nothing_is_named_with_the_likeliest_other(name: str, line: str) -> None:
    assert mesh_problems({name: "1"}, strict=True) == [f"{name}: {line}"]


def test_a_gateway_looks_at_its_own_names_only() -> None:
    assert gateway_problems({"MESH_GATEWAY__RUOTES": "[]", "MESH_PRT": "1"}, strict=True) == [
        "MESH_GATEWAY__RUOTES: unknown variable - did you mean 'MESH_GATEWAY__ROUTES'?"
    ]


def test_an_option_of_a_later_version_is_a_known_name_and_refused() -> None:
    assert mesh_problems({"MESH_ENABLE_MTLS": "true"}, strict=True) == [
        "enable_mtls (MESH_ENABLE_MTLS): mutual TLS is not part of this version (0.1)",
    ]


def test_nested_names_lead_to_nested_settings() -> None:
    config = load_mesh_config(
        env={
            "MESH_DISCOVERY__BACKEND": "local",
            "MESH_DISCOVERY__PATH": "/tmp/registry.db",
            "MESH_DEFAULTS__TIMEOUTS__TIMEOUT": "12.5",
            "MESH_DEFAULTS__RETRY__RETRY_STATUSES": "502,503",
            "MESH_ENABLE_METRICS": "off",
        }
    )

    assert str(config.discovery.path) == "/tmp/registry.db"
    assert config.defaults.timeouts.timeout == 12.5
    assert config.defaults.retry == RetryPolicy(retry_statuses=frozenset({502, 503}))
    assert not config.enable_metrics


def test_a_service_in_a_name_is_in_upper_case_with_underscores() -> None:
    config = load_mesh_config(env={"MESH_POLICIES__USER_SERVICE__TIMEOUTS__TIMEOUT": "5"})

    assert config.policy_of("user-service").timeouts.timeout == 5


def test_a_service_that_another_source_names_is_recognised_as_it_is_written_there() -> None:
    config = load_mesh_config(
        env={"MESH_POLICIES__USER_SERVICE_V2__TIMEOUTS__TIMEOUT": "5"},
        policies={"user": {}, "User_service.v2": {"retry": None}},
    )

    assert set(config.policies) == {"user", "User_service.v2"}
    assert config.policy_of("User_service.v2").timeouts.timeout == 5


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://a:1", ("http://a:1",)),
        ("http://a:1, b:2", ("http://a:1", "http://b:2")),
        ('["http://a:1"]', ("http://a:1",)),
    ],
)
def test_a_list_is_json_or_has_commas(text: str, urls: tuple[str, ...]) -> None:
    assert load_mesh_config(env={"MESH_SERVICES__A": text}).services == {"a": urls}
    assert load_gateway_config(env={"MESH_GATEWAY__SERVICES__A": text}).services["a"].instances == urls


def test_a_gateway_s_service_joins_its_urls_and_its_settings() -> None:
    service = load_gateway_config(
        env={"MESH_GATEWAY__SERVICES__A": "http://a", "MESH_GATEWAY__SERVICES__A__LOAD_BALANCING": "least_connections"}
    ).services["a"]

    assert service.instances == ("http://a",)
    assert service.load_balancing == "least_connections"
    table = '{"instances": ["http://b"], "retry": null}'
    assert load_gateway_config(env={"MESH_GATEWAY__SERVICES__A": table}).services["a"].retry is None


def test_single_values_lie_over_a_table_in_json() -> None:
    config = load_mesh_config(
        env={
            "MESH_DEFAULTS": '{"retry": {"max_attempts": 7, "jitter": false}}',
            "MESH_DEFAULTS__RETRY__MAX_ATTEMPTS": "2",
        }
    )

    assert config.defaults.retry == RetryPolicy(max_attempts=2, jitter=False)


@pytest.mark.parametrize("text", ["null", "none", "NONE"])
def test_null_switches_a_section_or_a_limit_off(text: str) -> None:
    config = load_mesh_config(env={"MESH_DEFAULTS__RETRY": text, "MESH_DEFAULTS__TIMEOUTS__TIMEOUT": text})

    assert config.defaults.retry is None
    assert config.defaults.timeouts.timeout is None


def test_a_text_may_be_called_none() -> None:
    assert load_mesh_config(env={"MESH_SERVICE_NAME": "none"}).service_name == "none"


@pytest.mark.parametrize("name", ["MESH_PORT", "PORT", "SERVICE_NAME", "MESH_DEFAULTS__RETRY", "MESH_CONFIG_FILE"])
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert load_mesh_config(env={name: ""}) == load_mesh_config(env={})


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"MESH_DEFAULTS": '{"retry"'},
            "MESH_DEFAULTS: is not valid JSON: Expecting ':' delimiter: line 1 column 9 (char 8)",
        ),
        ({"MESH_DISCOVERY": "local"}, "discovery (MESH_DISCOVERY): 'local' is not a table of settings"),
        (
            {"MESH_DISCOVERY": "local", "MESH_DISCOVERY__LEASE": "3"},
            "discovery (MESH_DISCOVERY): 'local' is not a table of settings",
        ),
        ({"MESH_POLICIES__A": "[1]"}, "policies.a (MESH_POLICIES__A): a list is not a table of settings"),
        (
            {"MESH_DEFAULTS": '{"retry": {"jitter": "x"}}'},
            "defaults.retry.jitter (MESH_DEFAULTS): 'x' is not true or false",
        ),
    ],
)
def test_a_value_that_is_no_use_is_named_with_its_variable(env: dict[str, str], line: str) -> None:
    assert mesh_problems(env) == [line]


def test_what_kubernetes_writes_for_services_of_these_names_is_not_ours() -> None:
    links = {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "MESH_PORT": "tcp://10.96.1.1:80",
        "MESH_SERVICE_HOST": "10.96.1.1",
        "MESH_SERVICE_PORT": "80",
        "MESH_SERVICE_PORT_HTTP": "80",
        "MESH_PORT_80_TCP": "tcp://10.96.1.1:80",
        "MESH_PORT_80_TCP_PROTO": "tcp",
        "MESH_SHOP_SERVICE_HOST": "10.96.1.2",
        "MESH_SHOP_PORT": "tcp://10.96.1.2:80",
        "GATEWAY_PORT": "tcp://10.96.1.3:8080",
        "PORT": "8000",
    }

    assert load_mesh_config(env=links, strict=True, services={"a": "http://a"}).port == 8000
    assert load_gateway_config(env=links, strict=True).port == 8080


def test_outside_of_kubernetes_such_a_name_is_a_mistake() -> None:
    assert mesh_problems({"MESH_PORT_80_TCP": "x"}, strict=True) == ["MESH_PORT_80_TCP: unknown variable"]
