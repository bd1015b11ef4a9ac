"""The zone of a node: from code, a variable or a file to its registration."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_mesh import ServiceMesh, ServiceMeshMiddleware
from fastapi_mesh.discovery.memory import MemoryRegistry

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-01")]


async def test_a_node_is_registered_with_its_zone() -> None:
    registry = MemoryRegistry()
    async with ServiceMesh("users", zone="eu-1a", discovery=registry) as mesh:
        await mesh.register_service(address="127.0.0.1", port=8000)
        (found,) = await mesh.discover_services("users")

    assert found.zone == "eu-1a"


def test_zone_and_number_come_from_code_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(
        'zone = "from-file"\nclient_number = 3\n'
        "[policies.orders.load_balancing]\nsubset_size = 5\nsession_affinity_cookie = 'lb'\n"
    )
    by_file = ServiceMesh("a", config_file=str(file))
    monkeypatch.setenv("MESH_ZONE", "from-variable")
    monkeypatch.setenv("MESH_POLICIES__ORDERS__LOAD_BALANCING__STICKY_SESSIONS", "true")
    monkeypatch.setenv("MESH_POLICIES__ORDERS__LOAD_BALANCING__STRATEGY", "least_response_time")
    by_variable = ServiceMesh("a", config_file=str(file))
    by_code = ServiceMesh("a", config_file=str(file), zone="from-code", client_number=4)

    assert (by_file.config.zone, by_file.config.client_number) == ("from-file", 3)
    assert (by_variable.config.zone, by_variable.config.client_number) == ("from-variable", 3)
    assert (by_code.config.zone, by_code.config.client_number) == ("from-code", 4)
    balancing = by_variable.policy_of("orders").load_balancing
    assert (balancing.sticky_sessions, balancing.subset_size, balancing.session_affinity_cookie) == (True, 5, "lb")
    assert balancing.strategy == "least_response_time"


def test_the_middleware_takes_them_too() -> None:
    app = FastAPI()
    app.add_middleware(
        ServiceMeshMiddleware, service_name="a", zone="eu-1b", client_number=7, discovery_backend="static"
    )

    with TestClient(app):
        config = app.state.mesh.config

    assert (config.zone, config.client_number) == ("eu-1b", 7)
