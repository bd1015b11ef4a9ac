"""A gateway's own health checks, and `check_services`."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx2
import pytest
from fastapi import FastAPI

from fastapi_mesh import ServiceMesh, ServiceMeshMiddleware, generate_request_id
from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.circuit_breaker import CircuitBreaker
from tests.api_gateway.gateway_support import RawUpstream, serving
from tests.api_gateway.transform_support import Echo, client_of, new_gateway
from tests.support.process import free_port

pytestmark = pytest.mark.anyio


@pytest.mark.spec("S-018", "B20", "A11", "B36")
async def test_the_descriptions_check_decides_health_and_readiness() -> None:
    working = {"database": True}
    gateway = new_gateway(Echo())

    async def check_database():
        return working["database"]

    async def check_downstream_services():
        return all((await gateway.check_services()).values())

    @gateway.health_check
    async def gateway_health():
        checks = {"database": await check_database(), "services": await check_downstream_services()}
        healthy = all(checks.values())
        return {
            "status": "healthy" if healthy else "unhealthy",
            "checks": checks,
            "timestamp": datetime.now(UTC).isoformat(),
        }

    async with client_of(gateway) as client:
        well = await client.get("/health")
        assert gateway.life is not None
        gateway.life.mesh.health._last = None  # as if its cache had run out
        working["database"] = False
        ill = await client.get("/health")
        ready = await client.get("/health/ready")
        live = await client.get("/health/live")

    assert (well.status_code, well.json()["status"]) == (200, "healthy")
    assert well.json()["checks"] == {"database": "pass", "services": "pass"}
    assert well.json()["details"]["gateway_health"]["checks"] == {"database": True, "services": True}
    assert (ill.status_code, ill.json()["checks"]["database"]) == (503, "fail")
    assert (ready.status_code, live.status_code) == (503, 200)
    assert gateway_health.__name__ == "gateway_health", "it stays a function"


@pytest.mark.spec("B20")
async def test_the_gateways_checks_join_the_meshs_and_leave_with_it() -> None:
    mesh = ServiceMesh("shop", discovery_backend="static")

    @mesh.health_check
    def check():
        return True

    gateway = new_gateway(Echo(), service_mesh=mesh)

    def check() -> bool:  # noqa: F811 - two of one name are what this is about
        return False

    gateway.health_check(check)
    async with mesh:
        async with client_of(gateway) as client:
            answer = await client.get("/health")
            gateway.health_check(lambda: True)
            assert len(mesh.health.names) == 3, "one that comes while it is open counts at once"
        assert mesh.health.names == ("check",)

    assert answer.status_code == 503
    assert answer.json()["checks"] == {"check": "pass", "check-2": "fail"}


async def test_a_node_shows_the_checks_of_the_gateway_in_it() -> None:
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, service_name="shop", discovery_backend="static")
    gateway = new_gateway(Echo())

    @gateway.health_check
    def broken() -> bool:
        raise OSError("no database")

    app.include_router(gateway.router)
    async with serving(app) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.get("/health")

    assert answer.status_code == 503
    assert answer.json()["checks"] == {"broken": "fail"}


@pytest.mark.spec("B36")
async def test_services_are_looked_at() -> None:
    async with RawUpstream() as upstream:
        dead = f"http://127.0.0.1:{free_port()}"
        gateway = APIGateway(
            services={
                "alive": upstream.url,
                "dead": dead,
                "half": [dead, upstream.url],
                "here": Echo(),
                "open": Echo(b"", status=500),
            },
            max_retries=0,
        )
        gateway.configure_routes([{"path": "/open/*", "service": "open"}, {"path": "/here/*", "service": "here"}])
        gateway.configure_circuit_breakers({"open": CircuitBreaker(1)})
        async with client_of(gateway) as client:
            await client.get("/open/x")
            found = await gateway.check_services()

    assert found == {"alive": True, "dead": False, "half": True, "here": True, "open": False}


@pytest.mark.spec("B36")
async def test_a_service_that_is_not_open_has_no_services_to_look_at() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await APIGateway().check_services()


@pytest.mark.spec("B36")
def test_a_request_id_is_made_where_no_request_is_answered() -> None:
    assert len({generate_request_id() for _ in range(100)}) == 100
