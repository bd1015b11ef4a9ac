"""Users log in, stay, and log out with a real OpenID Connect server, npm's `oidc-provider`, all of it over sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from auth_support import Upstream, rsa
from login_support import PAGE
from login_support import SECRET as SESSIONS

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import OAuth2AuthProvider
from tests.api_gateway.gateway_support import serving
from tests.support.oidc import SECRET, OidcServer
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("oidc"), pytest.mark.spec("X-27", "S-051", "B10")]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OidcServer]:
    with Processes(tmp_path_factory.mktemp("oidc")) as running:
        server = OidcServer(running, {**rsa().as_dict(private=True), "use": "sig"}, web_ttl=2)
        await server.start()
        yield server


@asynccontextmanager
async def site(server: OidcServer, upstream: Upstream, **login: object) -> AsyncIterator[str]:
    """The address of a gateway on a socket, at which users log in with `server`."""
    provider = OAuth2AuthProvider(
        "web",
        SECRET,
        issuer=server.url,
        login={"session_secret": SESSIONS, "scopes": ["openid", "profile"], **login},
    )
    gateway = APIGateway(services={"up": upstream}, enable_metrics=False)  # type: ignore[dict-item]
    gateway.configure_routes(
        [
            {"path": "/app/*", "service": "up", "auth": {"login": True}},
            {"path": "/admin/*", "service": "up", "auth": {"login": True, "roles": ["admin"]}},
        ]
    )
    gateway.configure_auth([provider])
    async with serving(gateway) as port:
        yield f"http://127.0.0.1:{port}"


def browser() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False, headers=PAGE, follow_redirects=True)


async def log_in(client: httpx2.AsyncClient, url: str, name: str) -> httpx2.Response:
    """Go to a page, and through the form of the server; the answer in the end."""
    form = await client.get(url)
    assert form.status_code == 200, form.text
    assert "<form" in form.text
    return await client.post(form.url, data={"login": name})


async def test_a_user_logs_in_is_renewed_and_logs_out(server: OidcServer) -> None:
    upstream = Upstream()
    async with site(server, upstream, forward_access_token=True) as url, browser() as client:
        page = await log_in(client, f"{url}/app/x?a=1", "alice")
        assert (page.status_code, str(page.url)) == (200, f"{url}/app/x?a=1")
        told = upstream.headers
        assert (told["x-auth-subject"], told["x-auth-roles"]) == ("alice", "user")
        assert "mesh-session" not in told.get("cookie", "")
        assert (await client.get(f"{url}/admin/x")).headers["x-mesh-reason"] == "missing-role"

        first = told["authorization"]
        async with asyncio.timeout(20):
            while upstream.headers["authorization"] == first:  # as long as the access token is good: 2 s
                answers = await asyncio.gather(*(client.get(f"{url}/app/y") for _ in range(5)))
                assert [each.status_code for each in answers] == [200] * 5
        assert (await client.get(f"{url}/app/z")).status_code == 200

        out = await client.get(f"{url}/auth/logout")
        assert str(out.url).startswith(f"{server.url}/session/end")
        xsrf = re.search(r'name="xsrf" value="([^"]+)"', out.text)
        assert xsrf is not None, out.text
        done = await client.post(f"{server.url}/session/end/confirm", data={"xsrf": xsrf[1], "logout": "yes"})
        assert done.history[0].headers["location"].startswith(f"{url}/")
        again = await client.get(f"{url}/app/x")
        assert "<form" in again.text, "logged out here and there"


async def test_who_is_logged_in_at_the_server_needs_no_form_in_another_browser_session(server: OidcServer) -> None:
    upstream = Upstream()
    async with site(server, upstream) as url, browser() as client:
        await log_in(client, f"{url}/admin/x", "root")
        assert upstream.headers["x-auth-roles"] == "admin"
        del client.cookies["mesh-session"]
        again = await client.get(f"{url}/app/x")
        assert again.status_code == 200
        assert [urlsplit(str(each.url)).path for each in again.history] == ["/app/x", "/auth", "/auth/callback"]


async def test_a_refused_login_and_a_code_that_was_used(server: OidcServer) -> None:
    async with site(server, Upstream()) as url:
        async with browser() as client:
            refused = await log_in(client, f"{url}/app/x", "nobody")
            assert (refused.status_code, refused.headers["x-mesh-reason"]) == (403, "login-refused")
            assert "access_denied" in refused.json()["detail"]
        async with browser() as client, browser() as other:
            page = await log_in(client, f"{url}/app/x", "alice")
            callback = next(str(each.url) for each in page.history if "/auth/callback" in str(each.url))
            assert dict(parse_qsl(urlsplit(callback).query))["iss"] == server.url
            for again in (client, other):
                answer = await again.get(callback)
                assert (answer.status_code, answer.headers["x-mesh-reason"]) == (400, "login-state")


async def test_a_code_is_of_no_use_without_the_verifier_of_its_login(server: OidcServer) -> None:
    """Code injection: the server itself refuses a code of another login, by PKCE."""
    async with site(server, Upstream()) as url, browser() as victim, browser() as attacker:
        victim.follow_redirects = attacker.follow_redirects = False
        codes: list[dict[str, Any]] = []
        for client in (victim, attacker):
            answer = await client.get(f"{url}/app/x")
            while "/auth/callback" not in answer.headers.get("location", ""):
                if "location" in answer.headers:
                    answer = await client.get(answer.url.join(answer.headers["location"]))
                else:
                    answer = await client.post(answer.url, data={"login": "alice"})
            codes.append(dict(parse_qsl(urlsplit(answer.headers["location"]).query)))
        injected = {**codes[1], "code": codes[0]["code"]}
        back = await attacker.get(f"{url}/auth/callback", params=injected)
        assert (back.status_code, back.headers["x-mesh-reason"]) == (400, "login-state")
