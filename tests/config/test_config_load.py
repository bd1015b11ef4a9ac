"""Loading: which source wins, where each value came from, and everything wrong told in one go."""

from __future__ import annotations

import itertools
import json
import logging
import pathlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.config.gateway import GatewayConfig, GatewayServiceConfig, RouteConfig
from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.policies import LoadBalancingStrategy, RetryPolicy, ServicePolicy
from tests.config.config_support import gateway_problems, mesh_problems, refused

if TYPE_CHECKING:
    from pathlib import Path

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}

MESH_SOURCES = {"file": "from-file", "described": "from-described", "mesh": "from-mesh", "code": "from-code"}
"""From the weakest to the strongest."""


@pytest.mark.spec("X-53", "B32")
@pytest.mark.parametrize(
    "given_sources",
    [chosen for count in range(5) for chosen in itertools.combinations(MESH_SOURCES, count)],
    ids="-".join,
)
def test_code_wins_over_mesh_variables_over_described_ones_over_the_file(
    given_sources: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "mesh.json"
    file.write_text(json.dumps({"namespace": MESH_SOURCES["file"]} if "file" in given_sources else {}))
    env = {}
    if "described" in given_sources:
        env["SERVICE_NAMESPACE"] = MESH_SOURCES["described"]
    if "mesh" in given_sources:
        env["MESH_NAMESPACE"] = MESH_SOURCES["mesh"]
    code = MESH_SOURCES["code"] if "code" in given_sources else None

    config = load_mesh_config(file=file, env=env, namespace=code)

    assert config.namespace == (MESH_SOURCES[given_sources[-1]] if given_sources else "default")


@pytest.mark.spec("X-53", "S-320")
@pytest.mark.parametrize(
    "given_sources",
    [chosen for count in range(5) for chosen in itertools.combinations(("file", "described", "mesh", "code"), count)],
    ids="-".join,
)
def test_the_same_order_holds_for_a_gateway(given_sources: tuple[str, ...], tmp_path: Path) -> None:
    ports = {"file": 1001, "described": 1002, "mesh": 1003, "code": 1004}
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"port": ports["file"]} if "file" in given_sources else {}))
    env = {}
    if "described" in given_sources:
        env["GATEWAY_PORT"] = str(ports["described"])
    if "mesh" in given_sources:
        env["MESH_GATEWAY__PORT"] = str(ports["mesh"])

    config = load_gateway_config(file=file, env=env, port=ports["code"] if "code" in given_sources else None)

    assert config.port == (ports[given_sources[-1]] if given_sources else 8080)


def test_sources_are_joined_down_to_single_values(tmp_path: Path) -> None:
    file = tmp_path / "mesh.json"
    file.write_text(json.dumps({"defaults": {"retry": {"max_attempts": 5, "base_delay": 0.5}}, "services": {"a": "a"}}))

    config = load_mesh_config(
        file=file,
        env={"MESH_DEFAULTS__RETRY__BASE_DELAY": "0.25", "MESH_SERVICES": '{"b": "b:1"}'},
        defaults=ServicePolicy(retry=RetryPolicy(jitter=False)),
        services={"c": ["http://c"]},
    )

    assert config.defaults.retry == RetryPolicy(max_attempts=5, base_delay=0.25, jitter=False)
    assert config.services == {"a": ("http://a",), "b": ("http://b:1",), "c": ("http://c",)}


def test_settings_may_come_as_one_mapping() -> None:
    assert load_mesh_config({"service_name": "a", "port": 1}, env={}, port=2).port == 2
    assert load_gateway_config({"port": 1, "host": None}, env={}).port == 1


