"""Start, stop, settings and refusals of a ServiceMesh."""

import asyncio

import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.load_balancer import LoadBalancingStrategy

pytestmark = pytest.mark.anyio


async def echo(scope, receive, send) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"path": "%s"}' % scope["path"].encode()})


@pytest.mark.spec("S-100", "S-101", "B41")
async def test_async_with_starts_and_stops_and_it_can_be_started_again() -> None:
    mesh = ServiceMesh("user-service", service_version="1.2.0", namespace="production", services={"echo": echo})
    assert not mesh.started
    for _ in range(2):
        async with mesh:
            assert mesh.started
            assert mesh.ready
            assert await mesh.call_service("echo", "/x") == {"path": "/x"}
        assert not mesh.started
        assert not mesh.ready
    assert (mesh.service_name, mesh.service_version, mesh.namespace) == ("user-service", "1.2.0", "production")


@pytest.mark.spec("B41")
async def test_a_call_on_a_mesh_that_was_never_started_starts_it_once() -> None:
    mesh = ServiceMesh("a", services={"echo": echo}, discovery_backend="static")
    results = await asyncio.gather(*[mesh.call_service("echo", "/x") for _ in range(10)])
    assert results == [{"path": "/x"}] * 10
    assert mesh.started
    await mesh.stop()
    await mesh.stop()


@pytest.mark.spec("X-11")
async def test_two_meshes_in_one_process_do_not_see_each_other() -> None:
    async with (
        ServiceMesh("a", discovery_backend="memory") as one,
        ServiceMesh("b", discovery_backend="memory") as two,
    ):
        await one.register_service(address="127.0.0.1", port=9001)
        assert [each.id for each in await one.discover_services("a")] == ["a-127.0.0.1-9001"]
        assert await two.discover_services("a") == []


@pytest.mark.spec("S-110", "S-112", "S-113", "B19", "B21")
async def test_register_and_discover() -> None:
    registry = MemoryRegistry()
    async with (
        ServiceMesh("user-service", discovery=registry, service_version="1.0.0") as mesh,
        ServiceMesh("caller", discovery=registry) as caller,
    ):
        await mesh.register_service(
            service_id="user-service-1",
            address="10.0.1.100",
            port=8000,
            health_check="/health",
            tags=["api", "v1"],
            metadata={"version": "1.0.0", "region": "us-east-1"},
        )
        found = await caller.discover_services("user-service")
        assert [(i.id, i.address, i.port, i.health, i.tags) for i in found] == [
            ("user-service-1", "10.0.1.100", 8000, "healthy", ("api", "v1"))
        ]
        assert found[0].metadata["region"] == "us-east-1"
        one = await caller.discover_service("user-service")
        assert (one.address, one.port) == ("10.0.1.100", 8000)
        with pytest.raises(ServiceDiscoveryError, match="no instance of 'nobody'"):
            await caller.discover_service("nobody")
        assert [each.id for each in mesh.registrations] == ["user-service-1"]
        await mesh.deregister()
        assert mesh.registrations == ()


@pytest.mark.spec("S-110")
async def test_registering_without_a_port_says_how_to_give_one() -> None:
    async with ServiceMesh("a", discovery_backend="memory") as mesh:
        with pytest.raises(ConfigurationError, match="MESH_PORT"):
            await mesh.register_service()


@pytest.mark.spec("S-101")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"enable_mtls": True}, "enable_mtls"),
        ({"cert_path": "/etc/certs/x.crt"}, "cert_path"),
        ({"cert_authority": "internal-ca"}, "cert_authority"),
        ({"security_policies": {"allow_services": ["a"]}}, "security_policies"),
    ],
)
def test_options_of_later_versions_are_refused_by_name(options: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match="not part of this version") as caught:
        ServiceMesh("a", **options)
    assert named in str(caught.value)


def test_all_problems_are_told_at_once_with_their_paths() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ServiceMesh("a", discovery_config={"paht": "/x", "lease": "long"}, port=99999)  # type: ignore[dict-item]
    text = str(caught.value)
    assert "paht" in text
    assert "did you mean 'path'" in text
    assert "lease" in text
    assert "port" in text
    assert len(caught.value.problems) == 3


def test_a_whole_configuration_excludes_single_settings() -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        ServiceMesh(config=MeshConfig(service_name="a"), namespace="b")
    assert ServiceMesh(config=MeshConfig(service_name="a")).service_name == "a"


