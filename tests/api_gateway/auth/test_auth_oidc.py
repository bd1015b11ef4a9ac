"""Against a real OpenID Connect server, npm's `oidc-provider`."""

from __future__ import annotations

from typing import Any

import pytest
from auth_support import Upstream, bearer, calling, ec, rsa

from fastapi_mesh.api_gateway.auth import JWTAuthProvider, OAuth2AuthProvider
from tests.support.oidc import RESOURCE, SECRET, OidcServer
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.server("oidc")]


def private(key: Any) -> dict[str, Any]:
    return {**key.as_dict(private=True), "use": "sig"}


def oauth2(server: OidcServer, **settings: object) -> OAuth2AuthProvider:
    given = {"audience": RESOURCE, "token_url": f"{server.url}/token", "keys_cooldown": 0.1, **settings}
    return OAuth2AuthProvider("gateway", SECRET, **given)  # type: ignore[arg-type]


@pytest.mark.spec("X-27", "S-051", "B10")
async def test_its_jwts_are_checked_by_the_keys_that_discovery_finds(processes: Processes) -> None:
    server = OidcServer(processes, private(rsa()), private(ec()))
    await server.start()
    upstream = Upstream()
    route = {"auth": {"scopes": ["read"]}}
    async with calling(upstream, oauth2(server), route=route) as client:
        good = await client.get("/api/x", headers=bearer(await server.token(scope="read write")))
        narrow = await client.get("/api/x", headers=bearer(await server.token(scope="write")))
        elsewhere = await client.get("/api/x", headers=bearer(await server.token(resource="https://other.example")))

    assert (good.status_code, narrow.status_code) == (200, 403)
    assert elsewhere.status_code == 200, "its audience is what the server is set up for, whatever was asked"
    assert (upstream.headers["x-auth-subject"], upstream.headers["x-auth-provider"]) == ("caller", "oauth2")


@pytest.mark.spec("X-27", "B10")
async def test_opaque_tokens_are_asked_about(processes: Processes) -> None:
    server = OidcServer(processes, private(rsa()))
    await server.start()
    upstream = Upstream()
    async with calling(upstream, oauth2(server, audience=None)) as client:
        opaque = await server.token(resource=None)
        good = await client.get("/api/x", headers=bearer(opaque))
        wrong = await client.get("/api/x", headers=bearer(opaque + "x"))
        server.kill()
        remembered = await client.get("/api/x", headers=bearer(opaque))
        unknown = await client.get("/api/x", headers=bearer("another"))
        await server.start()
        forgotten = await client.get("/api/x", headers=bearer(opaque + "y"))

    assert opaque.count(".") == 0
    assert [good.status_code, wrong.status_code] == [200, 401]
    assert upstream.headers["x-auth-subject"] == "caller"
    assert [remembered.status_code, unknown.status_code, forgotten.status_code] == [200, 503, 401]


@pytest.mark.spec("X-27", "B10")
async def test_a_gateway_with_the_wrong_secret_refuses_nobody_for_it(processes: Processes) -> None:
    server = OidcServer(processes, private(rsa()))
    await server.start()
    provider = OAuth2AuthProvider("gateway", "wrong", introspection_url=f"{server.url}/token/introspection")
    async with calling(Upstream(), provider) as client:
        response = await client.get("/api/x", headers=bearer(await server.token(resource=None)))

    assert response.status_code == 503, "401 would send the client to log in again, for nothing"


@pytest.mark.spec("X-27", "B9")
async def test_keys_rotate_and_the_server_goes_away_and_comes_back(processes: Processes) -> None:
    server = OidcServer(processes, private(rsa()))
    await server.start()
    provider = JWTAuthProvider(issuer=server.url, audience=RESOURCE, token_type="at+jwt", keys_cooldown=0.001)
    async with calling(Upstream(), provider) as client:
        before = await server.token()
        also_before = await server.token(scope="write")
        assert (await client.get("/api/x", headers=bearer(before))).status_code == 200

        server.kill()
        assert (await client.get("/api/x", headers=bearer(before))).status_code == 200
        assert (await client.get("/api/x", headers=bearer(also_before))).status_code == 200, "the last keys stay"

        server.keys = [private(rsa("second")), private(rsa())]
        await server.start()
        after = await server.token()
        assert (await client.get("/api/x", headers=bearer(after))).status_code == 200, "seen at once"
        assert (await client.get("/api/x", headers=bearer(before))).status_code == 200, "the old key is published still"

        server.kill()
        server.keys = [private(rsa("third"))]
        await server.start()
        last = await server.token()
        assert (await client.get("/api/x", headers=bearer(last))).status_code == 200
        assert (await client.get("/api/x", headers=bearer(before))).status_code == 401, "and gone with its key"


@pytest.mark.spec("X-27", "B10")
async def test_the_gateway_s_own_token_for_a_service_is_one_that_the_server_knows(processes: Processes) -> None:
    server = OidcServer(processes, private(rsa()))
    await server.start()
    upstream = Upstream()
    wanted = {
        "token_url": f"{server.url}/token",
        "client_id": "gateway",
        "client_secret": SECRET,
        "scopes": ["read"],
        "resource": RESOURCE,
    }
    async with calling(upstream, route={"upstream_token": wanted}) as client:
        assert (await client.get("/api/x")).status_code == 200
    token = upstream.headers["authorization"].removeprefix("Bearer ")

    async with calling(upstream, oauth2(server)) as client:
        assert (await client.get("/api/x", headers=bearer(token))).status_code == 200
    assert upstream.headers["x-auth-subject"] == "gateway"
