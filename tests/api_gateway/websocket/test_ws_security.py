"""Whose pages may open a WebSocket, for how long a credential lets one stay open, and what transformers do to it."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import AuthProvider, FromHeader, Principal
from fastapi_mesh.api_gateway.transform import GatewayRequest, GatewayResponse
from fastapi_mesh.api_gateway.websocket.origins import may_open
from tests.api_gateway.gateway_support import gateway_to, serving
from tests.api_gateway.websocket.ws_support import Service, closed, connect, gateway_in_front, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]


class ForSeconds(AuthProvider):
    """A credential is the number of seconds for which it is good."""

    places = (FromHeader(b"x-seconds"),)

    async def authenticate(self, credential: str) -> Principal:
        return Principal("alice", self.name, expires=None if credential == "-" else time.time() + float(credential))


@asynccontextmanager
async def authenticated(service: Service, **websocket: object) -> AsyncIterator[int]:
    gateway = gateway_to(service.url, [{"path": "/api/*", "service": "up", "auth_required": True}], websocket=websocket)
    gateway.configure_auth([ForSeconds()])
    async with serving(gateway) as port:
        yield port


# A credential's end.


@pytest.mark.spec("X-27")
async def test_a_socket_closes_when_its_credential_ends_and_both_sides_are_told() -> None:
    async with Service() as service, authenticated(service) as port:
        async with connect(port, additional_headers={"X-Seconds": "0.3"}) as client:
            await client.send("x")
            assert await client.recv() == "x"
            assert await closed(client) == (1008, "the credential has expired")
        assert await service.close_code() == 1008


async def test_a_credential_without_an_end_and_a_setting_keep_it_open() -> None:
    async with Service() as service:
        async with authenticated(service) as port:
            async with connect(port, additional_headers={"X-Seconds": "-"}) as client:
                await client.send("x")
                assert await client.recv() == "x"
        async with authenticated(service, outlive_token=True) as port:
            async with connect(port, additional_headers={"X-Seconds": "-1"}) as client:
                await client.send("x")
                assert await client.recv() == "x"


# Origins.


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    ("allowed", "origin", "fine"),
    [
        ([], "https://evil.example", True),
        (["https://app.example"], "https://app.example", True),
        (["https://APP.example:443"], "https://app.example", True),
        (["https://app.example"], None, True),
        (["https://app.example"], "https://evil.example", False),
        (["https://app.example"], "https://app.example.evil", False),
        (["https://app.example"], "http://app.example", False),
        (["https://app.example"], "https://app.example:8443", False),
        (["https://app.example"], "null", False),
        (["https://app.example"], "", False),
        (["self"], "http://{host}", True),
        (["self"], "https://{host}", False),
        (["self"], "http://evil.example", False),
    ],
)
async def test_pages_of_other_origins_open_none(allowed: list[str], origin: str | None, fine: bool) -> None:
    routes: list[dict[str, Any]] = [{"path": "/api/*", "service": "up", "websocket": {"allowed_origins": allowed}}]
    async with Service() as service, gateway_in_front(service.url, routes=routes) as (_, port):
        named = {} if origin is None else {"Origin": origin.format(host=f"127.0.0.1:{port}")}
        if fine:
            async with connect(port, additional_headers=named) as client:
                await client.send("x")
                assert await client.recv() == "x"
        else:
            response = await refusal(port, additional_headers=named)
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (403, "origin-not-allowed")
            assert service.requests == []


def test_two_origins_are_none() -> None:
    """uvicorn refuses them itself, another server may not."""
    one, other = (b"origin", b"https://app.example"), (b"origin", b"https://evil.example")
    for headers, fine in (([one], True), ([one, other], False), ([one, one], False), ([], True)):
        request: Any = SimpleNamespace(headers=headers)
        assert may_open(request, ("https://app.example",)) is fine


def test_origins_are_checked_when_they_are_set() -> None:
    for wrong in ("*", "https://app.example/", "app.example", "https://*.example"):
        with pytest.raises(ValueError, match="allowed_origins"):
            APIGateway(services={"up": "http://127.0.0.1:1"}, websocket={"allowed_origins": [wrong]})


# Transformers.


@asynccontextmanager
async def transformed(service: Service, transformer: Any, **route: object) -> AsyncIterator[int]:
    gateway = gateway_to(service.url, [{"path": "/api/*", "service": "up", **route}])
    gateway.add_transformers(transformer, lambda response: 1 / 0)
    async with serving(gateway) as port:
        yield port


@pytest.mark.spec("X-28")
async def test_request_transformers_change_the_path_and_the_headers_of_a_handshake() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        assert request.is_websocket
        assert request.method == "GET"
        assert request.body == b""
        request.path = request.path.replace("/ws", "/rooms/7 a")
        request.query = "from=gateway"
        request.headers["x-own"] = "yes"
        del request.headers["x-gone"]
        return request

    async with Service() as service, transformed(service, change, strip_prefix=True) as port:
        async with connect(port, additional_headers={"X-Gone": "1"}, subprotocols=["a", "b"]) as client:
            await client.send("x")
            assert await client.recv() == "x"
    asked = service.requests[0]
    assert asked.path == "/rooms/7%20a?from=gateway"
    assert asked.headers["x-own"] == "yes"
    assert "x-gone" not in asked.headers
    assert asked.headers["sec-websocket-protocol"] == "a, b"


async def test_a_request_transformer_answers_a_handshake_itself() -> None:
    def refuse(request: GatewayRequest) -> GatewayResponse:
        return GatewayResponse(402, {"x-why": "money"}, b"pay first")

    async with Service() as service, transformed(service, refuse) as port:
        response = await refusal(port)
        assert (response.status_code, response.headers["x-why"], response.body) == (402, "money", b"pay first")
        assert service.requests == []


async def test_what_no_handshake_can_be_is_refused_and_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        what = request.query
        if what == "method":
            request.method = "POST"
        elif what == "body":
            request.body = b"x"
        elif what == "protocol":
            request.headers["sec-websocket-protocol"] = "mine"
        elif what == "upgrade":
            request.headers["upgrade"] = "h2c"
        return request

    async with Service() as service, transformed(service, change) as port:
        for what in ("method", "body", "protocol", "upgrade"):
            response = await refusal(port, f"/api/ws?{what}")
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (500, "transform-failed"), what
        assert service.requests == []
    assert "is a GET without a body" in caplog.text
