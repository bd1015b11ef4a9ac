"""A start that fails says why, to a server and to a test client, and never hangs or serves errors for ever."""

import sys

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_mesh import APIGateway, ServiceMeshMiddleware
from fastapi_mesh.exceptions import ConfigurationError

BAD_APPS = """
from fastapi import FastAPI
from fastapi_mesh import APIGateway, ServiceMeshMiddleware

typo = FastAPI()
typo.add_middleware(ServiceMeshMiddleware, service_name="orders", enable_tracin=True, polices={})

later = FastAPI()
later.add_middleware(ServiceMeshMiddleware, service_name="orders", enable_mtls=True)

gateway = APIGateway(services={"user-service": "http://127.0.0.1:1"})
gateway.configure_routes([{"path": "/*", "service": "usr-service"}])
included = FastAPI()
included.include_router(gateway.router)
"""


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("typo", "enable_tracin: unknown key - did you mean 'enable_tracing'?"),
        ("later", "enable_mtls: mutual TLS is not part of this version"),
        ("gateway", "did you mean 'user-service'?"),
        ("included", "did you mean 'user-service'?"),
    ],
)
def test_uvicorn_exits_with_3_and_four_lines(processes, tmp_path, target: str, said: str) -> None:
    (tmp_path / "bad_apps.py").write_text(BAD_APPS)
    child = processes.app(f"bad_apps:{target}", "--app-dir", str(tmp_path))
    child.traceback_expected = target == "included"  # it is Starlette that prints it there
    assert child.wait() == 3
    assert said in child.log
    for line in ("can't start", "  setting: ", "  fix:     ", "  or:      "):
        assert line in child.log


def test_a_test_client_gets_the_error_instead_of_hanging() -> None:
    typo = FastAPI()
    typo.add_middleware(ServiceMeshMiddleware, service_name="orders", enable_tracin=True)  # type: ignore[call-arg]
    later = FastAPI()
    later.add_middleware(ServiceMeshMiddleware, service_name="orders", enable_mtls=True)
    gateway = APIGateway(services={"a": "http://127.0.0.1:1"})
    gateway.configure_routes([{"path": "/*", "service": "b"}])
    for app in (typo, later, gateway):
        with pytest.raises(ConfigurationError), TestClient(app):
            sys.exit("never entered")


def test_without_a_lifespan_the_first_request_is_answered_with_500() -> None:
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, service_name="orders", enable_tracin=True)  # type: ignore[call-arg]
    answer = TestClient(app).get("/")
    assert answer.status_code == 500
    assert answer.json()["reason"] == "configuration"
