"""A node's settings: defaults, what is refused in this version, and how policies lie over each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fastapi_mesh.config.fields import Frozen, InstanceUrls
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.overlay import merge, overlay, with_section
from fastapi_mesh.config.policies import (
    BalancingPolicy,
    BreakerPolicy,
    CallPolicy,
    LoadBalancingStrategy,
    OutlierPolicy,
    RetryPolicy,
    ServicePolicy,
    TimeoutPolicy,
)
from fastapi_mesh.discovery.urls import parse
from tests.config.config_support import problems_of, refused


@pytest.mark.spec("S-101", "B38")
def test_the_defaults_of_a_node() -> None:
    config = MeshConfig()

    assert (config.service_version, config.namespace, config.environment) == ("1.0.0", "default", "development")
    assert (config.discovery.backend, config.discovery.lease, config.discovery.heartbeat) == ("local", 15.0, 5.0)
    assert (config.drain_delay, config.start_policy) == (2.0, "degraded")
    assert (config.metrics_path, config.health_path) == ("/metrics", "/health")
    assert config.enabled
    assert config.enable_metrics
    assert config.enable_tracing
    assert config.enable_service_discovery


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        MeshConfig().port = 1


@pytest.mark.spec("S-102")
def test_a_mistyped_backend_gets_a_suggestion() -> None:
    assert problems_of(MeshConfig, discovery={"backend": "locl"}) == [
        (
            "discovery.backend: 'locl' is none of local, static, memory, consul, etcd, kubernetes, dns "
            "- did you mean 'local'?"
        )
    ]


@pytest.mark.spec("S-103", "S-104", "S-105", "S-106")
@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("enable_mtls", True, "mutual TLS is"),
        ("cert_path", "/etc/certs/service.crt", "mutual TLS is"),
        ("key_path", "/etc/certs/service.key", "mutual TLS is"),
        ("ca_path", "/etc/certs/ca.crt", "mutual TLS is"),
        ("auto_cert_renewal", True, "renewing certificates is"),
        ("cert_authority", "internal-ca", "issuing certificates is"),
        ("security_policies", {"allow_services": ["a"]}, "access rules between services are"),
    ],
)
def test_identity_is_refused_when_asked_for_and_fine_when_not(option: str, value: object, what: str) -> None:
    assert problems_of(MeshConfig, **{option: value}) == [f"{option}: {what} not part of this version (0.1)"]
    for off in (None, False, "", "false", 0, {}):
        assert getattr(MeshConfig.model_validate({option: off}), option) is None


@pytest.mark.spec("X-53")
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"host": "c.example"},
            "host: the backend 'local' does not have it; it has heartbeat, lease, path, poll_interval",
        ),
        (
            {"backend": "static", "port": 1},
            "port: the backend 'static' does not have it; it has no settings of its own",
        ),
        (
            {"chain": [{"backend": "memory", "path": "/x"}]},
            "chain[0].path: the backend 'memory' does not have it; it has heartbeat, lease",
        ),
    ],
    ids=["host", "static", "chain"],
)
def test_a_setting_that_the_backend_does_not_have_is_refused(settings: dict[str, object], line: str) -> None:
    assert problems_of(MeshConfig, discovery=settings) == [f"discovery.{line}"]


def test_a_heartbeat_must_be_shorter_than_the_lease_also_when_only_one_was_set() -> None:
    text = "so every instance would expire; lower heartbeat or raise lease"
    assert problems_of(MeshConfig, discovery={"lease": 4}) == [
        f"discovery.heartbeat: heartbeat (5 s) is not shorter than lease (4 s), {text}"
    ]
    assert problems_of(MeshConfig, discovery={"heartbeat": 15}) == [
        f"discovery.heartbeat: heartbeat (15 s) is not shorter than lease (15 s), {text}"
    ]
    assert MeshConfig.model_validate({"discovery": {"lease": 4, "heartbeat": 1}}).discovery.lease == 4


MISFIT = "so it could never end an attempt; lower attempt_timeout or raise timeout"


@pytest.mark.spec("B5")
@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"defaults": {"timeouts": {"timeout": 10, "attempt_timeout": 12.5}}},
            f"defaults.timeouts: attempt_timeout (12.5 s) is longer than timeout (10 s), {MISFIT}",
        ),
        (
            {"defaults": {"timeouts": {"attempt_timeout": 40}}},
            f"defaults.timeouts: attempt_timeout (40 s) is longer than timeout (30 s), {MISFIT}",
        ),
        (
            {"policies": {"x": {"timeouts": {"attempt_timeout": 40}}}},
            f"policies.x.timeouts: attempt_timeout (40 s) is longer than timeout (30 s), {MISFIT}",
        ),
        (
            {"defaults": {"timeouts": {"timeout": 5}}, "policies": {"x": {"timeouts": {"attempt_timeout": 6}}}},
            f"policies.x.timeouts: attempt_timeout (6 s) is longer than timeout (5 s), {MISFIT}",
        ),
        (
            {"policies": {"x": {"retry": {"base_delay": 2}}}},
            "policies.x.retry: max_delay (1 s) is shorter than base_delay (2 s); raise it or lower base_delay",
        ),
        (
            {"defaults": {"outlier": {"max_ejection": 10}}},
            (
                "defaults.outlier: max_ejection (10 s) is shorter than base_ejection (30 s); "
                "raise it or lower base_ejection"
            ),
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_both_numbers(values: dict[str, object], line: str) -> None:
    assert problems_of(MeshConfig, **values) == [line]


@pytest.mark.parametrize(
    "values",
    [
        {"defaults": {"timeouts": {"timeout": 10}}},
        {"defaults": {"timeouts": {"timeout": None, "attempt_timeout": 400}}},
        {"defaults": {"timeouts": {"attempt_timeout": 28}}, "policies": {"x": {"timeouts": {"timeout": 20}}}},
        {"defaults": {"timeouts": {"timeout": 60}}, "policies": {"x": {"timeouts": {"attempt_timeout": 50}}}},
        {"policies": {"x": {"retry": {"base_delay": 2, "max_delay": 4}}}},
    ],
)
def test_values_that_fit_once_they_lie_over_each_other_are_fine(values: dict[str, object]) -> None:
    MeshConfig.model_validate(values)


def test_a_shorter_timeout_clips_the_attempt_timeout_that_it_inherits() -> None:
    config = MeshConfig.model_validate(
        {"defaults": {"timeouts": {"attempt_timeout": 28}}, "policies": {"x": {"timeouts": {"timeout": 20}}}}
    )

    assert CallPolicy.compile(config.policy_of("x")).attempt_timeout == 20
    assert CallPolicy.compile(config.policy_of("y")).attempt_timeout == 28
    assert CallPolicy.compile(ServicePolicy(timeouts=TimeoutPolicy(timeout=3))).attempt_timeout == 3
    assert CallPolicy.compile(ServicePolicy(timeouts=TimeoutPolicy(attempt_timeout=None))).attempt_timeout is None
    assert CallPolicy.compile(ServicePolicy(timeouts=TimeoutPolicy(timeout=None))).attempt_timeout == 25


def test_a_policy_of_a_service_changes_single_values_of_the_defaults() -> None:
    config = MeshConfig.model_validate(
        {
            "defaults": {"retry": {"max_attempts": 5, "base_delay": 0.5}, "circuit_breaker": None},
            "policies": {"x": {"retry": {"base_delay": 0.1}, "bulkhead": {"max_concurrent": 3}}, "y": {"retry": None}},
        }
    )

    policy = config.policy_of("x")
    assert policy.retry == RetryPolicy(max_attempts=5, base_delay=0.1)
    assert policy.circuit_breaker is None
    assert policy.bulkhead is not None
    assert config.policy_of("y").retry is None
    assert config.policy_of("z") is config.defaults


def test_a_section_that_was_off_comes_back_with_its_defaults() -> None:
    base = ServicePolicy(retry=None)

    assert overlay(base, ServicePolicy(retry=RetryPolicy(max_attempts=2))).retry == RetryPolicy(max_attempts=2)


def test_what_was_not_set_stays_unset_so_that_policies_can_lie_on_further_ones() -> None:
    middle = overlay(ServicePolicy(), ServicePolicy(timeouts=TimeoutPolicy(timeout=5)))

    assert overlay(ServicePolicy(circuit_breaker=None), middle).circuit_breaker is None
    assert middle.model_dump(exclude_unset=True) == {"timeouts": {"timeout": 5.0}}


@pytest.mark.spec("S-130")
def test_with_section_replaces_a_model_and_changes_by_a_dict() -> None:
    policy = ServicePolicy(timeouts=TimeoutPolicy(timeout=20), circuit_breaker=BreakerPolicy(failure_threshold=9))

    changed = with_section(policy, timeouts={"attempt_timeout": 4.0}, circuit_breaker=BreakerPolicy(), retry=None)

    assert changed.timeouts == TimeoutPolicy(timeout=20, attempt_timeout=4)
    assert changed.circuit_breaker == BreakerPolicy()
    assert changed.retry is None
    assert policy.retry is not None


def test_with_section_refuses_what_does_not_fit() -> None:
    error = refused(lambda: with_section(ServicePolicy(), timeouts={"attempt_timeout": 31.0}))

    assert error.problems == (f"timeouts: attempt_timeout (31 s) is longer than timeout (30 s), {MISFIT}",)
    assert refused(lambda: with_section(ServicePolicy(), retri=None)).problems == (
        "retri: unknown key - did you mean 'retry'?",
    )


def test_merging_replaces_lists_and_values_and_joins_tables() -> None:
    assert merge({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [2]},
        "d": {"e": 1},
    }


@pytest.mark.spec("S-120")
@pytest.mark.parametrize("strategy", LoadBalancingStrategy)
def test_a_strategy_goes_by_its_name(strategy: LoadBalancingStrategy) -> None:
    assert BalancingPolicy.model_validate({"strategy": strategy.value}).strategy is strategy


def test_sticky_sessions_need_something_to_go_by() -> None:
    assert problems_of(BalancingPolicy, sticky_sessions=True, session_affinity_header=None) == [
        "sticky_sessions needs session_affinity_header or session_affinity_cookie"
    ]
    assert BalancingPolicy(sticky_sessions=True).session_affinity_header == "X-User-ID"


def test_a_zone_is_a_name() -> None:
    assert problems_of(MeshConfig, zone="eu 1") == [
        "zone: 'eu 1' is not a name: letters, digits and signs without spaces, at most 253"
    ]
    assert MeshConfig(zone="eu-west-1a").zone == "eu-west-1a"


class _Urls(Frozen):
    """Just addresses."""

    urls: InstanceUrls


@pytest.mark.spec("B2", "B25")
@pytest.mark.parametrize(
    ("given_urls", "urls"),
    [
        ("http://user-service:8000", ("http://user-service:8000",)),
        ("127.0.0.1:8000", ("http://127.0.0.1:8000",)),
        (["https://a", "h2c://[::1]:5/base"], ("https://a", "h2c://[::1]:5/base")),
        ([], ()),
    ],
)
def test_addresses_are_one_or_many_and_http_unless_they_say_otherwise(
    given_urls: object, urls: tuple[str, ...]
) -> None:
    assert _Urls.model_validate({"urls": given_urls}).urls == urls


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ws://a", "its scheme is not one of http, https, h2, h2c"),
        ("http://a:99999", "its host or port is not valid"),
        ("http://a:0", "it has no port after ':'"),
        ("http://a:", "it has no port after ':'"),
        ("http://", "it has no valid host"),
        ("http://[fe80::1%25eth0]", "it has no valid host"),
        ("http://a b", "it has a space, a control character or a letter outside ASCII"),
        ("http://bücher.example", "it has a space, a control character or a letter outside ASCII"),
        ("http://a/#x", "it has a query or fragment, which would not be sent"),
        ("http://u@a", "it has a user or password, which would not be sent"),
        ("http://1.2.3", "it has no valid host"),
        ("http://a..b", "it has no valid host"),
        ("http://a/%2e./x", "it has '.' or '..' in its path"),
        ("http://a/%zz", "its path needs percent-encoding"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(url: str, why: str) -> None:
    (line,) = problems_of(_Urls, urls=url)

    assert line.startswith("urls[0]: ")
    assert line.endswith(f" is not an address like 'http://127.0.0.1:8000': {why}")


@settings(max_examples=300)
@given(st.from_regex(r"(https?://|h2://|)[a-c0-9.\[\]:@%_-]{0,9}(/[a-e0-9%./?#;]{0,8})?", fullmatch=True))
def test_an_address_that_settings_take_is_one_that_discovery_takes(url: str) -> None:
    try:
        (accepted,) = _Urls.model_validate({"urls": url}).urls
    except ValidationError:
        return

    parse(accepted, service="x", id="x-1")


def test_policies_can_be_given_as_models() -> None:
    policy = ServicePolicy(outlier=OutlierPolicy(consecutive_failures=2))

    assert MeshConfig(policies={"x": policy}).policy_of("x").outlier == OutlierPolicy(consecutive_failures=2)
