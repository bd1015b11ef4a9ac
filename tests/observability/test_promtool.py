"""The text at /metrics, judged by Prometheus' own tool."""

from __future__ import annotations

import subprocess

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_mesh import APIGateway, ServiceMesh, ServiceMeshMiddleware
from tests.support import servers

pytestmark = pytest.mark.server("promtool")


@pytest.mark.spec("S-150")
def test_promtool_has_nothing_to_say_about_the_metrics_of_a_node_with_a_gateway():
    mesh = ServiceMesh("shop", discovery_backend="memory", services={"stock": FastAPI(), "gone": "http://127.0.0.1:1"})
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, mesh=mesh)
    gateway = APIGateway()
    gateway.configure_routes([{"path": "/stock/*", "service": "stock"}, {"path": "/gone/*", "service": "gone"}])
    app.include_router(gateway.router)
    with TestClient(app) as client:
        answers = [client.get(path).status_code for path in ("/stock/1", "/gone/1", "/docs")]
        text = client.get("/metrics").text

    judged = subprocess.run(
        [servers.find("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert answers == [404, 502, 200]
    assert 'mesh_service_calls_total{source_service="shop",status="404",target_service="stock"} 1.0' in text
    assert "gateway_requests_total" in text
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")