@pytest.mark.spec("S-102", "S-103", "B38")
def test_discovery_can_be_named_as_the_description_does(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"

    config = load_mesh_config(env={}, discovery_backend="local", discovery_config={"path": path, "lease": 30})

    assert (config.discovery.backend, config.discovery.path, config.discovery.lease) == ("local", path, 30)


def test_lists_of_backends_and_their_settings_make_a_chain() -> None:
    config = load_mesh_config(
        env={}, discovery_backend=["local", "memory", "static"], discovery_config=[{"lease": 30}, {"lease": 40}]
    )

    assert (config.discovery.backend, config.discovery.lease) == ("local", 30)
    assert [(each.backend, each.lease) for each in config.discovery.chain] == [("memory", 40), ("static", 15)]


@pytest.mark.spec("B39")
def test_outside_of_a_pod_the_backend_is_local() -> None:
    assert load_mesh_config(env={}).discovery.backend == "local"


@pytest.mark.spec("B39", "S-325")
def test_inside_a_pod_the_backend_is_kubernetes() -> None:
    assert load_mesh_config(env=POD).discovery.backend == "kubernetes"


@pytest.mark.spec("B39", "X-58")
@pytest.mark.parametrize(
    ("env", "code", "backend"),
    [
        ({"DISCOVERY_BACKEND": "local"}, {}, "local"),
        ({"MESH_DISCOVERY__BACKEND": "memory"}, {}, "memory"),
        ({}, {"discovery": {"backend": "local"}}, "local"),
        ({}, {"services": {"a": "http://a"}}, "static"),
        ({}, {"enable_service_discovery": False}, "static"),
        ({"SERVICE_MESH_ENABLED": "false"}, {}, "local"),
    ],
)
def test_inside_a_pod_a_named_backend_or_no_need_for_one_is_fine(
    env: dict[str, str], code: dict[str, object], backend: str
) -> None:
    assert load_mesh_config(code, env={**POD, **env}).discovery.backend == backend


@pytest.mark.spec("X-53")
def test_everything_wrong_with_a_node_is_told_at_once_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('prot = 1\n[defaults.circuit_breaker]\nfailure_treshold = 3\n[services]\na = "ftp://a"\n')
    env = {
        "MESH_DEFAULTS__TIMEOUTS__TIMEOUT": "5s",
        "MESH_SERVICES": "{",
        "MTLS_ENABLED": "true",
        "DISCOVERY_BACKEND": "etdc",
        "MESH_DISCOVRY__PATH": "x",
    }

    error = refused(lambda: load_mesh_config(file=file, env=env, strict=True, start_policy="lazy"))

    assert sorted(error.problems) == sorted(
        [
            (
                "MESH_SERVICES: is not valid JSON: Expecting property name enclosed in double quotes: "
                "line 1 column 2 (char 1)"
            ),
            "MESH_DISCOVRY__PATH: unknown variable - did you mean 'MESH_DISCOVERY__PATH'?",
            "prot (line 1): unknown key - did you mean 'port'?",
            "defaults.circuit_breaker.failure_treshold (line 3): unknown key - did you mean 'failure_threshold'?",
            (
                "services.a[0] (line 5): 'ftp://a' is not an address like 'http://127.0.0.1:8000': "
                "its scheme is not one of http, https, h2, h2c"
            ),
            "defaults.timeouts.timeout (MESH_DEFAULTS__TIMEOUTS__TIMEOUT): '5s' is not a number of seconds - write 5",
            (
                "discovery.backend (DISCOVERY_BACKEND): 'etdc' is none of local, static, memory, consul, etcd, "
                "kubernetes, dns - did you mean 'etcd'?"
            ),
            "enable_mtls (MTLS_ENABLED): mutual TLS is not part of this version (0.1)",
            "start_policy: 'lazy' is not one of degraded, fail",
        ]
    )
    assert str(error).startswith(f"{file}: 9 problems\n  ")


@pytest.mark.spec("X-53")
def test_everything_wrong_with_a_gateway_is_told_at_once() -> None:
    problems = gateway_problems(
        discoverable=False,
        services={"user-service": {"instances": "http://a", "load_balancng": "x"}},
        routes=[{"path": "/u/*", "service": "usr-service"}, {"path": "/o/*", "service": "user-service", "methods": 5}],
        upstream_timeout=31,
        max_retries="three",
    )

    assert sorted(problems) == [
        "max_retries: 'three' is not a whole number",
        "routes[0].service: 'usr-service' is not a known service - did you mean 'user-service'?",
        "routes[1].methods: 5 is not a list",
        "services.user-service.load_balancng: unknown key - did you mean 'load_balancing'?",
        (
            "upstream_timeout: upstream_timeout (31 s) is longer than request_timeout (30 s), so it could never end an "
            "attempt; lower upstream_timeout or raise request_timeout"
        ),
    ]


def test_a_route_to_an_unknown_service_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[routes]]\npath = "/a"\nservice = "b"\n')

    load_gateway_config(file=file, env={})
    load_gateway_config(file=file, env={}, discoverable=False, known_services=["b"])
    assert gateway_problems(file=file, discoverable=False) == ["routes[0].service (line 3): 'b' is not a known service"]


