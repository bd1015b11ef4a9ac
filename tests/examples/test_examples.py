"""The examples run as they say: as programs, and served."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.support.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import Processes

EXAMPLES = ROOT / "examples"

SAID = {
    "protocols_integration_example.py": [
        'GET /users/1: 200 {"user_id":1,"profile":{"user_id":1,"bio":"likes trains"}}',
        'GET /users/7: 200 {"user_id":7,"profile":null}',
        'GET /api/v1/profiles/2: 200 {"user_id":2,"bio":"likes boats"}',
        'GET /api/v1/profiles/7: 404 {"detail":"user 7 has no profile"}',
        'GET /health/ready: 200 {"status": "healthy"',
        "DELETE /api/v1/profiles/2: 405 method-not-allowed",
        'mesh_service_calls_total{source_service="user-service",status="200",target_service="profile-service"} 2.0',
        'mesh_service_calls_total{source_service="user-service",status="404",target_service="profile-service"} 2.0',
    ],
    "service_mesh_example.py": [
        "feature flags: {'new_checkout': False}",
        *[f"known: user-{number} (healthy)" for number in (1, 2, 3)],
        "six users, no failure: by user-1, user-3",
        "calls that took another instance after a failure: 2",
        *[f"pay {amount}: not now (503)" for amount in (10, 20)],
        "log: the circuit of payment-gateway is open",
        "pay 30: not now (503)",
        "pay 40: from the cache, the circuit is open for 120 s more",
        "feature flags: {'new_checkout': True}",
        "service calls: 10, success rate: 60%",
    ],
    "api_gateway_example.py": [
        'a user, without a token: 401 Bearer realm="gateway"',
        *['a user, as ana: 200 {"user_id":1,"gateway":"1.0"}'] * 3,
        "a user, as ana: 429 rate-limited",
        'an order: {"order_id":7,"read":1} (cache: fwd=uri-miss)',
        'an order: {"order_id":7,"read":1} (cache: hit)',
        'an invoice: application/json {"invoice": {"@number": "3", "total": "12.50"}}',
        "a preflight: 204 for https://shop.example.com",
        'health: healthy {"user-service": "pass", "order-service": "pass", "legacy-service": "pass"}',
    ],
    "gateway_auth.py": [
        "nobody: 401 authentication-required",
        "ana: 200 ana, read",
        "ana, who wants money back: 403 insufficient-scope",
        "billing: 200 billing, refund",
        "somebody with another key: 401 invalid-credentials",
        "ben, by a new key of the issuer: 200 ben, read refund",
        "a stranger: 401 invalid-credentials",
    ],
    "gateway_cache.py": [
        'a book: {"price":12,"read":1} (cache: fwd=uri-miss)',
        'again: {"price":12,"read":1} (cache: hit)',
        'by another user: {"price":12,"read":1} (cache: hit)',
        'after its price was changed: {"price":9,"read":2} (cache: fwd=uri-miss)',
        'ana: {"basket of":"ana"} (cache: fwd=uri-miss)',
        'ana: {"basket of":"ana"} (cache: hit)',
        'ben: {"basket of":"ben"} (cache: fwd=uri-miss)',
        'with the service gone: {"price":9,"read":2} (cache: fwd=stale)',
        "and purged: 502 connection-failed",
    ],
    "gateway_websocket.py": [
        "subprotocol: chat.v1",
        "one, trains: hello",
        "two, boats: ahoy",
        "closed: 1009 the message is too big",
        "closed: 4000 one says goodbye",
        "refused: 403 websocket-off",
    ],
}
"""Example to the beginnings of the lines it prints."""


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.spec("S-412", "S-411", "S-410")
@pytest.mark.parametrize("name", SAID)
def test_an_example_says_what_happened_and_ends_well(name: str, tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "MESH_DISCOVERY__PATH": str(tmp_path / "registry.db")},
    )

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == len(SAID[name])
    assert [line for line, said in zip(lines, SAID[name], strict=True) if not line.startswith(said)] == []
    assert ended.stderr == ""


@pytest.mark.spec("S-412")
@pytest.mark.anyio
async def test_the_integration_example_is_served(processes: Processes, tmp_path: Path):
    served = processes.app(
        "protocols_integration_example:app",
        "--app-dir",
        str(EXAMPLES),
        environment={"MESH_DISCOVERY__PATH": str(tmp_path / "registry.db")},
    )
    await served.ready()

    async with httpx2.AsyncClient(base_url=served.url, trust_env=False) as client:
        through_the_mesh = await client.get("/users/2")
        through_the_gateway = await client.get("/api/v1/profiles/2")

    assert through_the_mesh.json() == {"user_id": 2, "profile": {"user_id": 2, "bio": "likes boats"}}
    assert through_the_gateway.json() == {"user_id": 2, "bio": "likes boats"}
    assert through_the_gateway.headers["via"] == "1.1 fastapi-mesh"


@pytest.mark.spec("S-410")
@pytest.mark.anyio
async def test_the_gateway_example_is_served(processes: Processes):
    served = processes.app("api_gateway_example:gateway", "--app-dir", str(EXAMPLES), "--no-proxy-headers")
    await served.ready()

    async with httpx2.AsyncClient(base_url=served.url, trust_env=False) as client:
        nobody = await client.get("/api/v1/users/1")
        invoice = await client.get("/api/v1/invoices/9")

    assert nobody.status_code == 401
    assert invoice.json() == {"invoice": {"@number": "9", "total": "12.50"}}
    assert float(invoice.headers["x-gateway-response-time"]) < 5
