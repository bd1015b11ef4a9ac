"""Sessions that browsers keep: sealed, renewed once for all who ask, in several cookies where one is too small."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from auth_support import Clock, Upstream, start, tools
from login_support import PAGE, SECRET, LoginIssuer, browser_of, gateway_with, log_in, provider, reason, site

from fastapi_mesh.api_gateway.auth.base import CredentialError
from fastapi_mesh.api_gateway.auth.jose import Sealer
from fastapi_mesh.api_gateway.auth.login.engine import GRACE, RETRY, BrowserLogins
from fastapi_mesh.api_gateway.auth.login.session import Session
from fastapi_mesh.api_gateway.auth.login.state import Spent

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-27", "B10")]

RENEWED = 600 - 10
"""Seconds after which a session is renewed: the access token lasts 600."""


@asynccontextmanager
async def logins(
    login: Mapping[str, object] | None = None, **options: Any
) -> AsyncIterator[tuple[BrowserLogins, LoginIssuer, Clock]]:
    """The engine of a login on a clock that stands, and its server."""
    clock = Clock()
    async with LoginIssuer(clock.wall) as issuer, tools(clock, **options) as own:
        engine = provider(issuer, login).open_logins(own)
        try:
            yield engine, issuer, clock
        finally:
            await engine.aclose()


async def session_of(engine: BrowserLogins, issuer: LoginIssuer) -> Session:
    """A new session of alice."""
    attempt, sealed, address = await engine.begin("https://gw.example/auth/callback", "/app")
    taken = engine.take(attempt.state, sealed)
    assert taken == attempt
    issuer.authorize(address)
    return await engine.finish(attempt, f"code-{len(issuer.codes) - 1}")


async def found(engine: BrowserLogins, session: Session) -> Session:
    again = await engine.find(session.sealed)
    assert again is not None
    return again


# What is sealed.


def test_what_is_sealed_opens_with_the_same_secret_for_the_same_purpose_only() -> None:
    one, other = SECRET, "another-secret-of-sessions-with-32-bytes"
    sealed = Sealer([one], "session").seal(b"text")
    assert Sealer([one], "session").open(sealed) == b"text"
    assert Sealer([other, one], "session").open(sealed) == b"text", "rotation: the old secret opens still"
    assert Sealer([other], "session").open(sealed) is None
    assert Sealer([one], "login").open(sealed) is None
    assert Sealer([other, one], "session").seal(b"text").partition(".")[0] != sealed.partition(".")[0]


def test_what_was_changed_in_any_place_does_not_open() -> None:
    sealer = Sealer([SECRET], "session")
    sealed = sealer.seal(b"a text of some length")
    for index, letter in enumerate(sealed):
        changed = sealed[:index] + ("B" if letter == "A" else "A") + sealed[index + 1 :]
        opened = sealer.open(changed)
        # Base64 has spellings that mean the same: unused bits at the end of a part.
        assert opened is None or opened == b"a text of some length"
    for junk in ("", ".", "....", "a.b.c.d.e", sealed + "x", sealed[:-1], sealed.replace(".", "", 1), "\xff" * 9):
        assert sealer.open(junk) is None
    head = base64.urlsafe_b64encode(b'{"alg":"dir","enc":"A256GCM","zip":"DEF"}').rstrip(b"=").decode()
    assert sealer.open(f"{head}.{sealed.partition('.')[2]}") is None, "nothing in the header is a choice"


async def test_a_tampered_a_truncated_and_a_foreign_cookie_are_no_session() -> None:
    async with LoginIssuer() as issuer, site(issuer) as (browser, upstream):
        sent = await browser.get("/app/x", headers=PAGE)
        ((name, attempt),) = browser.cookies.items()
        await log_in(browser, issuer)
        good = browser.cookies["__Host-mesh-session"]
        browser.cookies.clear()
        middle = len(good) // 2
        for value in (
            good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :],
            good[:-8],
            good.replace("1~", "2~"),
            good.replace("1~", "0~"),
            good.replace("1~", ""),
            f"1~{attempt}",
            "1~",
            "",
            f"{good}; __Host-mesh-session={good}",
        ):
            answer = await browser.get("/app/x", headers={**PAGE, "cookie": f"__Host-mesh-session={value}"})
            assert answer.status_code == 302, value[:20]
        assert upstream.scopes == []
        assert (
            await browser.get("/app/x", headers={**PAGE, "cookie": f"__Host-mesh-session={good}"})
        ).status_code == 200
        assert name.startswith("__Host-mesh-session-login-")
        assert sent.status_code == 302


# Its end.


async def test_a_session_and_a_login_end_at_their_time() -> None:
    async with logins({"session_lifetime": 3600, "login_timeout": 60}) as (engine, issuer, clock):
        issuer.answer = {"refresh_token": None}
        attempt, sealed, _ = await engine.begin("https://gw.example/auth/callback", "/app")
        session = await session_of(engine, issuer)
        assert session.principal.expires == clock.wall() + 3600
        await clock.advance(60)
        assert engine.take(attempt.state, sealed) is None
        await clock.advance(3539)
        assert await engine.find(session.sealed) is session
        assert engine.age(session) == 1
        await clock.advance(1)
        assert await engine.find(session.sealed) is None


async def test_the_state_of_another_login_is_not_that_of_a_cookie() -> None:
    """Whoever renames a cookie of his own finds that the state is in it, too."""
    async with logins() as (engine, _, _):
        one, sealed, _ = await engine.begin("https://gw.example/auth/callback", "/app")
        other, _, _ = await engine.begin("https://gw.example/auth/callback", "/app")
        assert engine.take(other.state, sealed) is None
        assert engine.take(one.state, None) is None
        assert engine.take(one.state, "junk") is None
        assert engine.take(one.state, sealed) == one
        assert await engine.find("junk") is None


async def test_other_rules_or_another_form_of_what_is_kept_end_a_session() -> None:
    async with logins() as (engine, issuer, clock), tools(clock) as others:
        session = await session_of(engine, issuer)
        stricter = provider(issuer, subject_claim="email").open_logins(others)
        assert await stricter.find(session.sealed) is None
        await stricter.aclose()
        sealer = engine._sessions._sealer
        for text in (b"{}", b"[]", b'{"v":2}', b'{"v":1,"s":1}', b'{"v":1,"s":"x","g":"1"}', b"\xff"):
            assert await engine.find(sealer.seal(text)) is None


async def test_another_process_with_the_same_secret_takes_it() -> None:
    async with logins() as (engine, issuer, clock), tools(clock) as others:
        session = await session_of(engine, issuer)
        other = provider(issuer, {"session_secret": ["a-new-secret-that-was-put-in-front-of-it", SECRET]})
        second = other.open_logins(others)
        again = await second.find(session.sealed)
        await second.aclose()
    assert again is not None
    assert again.principal == session.principal
    assert again.kept == session.kept


# Renewal.


async def test_it_is_renewed_before_its_access_token_ends_once_for_all_who_ask() -> None:
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        await clock.advance(RENEWED - 1)
        assert await engine.find(session.sealed) is session
        await clock.advance(1)
        issuer.gate.clear()
        issuer.asked.clear()
        asking = [start(engine.find(session.sealed)) for _ in range(20)]
        await issuer.asked.wait()
        asking[0].cancel()  # a client that goes away ends nothing that others wait for
        issuer.gate.set()
        renewed = await asyncio.gather(*asking[1:])

        assert len(issuer.forms) == 2
        assert issuer.forms[1]["refresh_token"] == "refresh-1"
        assert {each.sealed for each in renewed if each is not None} == {renewed[0].sealed}  # type: ignore[union-attr]
        assert renewed[0] is not None
        assert renewed[0].sealed != session.sealed
        assert renewed[0].kept.ends == session.kept.ends, "renewing makes no session longer"
        assert renewed[0].principal.subject == "alice"


async def test_requests_that_are_on_their_way_with_the_cookie_of_before_get_the_new_one() -> None:
    """The old refresh token is used up: to send it again would look like a theft to the server (RFC 9700 4.14.2)."""
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        await clock.advance(RENEWED)
        renewed = await found(engine, session)
        await clock.advance(30)
        assert await found(engine, session) is renewed
        await clock.advance(RENEWED)
        again = await found(engine, session)
        assert again.kept.generation == 2
        assert [form.get("refresh_token") for form in issuer.forms] == [None, "refresh-1", "refresh-2"]


async def test_a_renewal_tells_what_has_changed_of_the_user() -> None:
    async with logins() as (engine, issuer, clock):
        issuer.claims = {"roles": ["admin"]}
        session = await session_of(engine, issuer)
        assert session.principal.roles == {"admin"}
        issuer.claims = {"roles": ["user"]}
        issuer.answer = {"scope": "openid less"}
        await clock.advance(RENEWED)
        renewed = await found(engine, session)
        assert renewed.principal.roles == {"user"}
        assert renewed.principal.scopes == {"openid", "less"}


@pytest.mark.parametrize("without", ["id_token", "refresh_token", "scope"])
async def test_what_a_renewal_does_not_say_stays(without: str) -> None:
    async with logins({"scopes": ["openid", "read"]}) as (engine, issuer, clock):
        issuer.rotates = False
        session = await session_of(engine, issuer)
        issuer.answer = {without: None}
        for _ in range(2):
            await clock.advance(RENEWED)
            session = await found(engine, session)
            assert session.principal.subject == "alice"
            assert session.principal.scopes == {"openid", "read"}
        assert session.kept.generation == 2


async def test_a_session_whose_refresh_token_is_refused_is_over_after_a_grace() -> None:
    """The user was locked out, or another process has used it a moment ago: both look the same."""
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        issuer.refresh_tokens.clear()
        await clock.advance(RENEWED)
        assert await engine.find(session.sealed) is session
        assert await engine.find(session.sealed) is session
        assert len(issuer.forms) == 2, "it is not asked again about a token that it refused"
        await clock.advance(GRACE)
        assert await engine.find(session.sealed) is None
        assert len(issuer.forms) == 2


async def test_a_session_that_another_process_renewed_goes_on_here() -> None:
    async with logins() as (engine, issuer, clock), tools(clock) as others:
        second = provider(issuer).open_logins(others)
        session = await session_of(engine, issuer)
        await clock.advance(RENEWED)
        renewed = await found(engine, session)
        assert await second.find(session.sealed) is not None, "refused, but within the grace"
        await clock.advance(GRACE)
        assert await second.find(session.sealed) is None
        assert await second.find(renewed.sealed) is not None, "the cookie of the other process counts"
        await second.aclose()


async def test_an_id_token_of_somebody_else_ends_the_session() -> None:
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        issuer.claims = {"sub": "eve"}
        await clock.advance(RENEWED + GRACE)
        assert await engine.find(session.sealed) is None


@pytest.mark.parametrize("refusal", [None, (503, {}), (401, {"error": "invalid_client"})])
async def test_while_the_server_is_away_sessions_go_on_and_it_is_asked_at_times(refusal: Any) -> None:
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        issuer.refusal = refusal
        if refusal is None:
            await issuer.stop()
        await clock.advance(RENEWED + 3600)
        for _ in range(3):
            assert await engine.find(session.sealed) is session
        assert refusal is None or len(issuer.forms) == 2
        issuer.refusal = None
        if refusal is None:
            await issuer.start()
        await clock.advance(RETRY)
        assert (await found(engine, session)).kept.generation == 1


async def test_where_services_get_the_access_token_there_must_be_a_good_one() -> None:
    async with LoginIssuer() as issuer:
        upstream = Upstream()
        own = provider(issuer, {"forward_access_token": True})
        async with gateway_with(upstream, own) as gateway, browser_of(gateway) as browser:
            await log_in(browser, issuer)
            assert (await browser.get("/app/x", headers={**PAGE, "authorization": "Basic x"})).status_code == 200
            assert upstream.headers["authorization"] == "Bearer access-1"
            assert (await browser.get("/open/x", headers=PAGE)).status_code == 200
            assert "authorization" not in upstream.headers
            browser.cookies.clear()

            issuer.answer = {"expires_in": 0.001}
            await log_in(browser, issuer)
            again = await browser.get("/app/x", headers=PAGE)
            assert upstream.headers["authorization"] == "Bearer access-3", "the second one, renewed"
            assert again.headers["cache-control"] == "no-store"
            assert any(line.startswith("__Host-mesh-session=1~") for line in again.headers.get_list("set-cookie"))
            issuer.refusal = (503, {})
            assert reason(await browser.get("/app/x", headers=PAGE)) == (503, "authentication-unavailable")
            issuer.refusal = (400, {"error": "invalid_grant"})
            browser.cookies.clear()


async def test_without_a_refresh_token_a_session_whose_access_token_is_wanted_ends_with_it() -> None:
    async with logins({"forward_access_token": True}) as (engine, issuer, clock):
        issuer.answer = {"refresh_token": None}
        session = await session_of(engine, issuer)
        assert session.kept.access_token == "access-1"
        await clock.advance(RENEWED)
        assert await engine.find(session.sealed) is None


async def test_access_tokens_that_nobody_gets_are_not_kept() -> None:
    async with logins() as (engine, issuer, _):
        assert (await session_of(engine, issuer)).kept.access_token is None


async def test_a_refusal_of_a_layer_further_in_carries_the_new_cookie_too() -> None:
    async with (
        LoginIssuer() as issuer,
        site(issuer, route={"auth": {"login": True, "roles": ["admin"]}}) as (browser, _),
    ):
        issuer.answer = {"expires_in": 0.001}
        await log_in(browser, issuer)
        before = browser.cookies["__Host-mesh-session"]
        assert reason(await browser.get("/app/x", headers=PAGE)) == (403, "missing-role")
        assert browser.cookies["__Host-mesh-session"] != before


async def test_a_logout_while_the_server_is_away_ends_the_session_here() -> None:
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        await issuer.stop()
        await clock.advance(3601)  # what the server said of itself is known for no longer
        await engine.end(session)
        assert await engine.flow.end_session(session.kept.id_token, "https://gw.example/") is None
        assert await engine.find(session.sealed) is None
        assert engine.read(session.sealed) is not None
        await engine.end(session)


async def test_a_session_that_is_logged_out_while_it_is_renewed_stays_so() -> None:
    async with logins() as (engine, issuer, clock):
        session = await session_of(engine, issuer)
        await clock.advance(RENEWED)
        issuer.gate.clear()
        issuer.asked.clear()
        asking = start(engine.find(session.sealed))
        await issuer.asked.wait()
        ending = start(engine.end(session))
        while len(issuer.requests) < 5:  # noqa: ASYNC110 - metadata, a code, keys, the renewal, and the revocation of the old token
            await asyncio.sleep(0)
        issuer.gate.set()
        assert await asyncio.gather(asking, ending) == [None, None]
        assert await engine.find(session.sealed) is None
        revoked = [body for head, body in issuer.requests if head.startswith(b"POST /revoke")]
        assert [b"refresh-1" in revoked[0], b"refresh-2" in revoked[1]] == [True, True]


async def test_words_that_are_no_text_do_no_harm() -> None:
    async with logins() as (engine, issuer, _):
        issuer.answer = {"scope": "openid \ud800 \x00 read"}
        assert (await session_of(engine, issuer)).principal.scopes == {"openid", "read"}
        issuer.claims = {"nonce": "\ud800"}
        with pytest.raises(CredentialError, match="nonce"):
            await session_of(engine, issuer)


# Room.


async def test_a_large_session_takes_several_cookies_and_a_small_one_after_it_takes_them_away() -> None:
    async with LoginIssuer() as issuer:
        upstream = Upstream()
        async with gateway_with(upstream, provider(issuer)) as gateway, browser_of(gateway) as browser:
            issuer.claims = {"groups": [f"group-{number:04}" for number in range(250)]}
            await log_in(browser, issuer)
            parts = sorted(browser.cookies)
            assert parts == ["__Host-mesh-session", "__Host-mesh-session.1", "__Host-mesh-session.2"]
            assert all(len(name) + len(value) < 3700 for name, value in browser.cookies.items())
            assert (await browser.get("/app/x", headers=PAGE)).status_code == 200
            assert "cookie" not in upstream.headers

            missing = {name: value for name, value in browser.cookies.items() if not name.endswith(".1")}
            cookie = "; ".join(f"{name}={value}" for name, value in missing.items())
            async with browser_of(gateway) as other:
                assert (await other.get("/app/x", headers={**PAGE, "cookie": cookie})).status_code == 302

            issuer.claims = {}
            sent = await browser.get("/auth/login", headers=PAGE)
            await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
            assert sorted(browser.cookies) == ["__Host-mesh-session"]


async def test_a_session_that_no_browser_would_keep_is_refused_by_name() -> None:
    async with LoginIssuer() as issuer, site(issuer) as (browser, _):
        issuer.claims = {"groups": [f"group-{number:04}" for number in range(700)]}
        back = await log_in(browser, issuer)
        assert reason(back) == (502, "session-too-large")


def test_names_that_count_once_are_bounded_and_end() -> None:
    now = [100.0]
    spent = Spent(3, lambda: now[0])
    assert spent.add("a", 110)
    assert not spent.add("a", 110)
    now[0] = 110
    assert "a" not in spent
    for name in "bcdef":
        assert spent.add(name, 120)
    assert len(spent) == 3


async def test_memory_is_bounded() -> None:
    async with logins(cache_size=3) as (engine, issuer, clock):
        sessions = [await session_of(engine, issuer) for _ in range(6)]
        assert engine.statistics()["sessions"] == 3
        await clock.advance(RENEWED)
        for session in sessions:
            assert (await found(engine, session)).kept.generation == 1
        assert engine.statistics()["sessions"] == 3
        assert len(engine._latest) == 3