def test_a_wrong_value_is_told_with_the_source_that_won(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('port = "x"\ndrain_delay = "x"\n')

    assert mesh_problems({"PORT": "y", "MESH_PORT": "z"}, file=file) == [
        "port (MESH_PORT): 'z' is not a port number",
        "drain_delay (line 2): 'x' is not a number of seconds",
    ]
    assert mesh_problems({"MESH_PORT": "z"}, port="w") == ["port: 'w' is not a port number"]


def test_problems_without_a_file_have_no_source() -> None:
    error = refused(lambda: load_mesh_config(env={}, port="x"))

    assert str(error) == "configuration: 1 problem\n  port: 'x' is not a port number"
    assert error.source is None


@pytest.mark.spec("S-324", "S-325", "S-327", "B37")
def test_the_description_s_variables_are_read() -> None:
    env = {"SERVICE_NAME": "user-service", "SERVICE_NAMESPACE": "prod", "DISCOVERY_BACKEND": "memory", "PORT": "8000"}

    config = load_mesh_config(env=env)

    assert (config.service_name, config.namespace) == ("user-service", "prod")
    assert (config.discovery.backend, config.port) == ("memory", 8000)
    assert load_mesh_config(env={**env, "MESH_PORT": "9"}).port == 9


@pytest.mark.spec("S-326", "A14")
@pytest.mark.parametrize("off", ["false", "0", "no", "off", ""])
def test_mtls_enabled_is_refused_unless_it_is_off(off: str) -> None:
    assert load_mesh_config(env={"MTLS_ENABLED": off}).enable_mtls is None
    assert mesh_problems({"MTLS_ENABLED": "true"}) == [
        "enable_mtls (MTLS_ENABLED): mutual TLS is not part of this version (0.1)"
    ]


@pytest.mark.spec("S-328", "X-58")
@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        *((text, True) for text in ("true", "1", "yes", "on", "TRUE", "")),
        *((text, False) for text in ("false", "0", "no", "off", "False")),
    ],
)
def test_service_mesh_enabled_takes_the_usual_words(text: str, enabled: bool) -> None:
    assert load_mesh_config(env={"SERVICE_MESH_ENABLED": text}).enabled is enabled


@pytest.mark.spec("S-328")
def test_service_mesh_enabled_takes_no_other_word() -> None:
    assert mesh_problems({"SERVICE_MESH_ENABLED": "disabled"}) == [
        "enabled (SERVICE_MESH_ENABLED): 'disabled' is not true or false"
    ]


@pytest.mark.spec("S-320", "S-321", "S-323", "B44")
def test_the_description_s_gateway_variables_are_read_and_its_rate_limit_is_checked() -> None:
    config = load_gateway_config(env={"GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": "9000"})

    assert (config.host, config.port) == ("127.0.0.1", 9000)
    assert config.rate_limit is None
    limited = load_gateway_config(env={"GATEWAY_RATE_LIMIT": "1000/hour"}).rate_limit
    assert limited is not None
    assert limited.limit == "1000/hour"
    assert gateway_problems({"GATEWAY_RATE_LIMIT": "1000"}) == [
        (
            "rate_limit (GATEWAY_RATE_LIMIT): '1000' is not a rate limit - write it as '100/minute', or several as "
            "'10/second;1000/hour'"
        )
    ]


