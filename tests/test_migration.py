"""The documented map from the product description's imports to this package is true."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
DESCRIBED = "fastapi_microservices_sdk.communication.protocols"
ROW = re.compile(rf"^\| `({re.escape(DESCRIBED)}[\w.]*)`[^|]*\| `([\w.]+)`( \(not yet\))? \|", re.MULTILINE)


def rows() -> list[tuple[str, str, bool]]:
    return [(described, here, not later) for described, here, later in ROW.findall(PAGE.read_text())]


@pytest.mark.spec("S-900", "S-200", "S-002")
def test_every_described_module_is_mapped_and_those_of_this_version_exist() -> None:
    found = rows()
    assert {described.removeprefix(DESCRIBED) for described, _, _ in found} == {
        "",
        ".api_gateway",
        ".api_gateway.middleware",
        ".api_gateway.circuit_breaker",
        ".api_gateway.auth",
        ".service_mesh",
        ".service_mesh.load_balancer",
        ".integration",
        ".exceptions",
    }
    for described, here, now in found:
        assert here == described.replace(DESCRIBED, "fastapi_mesh")
        if now:
            importlib.import_module(here)
        else:
            with pytest.raises(ModuleNotFoundError):  # when it comes, its row loses the remark
                importlib.import_module(here)


@pytest.mark.spec("S-200", "S-001", "S-101", "S-310", "S-311", "S-312")
@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("fastapi_mesh", ["APIGateway", "ServiceMesh", "ServiceMeshMiddleware", "get_service_mesh"]),
        ("fastapi_mesh", ["circuit_breaker", "retry_policy", "trace_calls"]),
        ("fastapi_mesh.api_gateway", ["APIGateway"]),
        ("fastapi_mesh.service_mesh", ["ServiceMesh"]),
        ("fastapi_mesh.service_mesh.load_balancer", ["LoadBalancingStrategy"]),
        ("fastapi_mesh.integration", ["ServiceMeshMiddleware", "get_service_mesh"]),
        ("fastapi_mesh.exceptions", ["ServiceUnavailableError", "CircuitBreakerOpenError", "ServiceDiscoveryError"]),
    ],
)
def test_described_names_are_where_the_description_has_them(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.spec("A11")
def test_timestamps_are_rfc_3339_in_utc() -> None:
    from fastapi_mesh.health.checks import HealthReport

    stamp = HealthReport.of({}, details={}).timestamp
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", stamp)