@pytest.mark.spec("X-58")
async def test_switched_off_it_calls_straight_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_MESH_ENABLED", "false")
    mesh = ServiceMesh("a", services={"echo": echo})
    async with mesh:
        assert not mesh.enabled
        assert mesh.policy_of("echo").retry is None
        assert mesh.policy_of("echo").circuit_breaker is None
        assert await mesh.call_service("echo", "/x") == {"path": "/x"}
        host = await mesh.discover_service("other-service")
        assert (host.address, host.port) == ("other-service", 80)
        await mesh.register_service(address="127.0.0.1", port=1)
        assert mesh.registrations == ()


@pytest.mark.spec("S-121", "S-130", "S-140", "S-120")
async def test_policies_are_configured_as_the_description_does() -> None:
    mesh = ServiceMesh("a", discovery_backend="static")
    mesh.configure_load_balancing(
        {"order-service": {"strategy": LoadBalancingStrategy.LEAST_CONNECTIONS, "weights": {"order-service-2": 2.0}}}
    )
    mesh.configure_circuit_breakers({"payment": {"failure_threshold": 3, "recovery_timeout": 120, "timeout": 10.0}})
    mesh.configure_retry_policies(
        {"users": {"max_attempts": 5, "backoff_strategy": "linear", "base_delay": 0.5, "jitter": True}}
    )
    assert mesh.policy_of("order-service").load_balancing.weights == {"order-service-2": 2.0}
    assert mesh.policy_of("payment").circuit_breaker.failure_threshold == 3
    assert mesh.policy_of("payment").timeouts.attempt_timeout == 10.0
    assert mesh.policy_of("users").retry.max_attempts == 5
    assert mesh.policy_of("users").circuit_breaker.failure_threshold == 5
    with pytest.raises(ConfigurationError, match="did you mean 'max_attempts'"):
        mesh.configure_retry_policies({"users": {"max_atempts": 5}})


@pytest.mark.spec("S-130")
async def test_a_changed_policy_replaces_only_its_own_machine() -> None:
    async with ServiceMesh("a", services={"echo": echo}, discovery_backend="static") as mesh:
        await mesh.call_service("echo", "/x")
        state = mesh.states.get("echo")
        breaker, budget, instances = state.breaker, state.budget, state.instances.value
        mesh.configure_circuit_breakers({"echo": {"failure_threshold": 1}})
        assert state.breaker is not breaker
        assert state.budget is budget
        assert state.instances.value == instances


@pytest.mark.spec("S-111")
async def test_health_check_is_a_decorator() -> None:
    mesh = ServiceMesh("a", discovery_backend="static")

    @mesh.health_check
    async def database() -> dict[str, object]:
        return {"status": "healthy", "checks": {"db": "ok"}}

    report = await mesh.health.report()
    assert report.healthy
    await mesh.health.aclose()
    assert await database() == {"status": "healthy", "checks": {"db": "ok"}}


async def test_explain_finds_records_by_request_id() -> None:
    from fastapi_mesh.core.context import Inbound, current_inbound

    async with ServiceMesh("a", services={"echo": echo}, discovery_backend="static") as mesh:
        token = current_inbound.set(Inbound(mesh, request_id="r-1"))
        try:
            await mesh.call_service("echo", "/x")
        finally:
            current_inbound.reset(token)
        await mesh.call_service("echo", "/y")
        assert [record.route for record in mesh.explain("r-1")] == ["/x"]


def test_a_mesh_whose_event_loop_ended_starts_anew_in_the_next_one() -> None:
    mesh = ServiceMesh("a", services={"echo": echo}, discovery_backend="static")

    async def call() -> object:
        return await mesh.call_service("echo", "/x")

    for _ in range(3):
        assert asyncio.run(call()) == {"path": "/x"}
        assert not mesh.started

    async def stop() -> None:
        await mesh.call_service("echo", "/x")
        await mesh.stop()

    asyncio.run(stop())


@pytest.mark.spec("X-58")
def test_policies_can_not_switch_a_disabled_mesh_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_MESH_ENABLED", "false")
    mesh = ServiceMesh("a", services={"echo": echo})
    mesh.configure_retry_policies({"echo": {"max_attempts": 5}})
    mesh.configure_circuit_breakers({"echo": {"failure_threshold": 5}})
    assert mesh.policy_of("echo").retry is None
    assert mesh.policy_of("echo").circuit_breaker is None


def test_methods_of_later_versions_are_refused_by_name_and_others_are_plain_attribute_errors() -> None:
    from fastapi_mesh import APIGateway

    mesh, gateway = ServiceMesh("a", discovery_backend="static"), APIGateway()
    for owner, names in (
        (mesh, ["require_valid_cert"]),
        (gateway, []),
    ):
        for name in names:
            with pytest.raises(ConfigurationError, match=rf"{name}: .* not part of this version"):
                getattr(owner, name)
            assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match="has no attribute 'nope'"):
            owner.nope  # noqa: B018