@pytest.mark.spec("S-322", "B43")
def test_gateway_auth_enabled_true_adds_nothing_and_false_switches_authentication_off() -> None:
    assert load_gateway_config(env={"GATEWAY_AUTH_ENABLED": "true"}).auth == load_gateway_config(env={}).auth
    assert load_gateway_config(env={"GATEWAY_AUTH_ENABLED": "false"}).auth.enabled is False
    assert gateway_problems({"GATEWAY_AUTH_ENABLED": "never"}) == [
        "auth.enabled (GATEWAY_AUTH_ENABLED): 'never' is not true or false"
    ]


def test_unknown_variables_are_logged_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastapi_mesh.config"):
        load_mesh_config(env={"MESH_PRT": "1", "MESH_GATEWAY__PRT": "1", "OTHER": "x"})
        load_gateway_config(env={"MESH_PRT": "1", "MESH_GATEWAY__PRT": "1"})

    assert caplog.messages == [
        "MESH_PRT: unknown variable - did you mean 'MESH_PORT'?",
        "MESH_GATEWAY__PRT: unknown variable - did you mean 'MESH_GATEWAY__PORT'?",
    ]


BOTH = {"service_name": "a", "gateway": {"port": 1}}
GATEWAY_ONLY = {"port": 1, "routes": [{"path": "/a", "service": "a"}]}
NODE_ONLY = {"service_name": "a"}


def test_one_file_can_hold_a_node_and_a_gateway(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    file.write_text(json.dumps(BOTH))

    assert load_mesh_config(file=file, env={}).service_name == "a"
    assert load_gateway_config(file=file, env={}) == GatewayConfig(port=1)


def test_a_file_that_the_environment_names_is_read_by_whom_it_concerns(tmp_path: Path) -> None:
    named = {}
    for name, data in (("both", BOTH), ("gateway", GATEWAY_ONLY), ("node", NODE_ONLY)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        named[name] = {"MESH_CONFIG_FILE": str(tmp_path / f"{name}.json")}

    assert load_mesh_config(env=named["both"]).service_name == "a"
    assert load_gateway_config(env=named["both"]).port == 1
    assert load_mesh_config(env=named["gateway"]) == MeshConfig()
    assert load_gateway_config(env=named["gateway"]).port == 1
    assert load_mesh_config(env=named["node"]).service_name == "a"
    assert load_gateway_config(env=named["node"]) == GatewayConfig()


def test_a_file_that_code_names_has_to_concern_who_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(GATEWAY_ONLY))
    (line,) = mesh_problems(file=file)
    assert line.startswith("routes: unknown key; known here: ")

    file.write_text(json.dumps({"gateway": 3}))
    assert gateway_problems(file=file) == ["gateway: is not a table of settings"]


def test_a_file_named_in_code_is_read_instead_of_the_environment_s(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"service_name": name}))

    config = load_mesh_config(file=tmp_path / "a.json", env={"MESH_CONFIG_FILE": str(tmp_path / "b.json")})

    assert config.service_name == "a"


def test_plain_urls_of_one_source_join_with_a_table_of_another(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"services": {"a": {"load_balancing": "least_connections"}, "b": "http://old"}}))

    config = load_gateway_config(file=file, env={}, services={"a": ["http://a:1"], "b": "http://new"})

    assert config.services["a"] == GatewayServiceConfig(
        instances=("http://a:1",), load_balancing=LoadBalancingStrategy.LEAST_CONNECTIONS
    )
    assert config.services["b"].instances == ("http://new",)


def test_models_are_taken_as_what_was_set_in_them() -> None:
    config = load_gateway_config(
        env={},
        routes=[RouteConfig(path="/a", service="a")],
        services={"a": GatewayServiceConfig(instances=("http://a",))},
    )

    assert config.routes == (RouteConfig(path="/a", service="a"),)
    assert config.policy_of("a").model_fields_set == {"timeouts", "retry"}


# What is dumped loads again.

