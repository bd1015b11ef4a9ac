"""A start that fails says why, to a server and to a test client, and never hangs or serves errors for ever."""

import os
import re
import subprocess
import sys

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_mesh import APIGateway, ServiceMeshMiddleware
from fastapi_mesh.exceptions import ConfigurationError
from tests.support.process import ROOT

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


SAID = {
    "typo": "enable_tracin: unknown key - did you mean 'enable_tracing'?",
    "later": "enable_mtls: mutual TLS is not part of this version",
    "gateway": "did you mean 'user-service'?",
    "included": "did you mean 'user-service'?",
}

ONE_AFTER_THE_OTHER = """
import sys, uvicorn
for target in sys.argv[1:]:
    try:
        uvicorn.run(f"bad_apps:{target}", port=0)
    except SystemExit as ended:
        print(f"=== {target} {ended.code}", file=sys.stderr, flush=True)
"""


def test_uvicorn_exits_with_3_and_four_lines(tmp_path) -> None:
    (tmp_path / "bad_apps.py").write_text(BAD_APPS)
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, *SAID]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)

    logs = re.findall(r"(.*?)^=== (\w+) (\w+)$", ended.stderr, re.DOTALL | re.MULTILINE)
    assert [(target, code) for _, target, code in logs] == [(target, "3") for target in SAID]
    for log, target, _ in logs:
        assert SAID[target] in log
        for line in ("can't start", "  setting: ", "  fix:     ", "  or:      "):
            assert line in log
        assert ("Traceback" in log) is (target == "included")  # it is Starlette that prints it there


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
