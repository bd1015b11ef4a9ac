"""The layers of a route at a WebSocket's handshake: they do what they do to any GET."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import pytest

from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, request, serving, talk, values
from tests.api_gateway.websocket.ws_support import IMPLEMENTATIONS, Service, connect, gateway_in_front, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]

KEY = "key-of-billing-0123456789"


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_who_is_not_authenticated_is_refused_before_the_service_hears_of_it(ws: str) -> None:
    routes: list[dict[str, object]] = [{"path": "/api/*", "service": "up", "auth_required": True}]
    async with Service() as service:
        gateway = gateway_to(service.url)
        gateway.configure_auth([APIKeyAuthProvider(keys={"billing": KEY})])
        gateway.configure_routes(routes)
        async with serving(gateway, ws=ws) as port:
            response = await refusal(port)
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (401, "authentication-required")
            assert "WWW-Authenticate" in response.headers
            assert (await refusal(port, additional_headers={"X-API-Key": "wrong"})).status_code == 401
            assert service.requests == []
            async with connect(port, additional_headers={"X-API-Key": KEY}) as client:
                await client.send("x")
                assert await client.recv() == "x"


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_a_handshake_counts_against_the_limits_and_messages_do_not(ws: str) -> None:
    routes: list[dict[str, object]] = [{"path": "/api/*", "service": "up", "rate_limit": "2/hour"}]
    async with Service() as service, gateway_in_front(service.url, ws=ws, routes=routes) as (_, port):
        async with connect(port) as first, connect(port):
            for _ in range(10):
                await first.send("x")
                assert await first.recv() == "x"
            response = await refusal(port)
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (429, "rate-limited")
            assert int(response.headers["Retry-After"]) > 0
            await first.send("still")
            assert await first.recv() == "still"
        assert len(service.requests) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/api/*", "strip_prefix": True},
        {"path": "/api/{room}", "rewrite": "/rooms/{room}/ws"},
        {"path": "/api/*", "request_headers": {"set": {"X-Own": "yes"}, "remove": ["X-Gone"]}},
    ],
)
async def test_the_service_is_asked_for_the_same_as_by_a_plain_request(options: dict[str, object]) -> None:
    async with RawUpstream() as upstream:
        async with serving(gateway_to(upstream.url, [{"service": "up", **options}])) as port:
            await talk(port, request("GET /api/x?q=1", "X-Gone: 1", host=f"127.0.0.1:{port}"))
            await refusal(port, "/api/x?q=1", additional_headers={"X-Gone": "1"})
    plain, socket = upstream.received
    assert plain.split(b"\r\n")[0] == socket.split(b"\r\n")[0]
    for name in (b"host", b"x-forwarded-prefix", b"x-forwarded-for", b"x-own", b"x-gone", b"via"):
        assert values(plain, name) == values(socket, name)


@pytest.mark.spec("X-28")
async def test_a_canary_gets_the_sockets_that_are_meant_for_it() -> None:
    async with Service() as old, Service() as new:
        gateway = gateway_to(old.url)
        gateway.configure_services({"next": new.url})
        gateway.configure_routes(
            [{"path": "/api/*", "service": "up", "canary": [{"service": "next", "headers": {"x-beta": "*"}}]}]
        )
        async with serving(gateway) as port:
            async with connect(port), connect(port, additional_headers={"X-Beta": "1"}):
                assert (len(old.requests), len(new.requests)) == (1, 1)


async def test_a_cached_answer_is_none_to_a_handshake() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok"
    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url, [{"path": "/api/*", "service": "up", "cache_ttl": 60}])
        async with serving(gateway) as port:
            for _ in range(2):
                await talk(port, request("GET /api/x", host=f"127.0.0.1:{port}"))
            assert len(upstream.received) == 1
            assert (await refusal(port, "/api/x")).status_code == 200
            assert len(upstream.received) == 2
