"""Envoy's fault filter as an upstream: delays and failures as somebody else makes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh import BreakerPolicy, RetryPolicy, ServiceMesh, ServicePolicy
from fastapi_mesh.config.policies import TimeoutPolicy
from fastapi_mesh.exceptions import ServiceUnavailableError, UpstreamTimeoutError
from tests.support.process import free_port
from tests.support.servers import find

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("envoy")]

_TYPES = "type.googleapis.com/envoy.extensions.filters"
ABORT, DELAY = "x-envoy-fault-abort-request", "x-envoy-fault-delay-request"


def listener(port: int, fault: dict[str, object]) -> dict[str, object]:
    """An HTTP server that answers "well", with a fault filter before that."""
    answer = {"status": 200, "body": {"inline_string": "well"}}
    routes = [{"match": {"prefix": "/"}, "direct_response": answer}]
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "faults",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.fault",
                "typed_config": {"@type": f"{_TYPES}.http.fault.v3.HTTPFault", **fault},
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"},
            },
        ],
    }
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


HEADERS = {
    "abort": {"header_abort": {}, "percentage": {"numerator": 100}},
    "delay": {"header_delay": {}, "percentage": {"numerator": 100}},
}
A_THIRD = {"abort": {"http_status": 503, "percentage": {"numerator": 33}}}


@pytest.fixture
def envoy(processes: Processes, tmp_path: Path) -> list[str]:
    """URLs of two upstreams: one fails as a request's headers say, one fails a third of all by itself."""
    ports = [free_port(), free_port()]
    listeners = [listener(port, fault) for port, fault in zip(ports, (HEADERS, A_THIRD), strict=True)]
    settings = tmp_path / "envoy.json"
    settings.write_text(json.dumps({"static_resources": {"listeners": listeners}}))
    program = find("envoy")
    assert program is not None
    command = [program, "-c", str(settings), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
    child = processes.start([*command, "--drain-time-s", "1"], name="envoy", port=ports[0])
    child.wait_listening()
    return [f"http://127.0.0.1:{port}" for port in ports]


@pytest.mark.spec("X-04")
async def test_a_third_of_failures_by_envoy_is_not_noticed(envoy: list[str]) -> None:
    policy = ServicePolicy(retry=RetryPolicy(max_attempts=15, base_delay=0.001), outlier=None)
    async with ServiceMesh("client", services={"items": envoy[1]}, default_policy=policy) as mesh:
        answers = [await mesh.call_service("items", "/") for _ in range(100)]
        retries = mesh.states.get("items").statistics.retries

    assert answers == ["well"] * 100
    assert retries > 10


@pytest.mark.spec("X-06", "X-08")
async def test_delays_by_envoy_are_time_outs_and_open_the_circuit(envoy: list[str]) -> None:
    policy = ServicePolicy(
        timeouts=TimeoutPolicy(attempt_timeout=0.2, timeout=5.0),
        retry=None,
        outlier=None,
        circuit_breaker=BreakerPolicy(failure_threshold=3),
    )
    async with ServiceMesh("client", services={"items": envoy[0]}, default_policy=policy) as mesh:
        assert await mesh.call_service("items", "/", headers={DELAY: "1"}) == "well"
        for _ in range(3):
            with pytest.raises(UpstreamTimeoutError):
                await mesh.call_service("items", "/", headers={DELAY: "60000"})
        assert mesh.states.get("items").breaker.state == "open"


@pytest.mark.spec("X-02", "X-04")
async def test_an_envoy_that_fails_is_left_out_for_the_other_one(envoy: list[str]) -> None:
    policy = ServicePolicy(retry=RetryPolicy(max_attempts=15, base_delay=0.001), circuit_breaker=None)
    async with ServiceMesh("client", services={"items": envoy}, default_policy=policy) as mesh:
        failed = 0
        for _ in range(50):
            try:
                assert await mesh.call_service("items", "/", headers={ABORT: "503"}) == "well"
            except ServiceUnavailableError:
                failed += 1
        first = next(each for each in mesh.states.get("items").instances.value if str(each.instance.port) in envoy[0])

    assert failed == 0
    assert first.ejected_until
