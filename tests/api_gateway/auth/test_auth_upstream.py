"""Tokens of the gateway's own for services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import pytest
from auth_support import SECRET, Clock, IssuerServer, Upstream, bearer, calling, client_of, start, tools

from fastapi_mesh import APIGateway
from fastapi_mesh.api_gateway.auth.tokens import UpstreamTokens, UpstreamTokenUnavailableError, new_upstream_tokens
from fastapi_mesh.config.edge.auth import UpstreamTokenConfig
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.anyio


def settings(issuer: IssuerServer, **changed: object) -> dict[str, object]:
    return {"token_url": f"{issuer.url}/token", "client_id": "gateway", "client_secret": SECRET, **changed}


@asynccontextmanager
async def tokens_of(issuer: IssuerServer, clock: Clock, **changed: object) -> AsyncIterator[UpstreamTokens]:
    counter = iter(range(1, 100))
    issuer.pages.setdefault(
        "/token", lambda body: {"access_token": f"t{next(counter)}", "token_type": "Bearer", "expires_in": 100}
    )
    async with tools(clock) as made:
        tokens = new_upstream_tokens(UpstreamTokenConfig.model_validate(settings(issuer, **changed)), made)
        try:
            yield tokens
        finally:
            await tokens.aclose()


async def settle(tokens: UpstreamTokens) -> None:
    """Let a call in the background end."""
    while running := list(tokens._flights._running.values()):
        await asyncio.wait(running)


@pytest.mark.spec("X-27", "B10")
async def test_a_token_is_fetched_once_for_all_and_renewed_before_it_ends() -> None:
    clock = Clock()
    async with IssuerServer() as issuer, tokens_of(issuer, clock, scopes=["a", "b"], audience="up") as tokens:
        issuer.gate.clear()
        waiting = [start(tokens.get()) for _ in range(20)]
        await issuer.asked.wait()
        waiting[0].cancel()
        issuer.gate.set()
        assert set(await asyncio.gather(*waiting[1:])) == {"t1"}
        assert issuer.hits["/token"] == 1
        assert parse_qs(issuer.requests[0][1].decode()) == {
            "grant_type": ["client_credentials"],
            "scope": ["a b"],
            "audience": ["up"],
        }

        await clock.advance(80)
        assert [await tokens.get() for _ in range(20)] == ["t1"] * 20, "the old one is good while the new one comes"
        await settle(tokens)
        assert await tokens.get() == "t2"
        assert issuer.hits["/token"] == 2

        await clock.advance(95.5)
        assert {await each for each in [start(tokens.get()) for _ in range(20)]} == {"t3"}
        assert issuer.hits["/token"] == 3


@pytest.mark.spec("B10")
async def test_a_token_that_is_renewed_in_vain_is_used_to_its_end() -> None:
    clock = Clock()
    async with IssuerServer() as issuer, tokens_of(issuer, clock) as tokens:
        await tokens.get()
        issuer.pages["/token"] = (500, {})
        await clock.advance(81)
        for _ in range(5):
            assert await tokens.get() == "t1"
        await settle(tokens)
        for _ in range(5):
            assert await tokens.get() == "t1"
        assert issuer.hits["/token"] == 2, "not asked again within a second"
        await clock.advance(14)
        with pytest.raises(UpstreamTokenUnavailableError):
            await tokens.get()


@pytest.mark.spec("B10", "X-27")
@pytest.mark.parametrize(
    "page",
    [
        (401, {"error": "invalid_client", "error_description": SECRET}),
        (500, {}),
        (302, {}),
        {},
        {"access_token": ""},
        {"access_token": 7, "token_type": "Bearer"},
        {"access_token": "a\r\nx: y", "token_type": "Bearer"},
        {"access_token": "a b", "token_type": "Bearer"},
        {"access_token": "a", "token_type": "DPoP"},
        {"access_token": "a"},
        [1],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n<>",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_is_no_token_is_not_sent(page: object, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with IssuerServer() as issuer, tokens_of(issuer, clock) as tokens:
        good, issuer.pages["/token"] = issuer.pages["/token"], page
        for _ in range(3):
            with pytest.raises(UpstreamTokenUnavailableError):
                await tokens.get()
        assert issuer.hits["/token"] == 1
        assert SECRET not in caplog.text

        issuer.pages["/token"] = good
        await clock.advance(1)
        assert await tokens.get() == "t1"


@pytest.mark.spec("X-27", "B10")
async def test_the_service_gets_the_gateway_s_token_and_the_client_s_goes() -> None:
    upstream, other = Upstream(), Upstream()
    async with IssuerServer() as issuer:
        issuer.pages["/token"] = {"access_token": "t1", "token_type": "bearer", "expires_in": 100}
        gateway = APIGateway(services={"up": upstream, "other": other})  # type: ignore[dict-item]
        gateway.configure_services({"other": {"instances": [], "upstream_token": settings(issuer)}})
        gateway.configure_routes(
            [
                {"path": "/up/*", "service": "up", "upstream_token": settings(issuer)},
                {"path": "/other/*", "service": "other", "mirror": {"service": "up"}},
                {"path": "/plain/*", "service": "up"},
            ]
        )
        async with gateway.opened({}), client_of(gateway) as client:
            await client.get("/up/x", headers=bearer("client's"))
            await client.get("/other/x", headers=bearer("client's"))
            assert other.headers["authorization"] == "Bearer t1"
            await upstream.reached(2)
            await client.get("/plain/x", headers=bearer("client's"))

    sent = [dict(scope["headers"])[b"authorization"] for scope in upstream.scopes]
    assert sent == [b"Bearer t1", b"Bearer client's", b"Bearer client's"], "a mirror gets no token of another service"
    assert issuer.hits["/token"] == 1, "equal settings share their tokens"


@pytest.mark.spec("B10")
async def test_a_token_that_the_service_refuses_is_not_used_again() -> None:
    upstream = Upstream(status=401)
    async with IssuerServer() as issuer:
        counter = iter(range(1, 100))
        issuer.pages["/token"] = lambda body: {"access_token": f"t{next(counter)}", "token_type": "Bearer"}
        async with calling(upstream, route={"upstream_token": settings(issuer)}) as client:
            for _ in range(3):
                assert (await client.get("/api/x")).status_code == 401

    sent = [dict(scope["headers"])[b"authorization"] for scope in upstream.scopes]
    assert sent == [b"Bearer t1", b"Bearer t2", b"Bearer t2"], "a service that refuses all is no reason to ask for more"


@pytest.mark.spec("B10")
async def test_without_a_token_the_service_is_not_called() -> None:
    upstream = Upstream()
    async with IssuerServer() as issuer:
        issuer.pages["/token"] = (503, {})
        async with calling(upstream, route={"upstream_token": settings(issuer)}) as client:
            response = await client.get("/api/x")

    assert (response.status_code, response.headers["x-mesh-reason"]) == (503, "upstream-token-unavailable")
    assert upstream.scopes == []
    assert SECRET not in response.text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"token_url": "http://id.example/token"}, "it is not https"),
        ({"client_secret": None}, "it needs client_secret or client_secret_file"),
        ({"client_secret_file": "/x"}, "one of them"),
    ],
)
def test_token_settings_that_can_not_be_right_are_refused(changed: dict[str, object], problem: str) -> None:
    given = {"token_url": "https://id.example/token", "client_id": "g", "client_secret": SECRET, **changed}
    with pytest.raises(ConfigurationError) as refused:
        APIGateway().configure_routes([{"path": "/a", "service": "a", "upstream_token": given}])
    assert problem in str(refused.value) or "(its value isn't shown)" in str(refused.value)
    assert SECRET not in str(refused.value)
