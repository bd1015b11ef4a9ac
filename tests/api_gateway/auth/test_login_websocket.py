"""A WebSocket that a browser's session opens: from the gateway's own pages only, unless its route names others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from login_support import PAGE, LoginIssuer, provider

from fastapi_mesh.api_gateway import APIGateway
from tests.api_gateway.gateway_support import serving
from tests.api_gateway.websocket.ws_support import Service, connect, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24", "X-27")]


@asynccontextmanager
async def logged_in(service: Service, websocket: dict[str, object], **login: object) -> AsyncIterator[tuple[int, str]]:
    """The port of a gateway, and the Cookie of a browser that has logged in there."""
    gateway = APIGateway(services={"up": service.url}, websocket=websocket, enable_metrics=False)
    gateway.configure_routes([{"path": "/app/*", "service": "up", "auth": {"login": True}}])
    async with LoginIssuer() as issuer:
        gateway.configure_auth([provider(issuer, login)])
        async with serving(gateway) as port, httpx2.AsyncClient(trust_env=False, headers=PAGE) as browser:
            browser.base_url = f"http://127.0.0.1:{port}"
            sent = await browser.get("/auth/login")
            await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}")
            yield port, f"mesh-session={browser.cookies['mesh-session']}"


async def test_pages_of_others_open_none_with_their_visitor_s_session() -> None:
    async with Service() as service, logged_in(service, {}, trusted_origins=["https://app.example"]) as (port, cookie):
        for origin in ("https://evil.example", "null", f"https://127.0.0.1:{port}", None):
            headers = {"Cookie": cookie, **({} if origin is None else {"Origin": origin})}
            response = await refusal(port, "/app/ws", additional_headers=headers)
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (403, "cross-site-request")
        assert service.requests == []
        for origin in (f"http://127.0.0.1:{port}", "https://app.example"):
            headers = {"Cookie": f"theirs=1; {cookie}", "Origin": origin}
            async with connect(port, "/app/ws", additional_headers=headers) as client:
                await client.send("x")
                assert await client.recv() == "x"
        assert service.requests[0].headers["cookie"] == "theirs=1"
        assert service.requests[0].headers["x-auth-subject"] == "alice"


async def test_a_route_names_whose_pages_may() -> None:
    allowed: dict[str, object] = {"allowed_origins": ["https://app.example"]}
    async with Service() as service, logged_in(service, allowed) as (port, cookie):
        headers = {"Cookie": cookie, "Origin": "https://app.example"}
        async with connect(port, "/app/ws", additional_headers=headers) as client:
            await client.send("x")
            assert await client.recv() == "x"
        headers["Origin"] = f"http://127.0.0.1:{port}"
        assert (await refusal(port, "/app/ws", additional_headers=headers)).status_code == 403


async def test_without_a_session_it_is_401_and_no_redirect() -> None:
    async with Service() as service, logged_in(service, {}) as (port, _):
        answer = await refusal(port, "/app/ws", additional_headers=PAGE)
        assert (answer.status_code, answer.headers["X-Mesh-Reason"]) == (401, "authentication-required")
        assert (await refusal(port, "/auth/login")).status_code == 403
        assert service.requests == []
