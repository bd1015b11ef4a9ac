"""A user logs in with a real browser, at a gateway and a real OpenID Connect server."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request, WebSocket
from joserfc.jwk import RSAKey
from starlette.responses import HTMLResponse

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import OAuth2AuthProvider
from tests.api_gateway.gateway_support import serving
from tests.browser.browser_support import chromium
from tests.support.oidc import SECRET, OidcServer
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("chromium", "oidc"), pytest.mark.spec("X-27", "S-051", "B10")]

service = FastAPI()
orders: list[str] = []


@service.get("/app/page")
async def page_of(request: Request) -> HTMLResponse:
    return HTMLResponse(f"<!doctype html><title>{request.headers['x-auth-subject']}</title><p>hello")


@service.post("/app/order")
async def order(request: Request) -> str:
    orders.append(request.headers["x-auth-subject"])
    return orders[-1]


@service.websocket("/app/ws")
async def socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.headers["x-auth-subject"])
    await socket.close()


DIAL = """new Promise(done => {
  const socket = new WebSocket("ws://%s/app/ws");
  socket.onmessage = event => done(event.data);
  socket.onerror = () => done("refused");
})"""


async def test_a_person_logs_in_works_and_logs_out_and_another_page_gets_nothing(processes: Processes) -> None:
    key = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
    server = OidcServer(processes, dict(key.as_dict(private=True)))
    await server.start()
    login = {"session_secret": "a-secret-of-sessions-with-32-bytes-or-more"}
    gateway = APIGateway(services={"up": service}, enable_metrics=False)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/app/*", "service": "up", "auth": {"login": True}}])
    gateway.configure_auth([OAuth2AuthProvider("web", SECRET, issuer=server.url, login=login)])
    async with serving(gateway, ws="websockets-sansio") as port:
        here = f"127.0.0.1:{port}"
        async with chromium() as page:
            await page.open(f"http://{here}/app/page")
            await page.until("document.getElementById('go') !== null")
            await page.value(
                "document.querySelector('input').value = 'alice'; document.getElementById('go').click(); 1"
            )
            await page.until("document.title === 'alice'")
            assert await page.value("location.pathname + location.search") == "/app/page"
            assert await page.value("document.cookie") == "", "no script can read the session"
            sent = "fetch('/app/order', {method: 'POST'}).then(answer => answer.json())"
            assert await page.value(sent) == "alice"
            assert await page.value(DIAL % here) == "alice"

            # A page of another origin of the same site, to which SameSite=Lax says nothing.
            await page.open(f"{server.url}/.well-known/openid-configuration")
            await page.until("location.pathname.endsWith('configuration')")
            forged = f"fetch('http://{here}/app/order', {{method: 'POST', mode: 'no-cors', credentials: 'include'}})"
            await page.value(f"{forged}.then(() => 1)")
            assert await page.value(DIAL % here) == "refused"
            assert orders == ["alice"], "the cookie came along, and did not count"

            await page.open(f"http://{here}/auth/logout")
            await page.until("document.querySelector('form') !== null")
            await page.value("document.querySelector('button[value=yes]').click(); 1")
            await page.until(f"location.host === '{here}'")
            await page.open(f"http://{here}/app/page")
            await page.until("document.getElementById('go') !== null")
            assert page.errors == []
