"""Lines about wrong settings: exact texts, suggestions, and what is never shown."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from fastapi_mesh.config.fields import Frozen, Seconds, ServiceName, shown
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.problems import explain, path_of, suggestion
from tests.config.config_support import problems_of

pytestmark = pytest.mark.spec("X-53")

TIMEOUTS = "timeout, attempt_timeout, connect_timeout, idle_timeout, max_stream_duration"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"defaults": {"circuit_breaker": {"failure_treshold": 3}}},
            "defaults.circuit_breaker.failure_treshold: unknown key - did you mean 'failure_threshold'?",
        ),
        (
            {"policies": {"user-service": {"load_balancing": {"strategy": "round-robin"}}}},
            (
                "policies.user-service.load_balancing.strategy: 'round-robin' is not one of round_robin, "
                "random, least_connections, least_response_time, consistent_hash - did you mean 'round_robin'?"
            ),
        ),
        (
            {"defaults": {"timeouts": {"timeout": "abc"}}},
            "defaults.timeouts.timeout: 'abc' is not a number of seconds",
        ),
        (
            {"defaults": {"timeouts": {"timeout": "1.5 min"}}},
            "defaults.timeouts.timeout: '1.5 min' is not a number of seconds - write 90",
        ),
        ({"drain_delay": "500ms"}, "drain_delay: '500ms' is not a number of seconds - write 0.5"),
        ({"drain_delay": True}, "drain_delay: true is not a number of seconds"),
        ({"drain_delay": float("nan")}, "drain_delay: nan is not a finite number"),
        ({"drain_delay": -1}, "drain_delay: -1 is too small: it must be at least 0"),
        ({"timeout": 3}, "timeout: unknown key - did you mean 'defaults.timeouts.timeout'?"),
        (
            {"policies": {"x": {"max_attempts": 3}}},
            "policies.x.max_attempts: unknown key - did you mean 'retry.max_attempts'?",
        ),
        ({"defaults": {"timeouts": {"zzz": 1}}}, f"defaults.timeouts.zzz: unknown key; known here: {TIMEOUTS}"),
        ({"port": "eighty"}, "port: 'eighty' is not a port number"),
        ({"port": 0}, "port: 0 is too small: it must be at least 1"),
        ({"port": 65536}, "port: 65536 is too large: it must be at most 65535"),
        ({"port": True}, "port: true is not a port number"),
        ({"enabled": "perhaps"}, "enabled: 'perhaps' is not true or false"),
        ({"policies": []}, "policies: a list is not a table of settings"),
        ({"discovery": "local"}, "discovery: 'local' is not a table of settings"),
        ({"service_version": 1.0}, "service_version: 1.0 is not a text"),
        ({"service_version": {"password": "x"}}, "service_version: a table is not a text"),
        ({"service_version": object()}, "service_version: a value of type object is not a text"),
        ({"services": {"x": 5}}, "services.x: 5 is not a URL or a list of URLs"),
        ({"services": {"x": ["a", "a"]}}, "services.x: 'http://a' is listed twice"),
        (
            {"service_name": "user service"},
            (
                "service_name: 'user service' is not a service name: letters, digits, '-', '_' and '.', "
                "a letter or digit at both ends"
            ),
        ),
        (
            {"policies": {"user service": {}}},
            (
                "policies.'user service': 'user service' is not a service name: letters, digits, '-', '_' and '.', "
                "a letter or digit at both ends"
            ),
        ),
        (
            {"metrics_path": "metrics"},
            "metrics_path: 'metrics' is not a path: it starts with '/' and has no space, '?' or '#' in it",
        ),
        (
            {"address": "10.0.0.1:80"},
            "address: '10.0.0.1:80' is not a host name or IP address; a port is a setting of its own",
        ),
        (
            {"address": "0.0.0.0"},
            "address: '0.0.0.0' is where a server listens; name the address that others can reach",
        ),
        ({"port": 2**70}, f"port: {2**70} is too large: it must be at most 65535"),
        ({"port": "9" * 5000}, f"port: '{'9' * 57}...' is not a port number"),
        ({"discovery": {"path": 5}}, "discovery.path: 5 is not a path"),
        ({"address": "[::1]"}, "address: '[::1]' has brackets, which only a URL needs - did you mean '::1'?"),
        (
            {"start_policy": "lazy"},
            "start_policy: 'lazy' is not one of degraded, fail",
        ),
        (
            {"defaults": {"retry": {"retry_statuses": [502, 99, "x"]}}},
            "defaults.retry.retry_statuses[1]: 99 is too small: it must be at least 100",
        ),
        ({"defaults": {"bulkhead": {}}}, "defaults.bulkhead.max_concurrent: is missing"),
    ],
)
def test_a_problem_of_a_node_is_one_line_with_its_path(values: dict[str, object], line: str) -> None:
    assert line in problems_of(MeshConfig, **values)


def test_all_problems_are_told_at_once_each_once() -> None:
    lines = problems_of(
        MeshConfig,
        prot=1,
        service_name="",
        defaults={"retry": {"jitter": "x", "max_delay": "y"}, "timeouts": 3},
        policies={"a": {"outlier": {"base_ejection": 0}}, "b": None},
        services={"c d": "ftp://x"},
    )

    assert [line.partition(":")[0] for line in lines] == [
        "service_name",
        "services.'c d'",
        "services.'c d'[0]",
        "defaults.timeouts",
        "defaults.retry.max_delay",
        "defaults.retry.jitter",
        "policies.a.outlier.base_ejection",
        "policies.b",
        "prot",
    ]


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("routes[0].service", ("routes", 0, "service")),
        ("services.'a.b'[1]", ("services", "a.b", 1)),
        ("", ()),
        ("[3]", (3,)),
    ],
)
def test_a_path_is_written_like_this(path: str, steps: tuple[str | int, ...]) -> None:
    assert path_of(steps) == path


def test_a_suggestion_sees_through_case_and_dashes_and_keeps_quiet_about_strangers() -> None:
    assert suggestion("ROUND-ROBIN", ["least_connections", "round_robin"]) == " - did you mean 'round_robin'?"
    assert suggestion("banana", ["least_connections", "round_robin"]) == ""


class _Secrets(Frozen):
    """Settings with secrets in them, as later versions will have."""

    jwt_secret: Seconds = 1.0
    api_key: Literal["a", "b"] = "a"
    password: str = ""
    tokens: dict[str, int] = Field(default={})
    signing_key: ServiceName = "a"
    plain: int = 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jwt_secret", "hunter2"),
        ("jwt_secret", ["hunter2"]),
        ("jwt_secret", float("-inf")),
        ("jwt_secret", -3.25),
        ("api_key", "hunter2"),
        ("password", 3.25),
        ("password", {"x": "hunter2"}),
        ("tokens", "hunter2"),
        ("tokens", {"x": "hunter2"}),
        ("signing_key", "hunter2 !"),
        ("signing_key", b"hunter2 !"),
    ],
)
def test_a_value_under_a_key_that_looks_secret_is_never_shown(name: str, value: object) -> None:
    lines = problems_of(_Secrets, **{name: value})

    assert lines
    assert not [line for line in lines if "hunter2" in line or "3.25" in line or "inf" in line]


def test_a_secret_says_what_it_should_be_and_not_what_it_is() -> None:
    assert problems_of(_Secrets, jwt_secret="30s", plain="30s", signing_key="a b") == [
        "jwt_secret: the value (not shown) is not a number of seconds",
        "signing_key: is not valid (its value isn't shown)",
        "plain: '30s' is not a whole number",
    ]


def test_an_unknown_key_shows_no_value() -> None:
    lines = problems_of(MeshConfig, consul_tokn="s3cret", nmae="s3cret")

    assert len(lines) == 2
    assert "s3cret" not in "".join(lines)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host:1",
        "me:hunter2@host",
        "http://me:hunter/2@host",
        "http://me:hun ter2@host",
        "http://me:h@hunter2@host",
        "http://host/?token=hunter2",
    ],
)
@pytest.mark.parametrize("model", [MeshConfig, GatewayConfig])
def test_credentials_in_an_address_are_refused_and_not_shown(model: type[Frozen], url: str) -> None:
    (line,) = problems_of(model, services={"x": url})

    assert "is not an address like 'http://127.0.0.1:8000': " in line
    assert "hun" not in line


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 100) == repr("x" * 57 + "...")


def test_paths_below_any_type_are_explained() -> None:
    nodes = dict[str, MeshConfig]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(nodes).validate_python({"a": {"drain_dealy": 1}})

    assert explain(caught.value, nodes, prefix=("nodes",)) == [
        "nodes.a.drain_dealy: unknown key - did you mean 'drain_delay'?"
    ]
