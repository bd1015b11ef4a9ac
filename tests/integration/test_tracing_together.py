"""One trace through two applications: FastAPI's own server spans and the mesh's client spans fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.spec("X-55", "S-153")
def test_one_server_span_per_application_request_one_client_span_per_call_and_one_per_attempt():
    command = [sys.executable, "-m", "tests.integration.traced_app"]
    output = subprocess.check_output(command, text=True, cwd=Path(__file__).resolve().parents[2])
    result = json.loads(output.splitlines()[-1])
    spans = result["spans"]

    assert result["answer"] == {"user": 3, "baggage": "tenant=7"}
    assert {span["trace"] for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    by_kind = [(span["kind"], span["name"]) for span in spans]
    assert by_kind == [
        ("SERVER", "GET /users/{user}"),
        ("CLIENT", "GET /users/{}"),
        ("SERVER", "GET /users/{user}"),
        ("CLIENT", "GET /users/{}"),
        ("CLIENT", "GET /users/{}"),
        ("SERVER", "GET /orders/{order}"),
    ]
    first, first_try, second, second_try, call, server = spans
    assert server["parent"] == "b7ad6b7169203331"
    assert call["parent"] == server["id"]
    assert first_try["parent"] == second_try["parent"] == call["id"]
    assert (first["parent"], second["parent"]) == (first_try["id"], second_try["id"])
    assert first_try["attributes"]["http.response.status_code"] == 503
    assert first_try["attributes"]["error.type"] == "503"
    assert second_try["attributes"]["http.request.resend_count"] == 1
    assert call["attributes"]["mesh.attempts"] == 2
    assert call["attributes"]["http.response.status_code"] == 200
