"""Tokens of an authorization server: checked by its keys, or by asking it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import pytest
from auth_support import NOW, SECRET, Clock, IssuerServer, claims, key_set, rsa, start, token, tools
from joserfc.jwk import OctKey

from fastapi_mesh.api_gateway.auth import (
    CredentialError,
    ExpiredCredentialError,
    OAuth2AuthProvider,
    ProviderUnavailableError,
    UnknownCredentialError,
    Verifier,
)
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def verifier_of(clock: Clock, /, **settings: object) -> AsyncIterator[Verifier]:
    settings = {"client_id": "gateway", "client_secret": SECRET, **settings}
    async with tools(clock) as made:
        verifier = OAuth2AuthProvider(**settings).open(made)  # type: ignore[arg-type]
        try:
            yield verifier
        finally:
            await verifier.aclose()


def active(**changed: object) -> dict[str, object]:
    return {"active": True, "sub": "alice", "scope": "read write", "exp": NOW + 600, **changed}


def jwt_of(issuer: str, **changed: object) -> str:
    return token(claims(iss=issuer, aud="gateway", **changed), key=rsa(), algorithm="RS256")


# The server is found by what the description gives.


@pytest.mark.spec("S-051", "B10")
async def test_the_origin_of_the_token_url_is_the_issuer_where_nothing_else_is_given() -> None:
    async with IssuerServer(rsa()) as issuer:
        issuer.pages["/introspect"] = active()
        settings = {"authorization_url": f"{issuer.url}/authorize", "token_url": f"{issuer.url}/token"}
        async with verifier_of(Clock(), **settings) as verifier:
            by_keys = await verifier.authenticate(jwt_of(issuer.url))
            by_asking = await verifier.authenticate("opaque")
            with pytest.raises(CredentialError):
                await verifier.authenticate(token(claims(iss=issuer.url, aud="other"), key=rsa(), algorithm="RS256"))

    assert (by_keys.subject, by_asking.subject, by_asking.scopes) == ("alice", "alice", {"read", "write"})
    assert issuer.hits == {"/.well-known/openid-configuration": 1, "/keys": 1, "/introspect": 1}


@pytest.mark.spec("B10")
async def test_metadata_with_another_token_url_is_another_server_s() -> None:
    async with (
        IssuerServer(rsa()) as issuer,
        verifier_of(Clock(), token_url=f"{issuer.url}/realms/shop/token") as verifier,
    ):
        for credential in (jwt_of(issuer.url), "opaque"):
            with pytest.raises(ProviderUnavailableError):
                await verifier.authenticate(credential)


@pytest.mark.spec("B10")
async def test_an_issuer_s_name_may_end_in_a_slash() -> None:
    async with IssuerServer(rsa()) as issuer:
        issuer.pages["/.well-known/openid-configuration"] = issuer.metadata(issuer=f"{issuer.url}/")
        async with verifier_of(Clock(), token_url=f"{issuer.url}/token") as verifier:
            assert (await verifier.authenticate(jwt_of(f"{issuer.url}/"))).subject == "alice"


# Introspection.


@pytest.mark.spec("B10", "X-27")
async def test_the_gateway_proves_who_asks_and_asks_once_for_all() -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = active()
        url = f"{issuer.url}/introspect"
        async with verifier_of(Clock(), introspection_url=url, client_id="gate way", client_secret="s:e c") as verifier:
            issuer.gate.clear()
            waiting = [start(verifier.authenticate("opaque")) for _ in range(20)]
            await issuer.asked.wait()
            waiting[0].cancel()
            issuer.gate.set()
            principals = await asyncio.gather(*waiting[1:])
            assert verifier.known("opaque") is principals[0]

    assert issuer.hits == {"/introspect": 1}
    head, body = issuer.requests[0]
    assert parse_qs(body.decode()) == {"token": ["opaque"], "token_type_hint": ["access_token"]}
    basic = next(line[21:] for line in head.split(b"\r\n") if line.lower().startswith(b"authorization: basic "))
    assert base64.b64decode(basic) == b"gate+way:s%3Ae+c", "encoded first (RFC 6749 section 2.3.1)"


@pytest.mark.spec("B10")
async def test_the_secret_can_go_in_the_form() -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = active()
        async with verifier_of(Clock(), introspection_url=f"{issuer.url}/introspect", client_auth="post") as verifier:
            await verifier.authenticate("opaque")

    head, body = issuer.requests[0]
    assert parse_qs(body.decode())["client_secret"] == [SECRET]
    assert b"authorization" not in head.lower()


@pytest.mark.spec("B10", "X-27")
async def test_what_is_active_is_remembered_for_a_minute_and_never_past_its_end() -> None:
    clock = Clock()
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = lambda body: active(exp=NOW + (30 if b"short" in body else 600))
        async with verifier_of(clock, introspection_url=f"{issuer.url}/introspect", leeway=0) as verifier:
            await verifier.authenticate("short")
            await verifier.authenticate("long")
            await clock.advance(30)
            assert (verifier.known("short"), verifier.known("long") is None) == (None, False)
            with pytest.raises(ExpiredCredentialError):
                await verifier.authenticate("short")
            await clock.advance(30)
            assert verifier.known("long") is None

            issuer.pages["/introspect"] = {"active": False}
            with pytest.raises(UnknownCredentialError):
                await verifier.authenticate("long")


@pytest.mark.spec("B10")
async def test_a_client_s_own_token_has_the_client_for_its_subject() -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = {"active": True, "client_id": "batch", "aud": "anything"}
        async with verifier_of(Clock(), introspection_url=f"{issuer.url}/introspect") as verifier:
            principal = await verifier.authenticate("opaque")

    assert (principal.subject, principal.expires) == ("batch", None)


NOT_ACTIVE: dict[str, Callable[[IssuerServer], object]] = {
    "inactive": lambda issuer: {"active": False},
    "active as text": lambda issuer: active(active="true"),
    "active as a number": lambda issuer: active(active=1),
    "active missing": lambda issuer: {"sub": "alice"},
    "expired": lambda issuer: active(exp=NOW - 60),
    "not yet": lambda issuer: active(nbf=NOW + 60),
    "of another issuer": lambda issuer: active(iss="https://evil.example"),
    "for somebody else": lambda issuer: active(aud="other"),
    "for nobody": lambda issuer: active(aud=None),
    "nobody's": lambda issuer: {"active": True, "aud": "shop"},
    "bound to a key": lambda issuer: active(aud="shop", cnf={"jkt": "x"}),
    "a scope that is none": lambda issuer: active(aud="shop", scope=7),
}


@pytest.mark.spec("B10", "X-27")
@pytest.mark.parametrize("name", NOT_ACTIVE)
async def test_what_a_server_does_not_say_clearly_is_a_refusal(name: str) -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = NOT_ACTIVE[name](issuer)
        settings = {"introspection_url": f"{issuer.url}/introspect", "issuer": issuer.url, "audience": "shop"}
        async with verifier_of(Clock(), **settings) as verifier:
            with pytest.raises(CredentialError):
                await verifier.authenticate("opaque")
            assert verifier.known("opaque") is None


@pytest.mark.spec("B10", "X-27")
@pytest.mark.parametrize("page", [(401, {}), (500, {}), (302, {}), [1], (200, "x"), b"nonsense\r\n\r\n"])
async def test_a_server_that_can_not_be_asked_is_no_refusal(page: object) -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = page
        async with verifier_of(Clock(), introspection_url=f"{issuer.url}/introspect") as verifier:
            with pytest.raises(ProviderUnavailableError) as unavailable:
                await verifier.authenticate("opaque")
            assert unavailable.value.retry_after == 1.0

            issuer.pages["/introspect"] = active()
            assert (await verifier.authenticate("opaque")).subject == "alice"


@pytest.mark.spec("X-27")
@pytest.mark.parametrize("credential", ["", "a b", "a,b", "é", "a\nb", "=", "x" * 16_385])
async def test_what_is_no_token_in_form_is_not_asked_about(credential: str) -> None:
    async with (
        IssuerServer() as issuer,
        verifier_of(Clock(), introspection_url=f"{issuer.url}/introspect") as verifier,
    ):
        with pytest.raises(UnknownCredentialError):
            await verifier.authenticate(credential)
        assert issuer.hits == {}


@pytest.mark.spec("X-27")
async def test_a_flood_of_made_up_tokens_is_none_for_the_server() -> None:
    async with IssuerServer() as issuer:
        issuer.pages["/introspect"] = {"active": False}
        address = f"{issuer.url}/introspect"
        async with verifier_of(Clock(), introspection_url=address, timeout=60.0) as verifier:  # on a busy machine too
            issuer.gate.clear()
            waiting = [start(verifier.authenticate(f"made-up-{number}")) for number in range(300)]
            await issuer.asked.wait()
            issuer.gate.set()
            errors = await asyncio.gather(*waiting, return_exceptions=True)

    assert sum(isinstance(error, ProviderUnavailableError) for error in errors) == 300 - 256
    assert issuer.hits["/introspect"] == 256


# Which way a token goes.


@pytest.mark.spec("B10", "X-27")
async def test_a_jwt_that_is_wrong_is_not_asked_about() -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(Clock(), issuer=issuer.url) as verifier:
        for made in (
            token(claims(iss=issuer.url, aud="gateway"), key=rsa("evil"), algorithm="RS256", kid="rsa"),
            token(claims(iss=issuer.url, aud="gateway"), key=OctKey.import_key(SECRET)),
            token(claims(iss=issuer.url, aud="gateway"), key=rsa(), algorithm="RS256", alg="none"),
        ):
            with pytest.raises(CredentialError):
                await verifier.authenticate(made)
        assert "/introspect" not in issuer.hits


@pytest.mark.spec("B10")
async def test_the_mode_says_which_way_all_tokens_go() -> None:
    async with IssuerServer(rsa()) as issuer:
        issuer.pages["/introspect"] = active()
        async with verifier_of(Clock(), issuer=issuer.url, mode="introspection") as asking:
            await asking.authenticate(jwt_of(issuer.url))
        assert issuer.hits["/introspect"] == 1
        async with verifier_of(Clock(), issuer=issuer.url, mode="jwt") as checking:
            await checking.authenticate(jwt_of(issuer.url))
            with pytest.raises(CredentialError):
                await checking.authenticate("opaque")
        assert issuer.hits["/introspect"] == 1
        async with verifier_of(Clock(), jwks=key_set(rsa())) as fixed:
            await fixed.authenticate(jwt_of("anybody"))
            with pytest.raises(CredentialError):
                await fixed.authenticate("opaque")


@pytest.mark.spec("S-051", "B10")
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "can't check a token"),
        ({"token_url": "http://id.example/token"}, "it is not https"),
        ({"token_url": "https://id.example/token", "algorithm": "HS256"}, "keys are public: no HS algorithm"),
        ({"introspection_url": "https://id.example/i", "mode": "jwt"}, "jwt needs issuer, jwks_url or jwks"),
        ({"introspection_url": "https://id.example/i", "mode": "x"}, "is not one of auto, jwt, introspection"),
        ({"jwks": {"keys": []}}, "it has no key for RS256"),
    ],
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OAuth2AuthProvider("gateway", SECRET, **settings)  # type: ignore[arg-type]
    assert problem in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.spec("S-051", "B10")
def test_the_authorization_url_is_for_the_description_and_secrets_are_not_shown() -> None:
    provider = OAuth2AuthProvider(
        client_id="gateway-client",
        client_secret="gateway-secret",
        authorization_url="https://auth.example.com/oauth/authorize",
        token_url="https://auth.example.com/oauth/token",
    )

    assert provider.security_scheme() == {
        "type": "oauth2",
        "flows": {
            "authorizationCode": {
                "authorizationUrl": "https://auth.example.com/oauth/authorize",
                "tokenUrl": "https://auth.example.com/oauth/token",
                "scopes": {},
            }
        },
    }
    assert "gateway-secret" not in repr(provider)