names = st.from_regex(r"[a-z][a-z0-9-]{0,6}[a-z0-9]", fullmatch=True)
seconds = st.floats(0.001, 1e6)
statuses = st.frozensets(st.integers(100, 599), max_size=3)
timeouts = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.none() | st.floats(30, 1e6),
        "attempt_timeout": st.floats(0.1, 25),
        "idle_timeout": seconds,
    },
)
retries = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.integers(1, 20),
        "backoff_strategy": st.sampled_from(["exponential", "linear"]),
        "base_delay": st.floats(0, 1),
        "max_delay": st.floats(1, 60),
        "jitter": st.booleans(),
        "retry_statuses": statuses.map(sorted),
    },
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "timeouts": timeouts,
        "retry": st.none() | retries,
        "circuit_breaker": st.none() | st.fixed_dictionaries({}, optional={"failure_threshold": st.integers(1, 99)}),
        "bulkhead": st.none() | st.fixed_dictionaries({"max_concurrent": st.integers(1, 99)}),
        "load_balancing": st.fixed_dictionaries(
            {"strategy": st.sampled_from(["round_robin", "least_connections"])},
            optional={"weights": st.dictionaries(names, st.floats(0.1, 9), max_size=2)},
        ),
    },
)
urls = st.builds("http://{}:{}".format, names, st.integers(1, 65535))
nodes = st.fixed_dictionaries(
    {},
    optional={
        "service_name": names,
        "port": st.integers(1, 65535),
        "services": st.dictionaries(names, urls | st.lists(urls, unique=True, max_size=3), max_size=3),
        "defaults": policies,
        "policies": st.dictionaries(names, policies, max_size=3),
        "discovery": st.fixed_dictionaries({}, optional={"backend": st.sampled_from(["local", "static", "memory"])}),
        "start_policy": st.sampled_from(["degraded", "fail"]),
        "enabled": st.booleans(),
    },
)


@given(nodes)
def test_a_node_s_settings_survive_json_and_back(settings: dict[str, object]) -> None:
    config = load_mesh_config(settings, env={})

    whole = json.loads(config.model_dump_json())
    partial = json.loads(config.model_dump_json(exclude_unset=True))

    assert load_mesh_config(whole, env={}) == config
    assert load_mesh_config(partial, env={}) == config
    assert load_mesh_config(partial, env={}).model_dump(exclude_unset=True) == config.model_dump(exclude_unset=True)


@given(nodes)
def test_a_node_s_settings_are_the_same_from_the_environment(settings: dict[str, object]) -> None:
    env = {
        f"MESH_{key.upper()}": json.dumps(value) if isinstance(value, (dict, list)) else str(value)
        for key, value in settings.items()
    }

    assert load_mesh_config(env=env) == load_mesh_config(settings, env={})


@pytest.mark.spec("X-53")
def test_what_a_lower_source_says_for_another_backend_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[discovery]\nbackend = "consul"\nhost = "consul.example"\nlease = 20\n')
    env = {"MESH_DISCOVERY__PATH": "/var/registry.db", "MESH_DISCOVERY__LEASE": "30"}

    code = load_mesh_config(env=env, discovery_backend="static").discovery
    variables = load_mesh_config(env={**env, "DISCOVERY_BACKEND": "local"}, file=file).discovery

    assert (code.backend, code.path) == ("static", None)
    assert (variables.backend, variables.host, variables.lease, variables.path) == (
        "local",
        None,
        30,
        pathlib.Path("/var/registry.db"),
    )
    assert mesh_problems({"DISCOVERY_BACKEND": "static", "MESH_DISCOVERY__HOST": "x"}) == [
        "discovery.host (MESH_DISCOVERY__HOST): the backend 'static' does not have it; it has no settings of its own"
    ]
    (problem,) = mesh_problems(env, file=file)
    assert problem.startswith("discovery.path (MESH_DISCOVERY__PATH): the backend 'consul' does not have it; it has ")
    file.write_text('[discovery]\nbackend = "consul"\nhots = "consul.example"\n')
    assert mesh_problems({"DISCOVERY_BACKEND": "local"}, file=file) == [
        "discovery.hots (line 3): unknown key - did you mean 'host'?"
    ]
