"""Keys that an issuer publishes: discovery, rotation, and what happens while it can't be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from auth_support import Clock, IssuerServer, claims, ec, key_set, rsa, start, token, tools
from joserfc.jwk import OctKey

from fastapi_mesh.api_gateway.auth import (
    CredentialError,
    JWTAuthProvider,
    ProviderUnavailableError,
    UnknownCredentialError,
    Verifier,
)
from fastapi_mesh.api_gateway.auth.jwks import FIRST_RETRY

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def verifier_of(issuer: IssuerServer, clock: Clock, /, **settings: object) -> AsyncIterator[Verifier]:
    """Tokens of an issuer that is found by discovery, unless `settings` say where its keys are."""
    if "jwks_url" not in settings:
        settings.setdefault("issuer", issuer.url)
    production = bool(settings.pop("production", False))
    async with tools(clock, production=production) as made:
        verifier = JWTAuthProvider(**settings).open(made)  # type: ignore[arg-type]
        try:
            yield verifier
        finally:
            await verifier.aclose()


def good(issuer: IssuerServer, key: object = None, **changed: object) -> str:
    return token(claims(iss=issuer.url, **changed), key=key or issuer.keys[0], algorithm="RS256")


@pytest.mark.spec("X-27", "B10")
async def test_keys_are_found_by_discovery_and_fetched_once_for_all() -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, Clock()) as verifier:
        issuer.gate.clear()
        credentials = [good(issuer, sub=str(number)) for number in range(50)]
        waiting = [start(verifier.authenticate(each)) for each in credentials]
        await asyncio.sleep(0)
        issuer.gate.set()
        principals = await asyncio.gather(*waiting)

        assert [each.subject for each in principals] == [str(number) for number in range(50)]
        assert issuer.hits == {"/.well-known/openid-configuration": 1, "/keys": 1}


@pytest.mark.spec("X-27", "B10")
async def test_a_rotation_is_seen_at_once_and_costs_one_fetch_however_many_wait() -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, Clock()) as verifier:
        before = good(issuer)
        await verifier.authenticate(before)
        issuer.keys = [rsa("second")]
        issuer.gate.clear()
        waiting = [start(verifier.authenticate(good(issuer, sub=str(n)))) for n in range(50)]
        await asyncio.sleep(0)
        issuer.gate.set()

        assert len(await asyncio.gather(*waiting)) == 50
        assert issuer.hits["/keys"] == 2
        assert verifier.known(before) is None, "what old keys had shown is forgotten with them"
        with pytest.raises(CredentialError):
            await verifier.authenticate(before)


@pytest.mark.spec("X-27")
async def test_made_up_keys_cost_the_issuer_one_fetch_per_cool_down() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock, keys_cooldown=30.0) as verifier:
        await verifier.authenticate(good(issuer))
        for _ in range(3):
            for number in range(20):
                made_up = token(claims(iss=issuer.url), key=rsa("evil"), algorithm="RS256", kid=f"evil-{number}")
                with pytest.raises(UnknownCredentialError):
                    await verifier.authenticate(made_up)
            await clock.advance(10)
        assert issuer.hits["/keys"] == 2

        await clock.advance(1)
        with pytest.raises(UnknownCredentialError):
            await verifier.authenticate(token(claims(iss=issuer.url), key=rsa("evil"), algorithm="RS256"))
        assert issuer.hits["/keys"] == 3


@pytest.mark.spec("X-27")
async def test_tokens_of_other_issuers_and_algorithms_cost_the_issuer_nothing() -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, Clock()) as verifier:
        for made_up in (
            token(claims(iss="https://evil.example"), key=rsa(), algorithm="RS256"),
            "not.a.token",
            "x" * 20_000,
        ):
            with pytest.raises(UnknownCredentialError):
                await verifier.authenticate(made_up)
        assert issuer.hits == {}


@pytest.mark.spec("X-27")
async def test_the_last_good_keys_stay_while_the_issuer_is_away_and_not_for_ever() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock, keys_ttl=60.0, keys_stale=3600.0) as verifier:
        far = {"exp": 1_800_000_000}
        await verifier.authenticate(good(issuer, **far))
        await issuer.stop()
        for number in range(5):
            await clock.advance(600)
            assert (await verifier.authenticate(good(issuer, sub=str(number), **far))).subject == str(number)
            await settle(verifier)

        await clock.advance(601)
        with pytest.raises(ProviderUnavailableError) as unavailable:
            await verifier.authenticate(good(issuer, sub="late", **far))
        assert unavailable.value.retry_after is not None
        await issuer.start()
        await clock.advance(60)
        assert (await verifier.authenticate(good(issuer, sub="late", **far))).subject == "late"


async def settle(verifier: Verifier) -> None:
    """Let a fetch in the background end."""
    flights = verifier._keys._flights  # type: ignore[attr-defined]
    while flights._running:
        await asyncio.wait(list(flights._running.values()))


@pytest.mark.spec("X-27")
async def test_keys_are_renewed_in_the_background_and_nobody_waits() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock, keys_ttl=60.0) as verifier:
        await verifier.authenticate(good(issuer))
        await clock.advance(61)
        issuer.gate.clear()

        assert (await verifier.authenticate(good(issuer, sub="bob"))).subject == "bob"
        assert (await verifier.authenticate(good(issuer, sub="carol"))).subject == "carol"
        issuer.gate.set()
        await settle(verifier)
        assert issuer.hits["/keys"] == 2


@pytest.mark.spec("X-27")
async def test_an_issuer_that_is_away_from_the_start_is_not_hammered() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock) as verifier:
        path = "/.well-known/openid-configuration"
        page, issuer.pages[path] = issuer.pages[path], (500, {})
        for _ in range(20):
            with pytest.raises(ProviderUnavailableError):
                await verifier.authenticate(good(issuer))
        assert issuer.hits[path] == 1

        issuer.pages[path] = page
        await clock.advance(FIRST_RETRY)
        assert (await verifier.authenticate(good(issuer))).subject == "alice"


@pytest.mark.spec("X-27")
async def test_a_new_key_that_can_not_be_fetched_is_no_wrong_key() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock, keys_cooldown=30.0) as verifier:
        await verifier.authenticate(good(issuer))
        issuer.keys, pages = [rsa("second")], dict(issuer.pages)
        issuer.pages["/keys"] = (503, {})
        for _ in range(20):
            with pytest.raises(ProviderUnavailableError) as unavailable:
                await verifier.authenticate(good(issuer))
        assert unavailable.value.retry_after == FIRST_RETRY
        assert issuer.hits["/keys"] == 2

        issuer.pages = pages
        await clock.advance(FIRST_RETRY)
        assert (await verifier.authenticate(good(issuer))).subject == "alice"
        with pytest.raises(UnknownCredentialError):
            await verifier.authenticate(token(claims(iss=issuer.url), key=rsa("evil"), algorithm="RS256", kid="evil"))


@pytest.mark.spec("X-27")
async def test_a_client_that_goes_away_does_not_end_the_fetch_that_others_wait_for() -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, Clock()) as verifier:
        issuer.gate.clear()
        first, second = (start(verifier.authenticate(good(issuer, sub=name))) for name in "ab")
        await issuer.asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        issuer.gate.set()

        assert (await second).subject == "b"
        assert issuer.hits["/keys"] == 1


def redirect(issuer: IssuerServer) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: {issuer.url}/elsewhere\r\ncontent-length: 0\r\n\r\n".encode()


BAD_PAGES: dict[str, tuple[str, Callable[[IssuerServer], object]]] = {
    "keys: a redirect": ("/keys", redirect),
    "keys: an error": ("/keys", lambda issuer: (503, {})),
    "keys: a list": ("/keys", lambda issuer: [1]),
    "keys: none": ("/keys", lambda issuer: {"keys": []}),
    "keys: no list": ("/keys", lambda issuer: {"keys": {"a": 1}}),
    "keys: nothing that can be read": ("/keys", lambda issuer: {"keys": [None, 1, {}, {"kty": "RSA"}, {"kty": "new"}]}),
    "keys: secrets only": ("/keys", lambda issuer: key_set(OctKey.import_key("x" * 40))),
    "keys: another curve": ("/keys", lambda issuer: key_set(ec())),
    "keys: not JSON": ("/keys", lambda issuer: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n<>"),
    "keys: too long": ("/keys", lambda issuer: {"keys": [], "x": "x" * 1_100_000}),
    "keys: a name twice": (
        "/keys",
        lambda issuer: b'HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{"keys": [],"keys": [ ]}',
    ),
    "metadata: of another issuer": (
        "/.well-known/openid-configuration",
        lambda issuer: issuer.metadata(issuer="https://evil.example"),
    ),
    "metadata: no keys": ("/.well-known/openid-configuration", lambda issuer: issuer.metadata(jwks_uri=None)),
    "metadata: keys over plain HTTP": (
        "/.well-known/openid-configuration",
        lambda issuer: issuer.metadata(jwks_uri="http://id.example/keys"),
    ),
    "metadata: keys in a file": (
        "/.well-known/openid-configuration",
        lambda issuer: issuer.metadata(jwks_uri="file:///etc/passwd"),
    ),
}


@pytest.mark.spec("X-27", "B10")
@pytest.mark.parametrize("name", BAD_PAGES)
async def test_what_an_issuer_should_not_answer_gives_no_keys(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, Clock()) as verifier:
        path, page = BAD_PAGES[name]
        issuer.pages[path] = page(issuer)

        with pytest.raises(ProviderUnavailableError):
            await verifier.authenticate(good(issuer))
        assert "/elsewhere" not in issuer.hits
        assert "keys could not be fetched" in caplog.text


async def test_a_set_that_became_unusable_does_not_replace_the_good_one() -> None:
    clock = Clock()
    async with IssuerServer(rsa()) as issuer, verifier_of(issuer, clock, keys_ttl=60.0) as verifier:
        await verifier.authenticate(good(issuer))
        issuer.pages["/keys"] = {"keys": []}
        await clock.advance(61)
        await verifier.authenticate(good(issuer, sub="a"))
        await settle(verifier)

        assert (await verifier.authenticate(good(issuer, sub="b"))).subject == "b"


@pytest.mark.spec("B10")
async def test_the_other_well_known_place_is_tried_too() -> None:
    async with IssuerServer(rsa()) as issuer:
        name = f"{issuer.url}/realms/shop"
        issuer.pages["/.well-known/oauth-authorization-server/realms/shop"] = issuer.metadata(issuer=name)
        async with verifier_of(issuer, Clock(), issuer=name) as verifier:
            made = token(claims(iss=name), key=rsa(), algorithm="RS256")
            assert (await verifier.authenticate(made)).subject == "alice"
            assert list(issuer.hits)[:2] == [
                "/realms/shop/.well-known/openid-configuration",
                "/.well-known/oauth-authorization-server/realms/shop",
            ]


@pytest.mark.spec("B9", "X-27")
async def test_secrets_in_a_published_set_are_never_keys() -> None:
    secret = OctKey.import_key("x" * 40, {"kid": "shared"})
    async with IssuerServer(rsa(), secret) as issuer, verifier_of(issuer, Clock()) as verifier:
        with pytest.raises(CredentialError):
            await verifier.authenticate(token(claims(iss=issuer.url), key=secret))
        assert (await verifier.authenticate(good(issuer))).subject == "alice"


@pytest.mark.spec("X-27")
async def test_a_weak_published_key_is_named_and_not_used_in_production(caplog: pytest.LogCaptureFixture) -> None:
    weak = rsa("weak", 1024)
    for production in (False, True):
        async with IssuerServer(rsa(), weak) as issuer, verifier_of(issuer, Clock(), production=production) as verifier:
            assert (await verifier.authenticate(good(issuer))).subject == "alice"
            made = good(issuer, weak)
            if production:
                with pytest.raises(CredentialError):
                    await verifier.authenticate(made)
            else:
                assert (await verifier.authenticate(made)).subject == "alice"
                assert "1024 bits, fewer than 2048 (kid 'weak')" in caplog.text
