"""Settings of active health checks: every way to write them, and what is refused."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.compat import balancing_policies
from fastapi_mesh.config.gateway import GatewayConfig, GatewayServiceConfig
from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.overlay import with_section
from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.config.probes import ProbePolicy
from tests.config.config_support import problems_of


@pytest.mark.spec("S-015", "X-03")
def test_the_defaults_are_those_of_the_description() -> None:
    policy = ProbePolicy(path="/health")

    assert (policy.interval, policy.limit, policy.fall, policy.rise) == (30.0, 5.0, 3, 1)
    assert ServicePolicy().health_check is None


@pytest.mark.spec("S-014")
@pytest.mark.parametrize(
    ("written", "policy"),
    [
        ("/health", ProbePolicy(path="/health")),
        ({"path": "/health", "fall": 2}, ProbePolicy(path="/health", fall=2)),
        (True, ProbePolicy()),
        ("true", ProbePolicy()),
        ({}, ProbePolicy()),
        (False, None),
        ("off", None),
        (None, None),
    ],
)
def test_a_probe_is_a_path_a_table_or_true_for_what_instances_registered(
    written: object, policy: ProbePolicy | None
) -> None:
    assert ServicePolicy.model_validate({"health_check": written}).health_check == policy
    assert GatewayServiceConfig.model_validate({"health_check": written}).policy().health_check == policy


@pytest.mark.spec("X-03")
def test_what_an_instance_registered_counts_where_the_service_has_no_path_and_only_if_it_is_one() -> None:
    assert ProbePolicy(path="/up").path_of("/health") == "/up"
    assert ProbePolicy().path_of("/health") == "/health"
    for registered in (None, "", "health", "http://10.0.0.1:8000/health", "/a b", "/a\r\nx: y", "/ä", "/health?all"):
        assert ProbePolicy().path_of(registered) is None, registered


@pytest.mark.spec("S-014", "S-015")
@pytest.mark.parametrize(
    ("service", "line"),
    [
        ({"health_check": "health"}, "health_check.path: 'health' is not a path: it starts with '/' and has no space"),
        ({"health_check": 5}, "health_check: 5 is not a path like '/health', true, or a table of settings"),
        (
            {"health_check": "/health", "health_check_interval": "30s"},
            "health_check_interval: '30s' is not a number of seconds - write 30",
        ),
        ({"health_check": {"interval": 0}}, "health_check.interval: 0 is too small: it must be more than 0"),
        ({"health_check": {"fall": 0}}, "health_check.fall: 0 is too small: it must be at least 1"),
        ({"health_check": {"pth": "/x"}}, "health_check.pth: unknown key - did you mean 'path'?"),
        (
            {"health_check": {"timeout": 10, "interval": 5}},
            "health_check: timeout (10 s) is longer than interval (5 s), so a probe would still run when the next",
        ),
        (
            {"health_check": {"timeout": 10}, "health_check_interval": 5},
            "health_check_interval: timeout (10 s) is longer than health_check_interval (5 s), so a probe",
        ),
        (
            {"health_check": {"path": "/x", "interval": 5}, "health_check_interval": 6},
            "health_check_interval: 6 s, but health_check.interval is 5 s; leave one of them out",
        ),
        ({"health_check_interval": 5}, "health_check_interval: there is no health_check whose interval it could be"),
        ({"health_check_interval": 5, "health_check": False}, "health_check_interval: there is no health_check"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(service: dict[str, object], line: str) -> None:
    (problem,) = problems_of(GatewayConfig, services={"users": service})

    assert problem.startswith(f"services.users.{line}")


def test_a_short_interval_shortens_the_time_to_answer() -> None:
    assert ProbePolicy(path="/health", interval=1.0).limit == 1.0
    service = GatewayServiceConfig.model_validate({"health_check": "/health", "health_check_interval": 2})
    probes = service.policy().health_check
    assert probes is not None
    assert (probes.interval, probes.limit) == (2.0, 2.0)


@pytest.mark.spec("S-014", "S-015")
def test_probes_are_settable_by_variables_and_in_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mesh.toml"
    file.write_text(
        '[policies.order-service.health_check]\npath = "/up"\ninterval = 5\n'
        '[gateway.services.user-service]\ninstances = ["http://a:1"]\nhealth_check = "/health"\n'
    )
    env = {
        "MESH_DEFAULTS__HEALTH_CHECK": "true",
        "MESH_DEFAULTS__HEALTH_CHECK__FALL": "5",
        "MESH_POLICIES__USER_SERVICE__HEALTH_CHECK": "/health",
        "MESH_POLICIES__USER_SERVICE__HEALTH_CHECK__INTERVAL": "10",
        "MESH_POLICIES__QUIET_SERVICE__HEALTH_CHECK": "off",
        "MESH_POLICIES__USER_SERVICE__LOAD_BALANCING__HEALTH_CHECK_REQUIRED": "true",
        "MESH_GATEWAY__SERVICES__USER_SERVICE__HEALTH_CHECK_INTERVAL": "7",
    }

    mesh = load_mesh_config(env=env, file=str(file))
    gateway = load_gateway_config(env=env, file=str(file))

    assert mesh.policy_of("any-service").health_check == ProbePolicy(fall=5)
    assert mesh.policy_of("user-service").health_check == ProbePolicy(path="/health", interval=10.0, fall=5)
    assert mesh.policy_of("user-service").load_balancing.health_check_required
    assert mesh.policy_of("order-service").health_check == ProbePolicy(path="/up", interval=5.0, fall=5)
    assert mesh.policy_of("quiet-service").health_check is None
    assert gateway.policy_of("user-service").health_check == ProbePolicy(path="/health", interval=7.0)


def test_a_policy_can_be_changed_and_switched_off_in_code() -> None:
    policy = with_section(ServicePolicy(), health_check={"path": "/health"})
    changed = with_section(policy, health_check={"interval": 3})

    assert changed.health_check == ProbePolicy(path="/health", interval=3.0)
    assert with_section(changed, health_check=None).health_check is None


@pytest.mark.spec("S-121", "B22")
def test_health_check_required_is_part_of_balancing() -> None:
    given = {"order-service": {"strategy": "round_robin", "health_check_required": True, "weights": {"o-1": 2.0}}}

    policy = balancing_policies(given)["order-service"]

    assert (policy.health_check_required, policy.weights) == (True, {"o-1": 2.0})
    service = GatewayServiceConfig.model_validate({"instances": "http://a:1", "health_check_required": True})
    assert service.policy().load_balancing.health_check_required
