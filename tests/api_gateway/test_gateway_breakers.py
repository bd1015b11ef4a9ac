"""`gateway.configure_circuit_breakers` and CircuitBreaker: settings of the mesh's own breaker."""

from __future__ import annotations

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.circuit_breaker import CircuitBreaker
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.policies import BreakerPolicy, ServicePolicy
from fastapi_mesh.exceptions import ConfigurationError, UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.testing.wire import broken
from tests.api_gateway.transform_support import Echo, client_of, new_gateway
from tests.layers.stack_support import Rig
from tests.support.process import free_port

pytestmark = pytest.mark.anyio

DESCRIBED = {
    "user-service": CircuitBreaker(failure_threshold=5, recovery_timeout=60, expected_exception=ConnectionError),
    "payment-service": CircuitBreaker(
        failure_threshold=3, recovery_timeout=120, expected_exception=(ConnectionError, TimeoutError)
    ),
}


@pytest.mark.spec("S-040", "S-041")
@pytest.mark.parametrize("first", ["breakers", "services"])
def test_the_descriptions_breakers_count_in_whatever_order_they_are_configured(first: str) -> None:
    gateway = APIGateway()
    services = {"user-service": {"instances": ["http://127.0.0.1:1"]}, "payment-service": "http://127.0.0.1:2"}
    if first == "breakers":
        gateway.configure_circuit_breakers(DESCRIBED)
        gateway.configure_services(services)
    else:
        gateway.configure_services(services)
        gateway.configure_circuit_breakers(DESCRIBED)

    users, payments = (gateway.config.services[name].circuit_breaker for name in DESCRIBED)
    assert users is not None
    assert payments is not None
    assert (users.failure_threshold, users.recovery_timeout, users.expected_exception) == (5, 60.0, (ConnectionError,))
    assert (payments.failure_threshold, payments.recovery_timeout) == (3, 120.0)
    assert payments.expected_exception == (ConnectionError, TimeoutError)
    assert gateway.config.services["user-service"].instances == ("http://127.0.0.1:1",)


@pytest.mark.spec("S-041", "A3", "A4")
async def test_a_dead_service_opens_its_circuit_and_the_breaker_is_the_meshs() -> None:
    gateway = new_gateway(f"http://127.0.0.1:{free_port()}", max_retries=0)
    gateway.configure_circuit_breakers({"up": CircuitBreaker(2, 60, expected_exception=ConnectionError)})
    async with client_of(gateway) as client:
        reasons = [(await client.get("/api/x")).headers["x-mesh-reason"] for _ in range(4)]
        assert gateway.life is not None
        breaker = gateway.life.mesh.breaker_of("up")
        assert breaker is not None
        assert breaker.state == "open"

    assert reasons == ["connection-failed", "connection-failed", "circuit-open", "circuit-open"]


@pytest.mark.spec("S-040", "A3", "B45")
async def test_statuses_count_whatever_exceptions_are_expected() -> None:
    gateway = new_gateway(Echo(b"", status=500), max_retries=0)
    gateway.configure_circuit_breakers({"up": CircuitBreaker(2, expected_exception=TimeoutError)})
    async with client_of(gateway) as client:
        statuses = [(await client.get("/api/x")).status_code for _ in range(3)]

    assert statuses == [500, 500, 503]


@pytest.mark.spec("S-041")
async def test_a_breaker_can_be_changed_and_switched_off_while_the_gateway_runs() -> None:
    gateway = new_gateway(Echo(b"", status=500), max_retries=0)
    async with client_of(gateway) as client:
        gateway.configure_circuit_breakers({"up": CircuitBreaker(1)})
        assert [(await client.get("/api/x")).status_code for _ in range(2)] == [500, 503]
        gateway.configure_circuit_breakers({"up": None})
        assert [(await client.get("/api/x")).status_code for _ in range(3)] == [500] * 3


