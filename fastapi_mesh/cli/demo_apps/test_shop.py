"""Tests of a service: what it calls is scripted, and no socket is opened. Run them with `pytest`."""
# mypy: disable-error-code="import-not-found"

from fastapi.testclient import TestClient
from user_service import app

from fastapi_mesh import get_service_mesh
from fastapi_mesh.testing import FakeMesh


def test_a_user_comes_with_a_profile(fake_mesh: FakeMesh) -> None:
    fake_mesh.service("profile-service").get("/profiles/3").returns({"bio": "likes boats"})
    app.dependency_overrides[get_service_mesh] = lambda: fake_mesh

    answer = TestClient(app).get("/users/3")

    assert answer.json()["profile"] == {"bio": "likes boats"}


def test_one_instance_of_profile_service_failing_is_not_noticed(fake_mesh: FakeMesh) -> None:
    fake_mesh.service("profile-service").get("/profiles/3").fails(503).returns({"bio": "likes boats"})
    app.dependency_overrides[get_service_mesh] = lambda: fake_mesh

    answer = TestClient(app).get("/users/3")

    assert answer.status_code == 200
    assert len(fake_mesh.calls) == 2