@pytest.mark.spec("S-040", "B45")
@pytest.mark.parametrize(
    ("expected", "raised", "state"),
    [
        ("ConnectionError", UpstreamConnectionError, "open"),
        ("TimeoutError", UpstreamConnectionError, "closed"),
        ("TimeoutError", UpstreamTimeoutError, "open"),
        ("ConnectionError", UpstreamTimeoutError, "closed"),
        (("ConnectionError", "TimeoutError"), UpstreamTimeoutError, "open"),
        (None, UpstreamTimeoutError, "open"),
        (OSError, UpstreamTimeoutError, "open"),
    ],
)
async def test_only_expected_exceptions_count(expected: object, raised: type[Exception], state: str) -> None:
    policy = CircuitBreaker(2, expected_exception=expected).policy  # type: ignore[arg-type]
    error = raised("x", service="users")
    bench = Rig([error], ServicePolicy(retry=None, circuit_breaker=policy, outlier=None), instances=1)

    for _ in range(2):
        with pytest.raises(raised):
            await bench.call()
        await bench.clock.advance(0.01)

    assert bench.state.breaker is not None
    assert bench.state.breaker.state == state


@pytest.mark.spec("S-040")
async def test_an_exception_that_is_not_expected_frees_its_trial_call() -> None:
    policy = BreakerPolicy(
        failure_threshold=1, recovery_timeout=10.0, half_open_max_calls=1, expected_exception="TimeoutError"
    )
    script = [500, broken(), broken(), 200]
    bench = Rig(script, ServicePolicy(retry=None, circuit_breaker=policy, outlier=None), instances=1)
    await bench.call()
    await bench.clock.advance(11)
    for _ in range(2):
        with pytest.raises(UpstreamConnectionError):
            await bench.call()
    await bench.call()

    assert bench.state.breaker is not None
    assert bench.state.breaker.state == "closed"


class Foreign(Exception):
    """Of an HTTP client, say."""


@pytest.mark.spec("S-040", "A3")
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"expected_exception": Foreign}, r"no call through a gateway fails with .*Foreign; ConnectionError and"),
        ({"expected_exception": (ConnectionError, KeyError)}, "builtins.KeyError"),
        ({"expected_exception": "ConectionError"}, "did you mean 'ConnectionError'"),
        ({"expected_exception": 5}, "expected_exception"),
        ({"failure_threshold": 0}, "failure_threshold"),
        ({"recovery_timeout": -1}, "recovery_timeout"),
    ],
)
def test_a_breaker_that_could_never_work_is_refused_at_once(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        CircuitBreaker(**settings)  # type: ignore[arg-type]


def test_breakers_are_values_and_can_be_set_in_a_file_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CircuitBreaker() == CircuitBreaker(5, 60.0)
    assert CircuitBreaker() != CircuitBreaker(4)
    assert len({CircuitBreaker(), CircuitBreaker(5)}) == 1
    assert "failure_threshold=7" in repr(CircuitBreaker(7))

    config = GatewayConfig.model_validate(
        {"circuit_breakers": {"a": {"failure_threshold": 2}}, "services": {"a": "http://a"}}
    )
    assert config.policy_of("a").circuit_breaker == BreakerPolicy(failure_threshold=2)
    monkeypatch.setenv("MESH_GATEWAY__CIRCUIT_BREAKERS__A__EXPECTED_EXCEPTION", "ConnectionError,TimeoutError")
    breaker = APIGateway(services={"a": "http://127.0.0.1:1"}).config.services["a"].circuit_breaker
    assert breaker is not None
    assert breaker.expected_exception == (ConnectionError, TimeoutError)


async def test_a_breaker_for_a_service_that_nobody_knows_is_told_when_the_gateway_opens() -> None:
    gateway = new_gateway(Echo())
    gateway.configure_circuit_breakers({"upp": CircuitBreaker()})
    with pytest.raises(ConfigurationError, match="upp"):
        await gateway.open_in({})
