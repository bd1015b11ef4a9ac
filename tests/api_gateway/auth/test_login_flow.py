"""A browser's login at a gateway, with a server that does as told (RFC 6749, RFC 7636, RFC 9700, OIDC Core)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx2
import pytest
from auth_support import Upstream, bearer, rsa, token
from fastapi import FastAPI
from login_support import PAGE, SECRET, LoginIssuer, browser_of, gateway_with, log_in, provider, reason, site

from fastapi_mesh import ServiceMesh
from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, JWTAuthProvider, OAuth2AuthProvider
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-27", "S-051", "B10")]


@pytest.fixture
async def issuer() -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer() as server:
        yield server


@asynccontextmanager
async def beside(browser: httpx2.AsyncClient) -> AsyncIterator[httpx2.AsyncClient]:
    """Another browser, at the same gateway."""
    async with httpx2.AsyncClient(transport=browser._transport, base_url=browser.base_url) as other:
        yield other


def cookies_of(response: httpx2.Response) -> dict[str, str]:
    """The attributes of each cookie that an answer sets, by name; those it takes away are not among them."""
    found = {}
    for line in response.headers.get_list("set-cookie"):
        name, _, rest = line.partition("=")
        if "Max-Age=0" not in line:
            found[name] = rest.partition(";")[2].strip()
    return found


# The way there.


async def test_a_navigation_is_sent_to_log_in_with_state_nonce_and_pkce(issuer: LoginIssuer) -> None:
    async with site(issuer, {"parameters": {"prompt": "login"}, "scopes": ["openid", "email"]}) as (browser, upstream):
        answer = await browser.get("/app/x?a=1", headers=PAGE)
    location = urlsplit(answer.headers["location"])
    asked = dict(parse_qsl(location.query))

    assert answer.status_code == 302
    assert f"{location.scheme}://{location.netloc}{location.path}" == f"{issuer.url}/authorize"
    assert len(asked.pop("state")) >= 43
    assert len(asked.pop("nonce")) >= 43
    assert len(asked.pop("code_challenge")) == 43
    assert asked == {
        "response_type": "code",
        "client_id": "web",
        "redirect_uri": "https://gw.example/auth/callback",
        "scope": "openid email",
        "code_challenge_method": "S256",
        "prompt": "login",
    }
    assert answer.headers["cache-control"] == "no-store"
    assert upstream.scopes == []
    ((name, attributes),) = cookies_of(answer).items()
    assert name.startswith("__Host-mesh-session-login-")
    assert attributes == "Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"


async def test_what_is_no_navigation_is_told_401(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for method, headers in (
            ("GET", {"accept": "application/json"}),
            ("GET", {"accept": "*/*"}),
            ("GET", {}),
            ("GET", {"accept": "text/html", "sec-fetch-mode": "cors"}),
            ("GET", {"accept": "text/html", "sec-fetch-mode": "navigate", "sec-purpose": "prefetch;prerender"}),
            ("POST", PAGE),
            ("PUT", {"accept": "text/html"}),
        ):
            answer = await browser.request(method, "/app/x", headers=headers)
            assert reason(answer) == (401, "authentication-required"), headers
            assert answer.headers["www-authenticate"] == 'Bearer realm="gateway"'
            assert "set-cookie" not in answer.headers


async def test_old_and_new_browsers_are_known(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for method in ("GET", "HEAD"):
            for headers in ({"accept": "text/html"}, {"sec-fetch-mode": "navigate"}, PAGE):
                assert (await browser.request(method, "/app/x", headers=headers)).status_code == 302


async def test_a_route_without_login_takes_sessions_and_sends_nobody_away(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, upstream):
        before = await browser.get("/api/x", headers=PAGE)
        await log_in(browser, issuer)
        after = await browser.get("/api/x", headers={"accept": "application/json"})
    assert (before.status_code, after.status_code) == (401, 200)
    assert upstream.headers["x-auth-subject"] == "alice"


async def test_the_gateway_s_own_setting_counts_where_a_route_says_nothing(issuer: LoginIssuer) -> None:
    own = [{"auth_required": True}, {"auth": {"login": False}}, {"auth": {"optional": True}}]
    found = []
    for route in own:
        async with site(issuer, route=route, auth={"login": True}) as (browser, _):
            found.append((await browser.get("/app/x", headers=PAGE)).status_code)
    assert found == [302, 401, 200]


async def test_a_server_that_is_away_is_503(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        await issuer.stop()
        assert reason(await browser.get("/app/x", headers=PAGE)) == (503, "authentication-unavailable")


async def test_over_plain_http_there_is_no_prefix_and_no_secure(issuer: LoginIssuer) -> None:
    async with gateway_with(Upstream(), provider(issuer)) as gateway, browser_of(gateway, "http://gw") as browser:
        await log_in(browser, issuer)
        answer = await browser.get("/app/x", headers=PAGE)
        assert answer.status_code == 200
        assert sorted(browser.cookies) == ["mesh-session"]


async def test_behind_a_trusted_proxy_the_browser_s_address_counts(issuer: LoginIssuer) -> None:
    said = {"x-forwarded-proto": "https", "x-forwarded-host": "shop.example", "x-forwarded-prefix": "/shop"}
    found = []
    for trusted in (["127.0.0.1"], []):
        async with (
            gateway_with(Upstream(), provider(issuer), trusted_proxies=trusted) as gateway,
            browser_of(gateway, "http://inside") as browser,
        ):
            answer = await browser.get("/app/x", headers={**PAGE, **said})
            found.append(dict(parse_qsl(urlsplit(answer.headers["location"]).query))["redirect_uri"])
    assert found == ["https://shop.example/shop/auth/callback", "http://inside/auth/callback"]


async def test_a_public_url_and_a_prefix_of_the_gateway(issuer: LoginIssuer) -> None:
    login = {"public_url": "https://shop.example/gw"}
    upstream = Upstream()
    async with (
        gateway_with(upstream, provider(issuer, login), prefix="/gw") as gateway,
        browser_of(gateway, "https://shop.example") as browser,
    ):
        sent = await browser.get("/gw/app/x?y=1", headers=PAGE)
        assert dict(parse_qsl(urlsplit(sent.headers["location"]).query))["redirect_uri"] == (
            "https://shop.example/gw/auth/callback"
        )
        back = await browser.get(f"/gw/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
        assert back.headers["location"] == "/gw/app/x?y=1"
        assert (await browser.get(back.headers["location"], headers=PAGE)).status_code == 200


# The way back.


async def test_the_way_back_gives_a_session_and_leads_to_the_page_that_was_asked_for(issuer: LoginIssuer) -> None:
    issuer.claims = {"roles": ["admin"], "name": "Alice"}
    async with site(issuer) as (browser, upstream):
        back = await log_in(browser, issuer, "/app/x?a=1&b=%2F")
        assert (back.status_code, back.headers["location"]) == (302, "/app/x?a=1&b=%2F")
        assert back.headers["cache-control"] == "no-store"
        ((name, attributes),) = cookies_of(back).items()
        assert name == "__Host-mesh-session"
        assert attributes.startswith("Path=/; Max-Age=2")
        assert attributes.endswith("; HttpOnly; SameSite=Lax; Secure")
        page = await browser.get(back.headers["location"], headers=PAGE)

    assert page.status_code == 200
    assert sorted(browser.cookies) == ["__Host-mesh-session"], "the login's own cookie is gone"
    form = issuer.forms[0]
    assert form["grant_type"] == "authorization_code"
    assert "client_secret" not in form, "client_secret_basic"
    told = upstream.headers
    assert (told["x-auth-subject"], told["x-auth-provider"]) == ("alice", "oauth2")
    assert (told["x-auth-scopes"], told["x-auth-roles"]) == ("openid", "admin")
    assert "authorization" not in told


async def test_no_cookie_of_ours_reaches_a_service(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, upstream):
        await browser.get("/app/y", headers=PAGE)
        await log_in(browser, issuer)
        browser.cookies.set("mesh-session.1", "x")
        browser.cookies.set("theirs", "kept")
        for path in ("/app/x", "/open/x"):
            assert (await browser.get(path, headers=PAGE)).status_code == 200
            assert upstream.headers["cookie"] == "theirs=kept"


async def test_an_answer_to_another_login_or_of_another_server_is_refused(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for change in ({"state": "forged"}, {"state": "-"}, {"iss": "https://evil.example"}):
            back = await log_in(browser, issuer, **change)
            assert reason(back) == (400, "login-state")
        assert (await browser.get("/app/x", headers=PAGE)).status_code == 302
    assert issuer.forms == [], "the code was not even shown to the server"


async def test_an_answer_without_iss_is_refused_where_the_server_says_that_it_sends_one(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        assert (await log_in(browser, issuer, iss="-")).status_code == 302
    issuer.pages["/.well-known/openid-configuration"] = lambda body: issuer.metadata(
        authorization_response_iss_parameter_supported=True
    )
    async with site(issuer) as (browser, _):
        assert reason(await log_in(browser, issuer, iss="-")) == (400, "login-state")


async def test_another_browser_s_callback_logs_nobody_in(issuer: LoginIssuer) -> None:
    """Login CSRF: the attacker's code in the victim's browser (RFC 6749 section 10.12)."""
    async with site(issuer) as (attacker, upstream), beside(attacker) as victim:
        sent = await attacker.get("/app/x", headers=PAGE)
        await victim.get("/app/x", headers=PAGE)
        query = issuer.authorize(sent.headers["location"])
        assert reason(await victim.get(f"/auth/callback?{query}", headers=PAGE)) == (400, "login-state")
        assert (await victim.get("/app/x", headers=PAGE)).status_code == 302
        assert (await attacker.get(f"/auth/callback?{query}", headers=PAGE)).status_code == 302, "it is not spent"
    assert upstream.scopes == []


async def test_a_login_is_good_once_even_with_its_cookie(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        sent = await browser.get("/app/x", headers=PAGE)
        kept = dict(browser.cookies)
        query = issuer.authorize(sent.headers["location"])
        assert (await browser.get(f"/auth/callback?{query}", headers=PAGE)).status_code == 302
        assert reason(await browser.get(f"/auth/callback?{query}", headers=PAGE)) == (400, "login-state")
        browser.cookies.update(kept)
        assert reason(await browser.get(f"/auth/callback?{query}", headers=PAGE)) == (400, "login-state")
    assert len(issuer.forms) == 1


async def test_a_code_that_was_used_elsewhere_is_refused(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        sent = await browser.get("/app/x", headers=PAGE)
        query = issuer.authorize(sent.headers["location"])
        issuer.codes.clear()
        assert reason(await browser.get(f"/auth/callback?{query}", headers=PAGE)) == (400, "login-state")


async def test_a_code_of_another_login_fails_at_the_server_by_pkce(issuer: LoginIssuer) -> None:
    """Code injection (RFC 9700 section 4.5): a stolen code put into the answer to one's own login."""
    async with site(issuer) as (victim, _), beside(victim) as attacker:
        sent = await victim.get("/app/x", headers=PAGE)
        stolen = dict(parse_qsl(issuer.authorize(sent.headers["location"])))
        back = await log_in(attacker, issuer, code=stolen["code"])
    assert reason(back) == (400, "login-state")


WRONG_CLAIMS: list[dict[str, Any]] = [
    {"nonce": "another"},
    {"nonce": ...},
    {"nonce": 1},
    {"aud": "another"},
    {"aud": ["web", "another"]},
    {"azp": "another"},
    {"iss": "https://evil.example"},
    {"exp": 1_000_000_000},
    {"exp": ...},
    {"iat": ...},
    {"iat": 4_000_000_000},
    {"sub": ...},
    {"sub": ""},
    {"sub": 7},
]


async def test_an_id_token_that_proves_nothing_is_refused(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for claims in WRONG_CLAIMS:
            issuer.claims = claims
            back = await log_in(browser, issuer)
            assert reason(back) == (502, "login-failed"), claims
            assert cookies_of(back) == {}


async def test_several_audiences_are_fine_where_azp_says_that_it_is_for_us(issuer: LoginIssuer) -> None:
    issuer.claims = {"aud": ["web", "another"], "azp": "web"}
    async with site(issuer) as (browser, _):
        assert (await log_in(browser, issuer)).status_code == 302


WRONG_ANSWERS: list[dict[str, Any]] = [
    {"id_token": None},
    {"id_token": "eyJhbGciOiJub25lIn0.e30."},
    {"token_type": "mac"},
    {"token_type": None},
    {"access_token": ""},
    {"access_token": "a\r\nb"},
    {"access_token": "a b"},
    {"refresh_token": 7},
]


async def test_an_answer_of_the_token_endpoint_that_is_wrong_is_refused(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for answer in WRONG_ANSWERS:
            issuer.answer = answer
            assert reason(await log_in(browser, issuer)) == (502, "login-failed"), answer


async def test_an_id_token_of_another_key_or_algorithm_is_refused(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for key, algorithm in ((rsa("other"), "RS256"), (rsa(), "PS256"), (None, "HS256")):
            sent = await browser.get("/app/x", headers=PAGE)
            nonce = dict(parse_qsl(urlsplit(sent.headers["location"]).query))["nonce"]
            now = int(issuer.wall())
            said = {"iss": issuer.url, "sub": "eve", "aud": "web", "iat": now, "exp": now + 300, "nonce": nonce}
            issuer.answer = {"id_token": token(said, key, algorithm, kid="rsa")}
            back = await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
            assert reason(back) == (502, "login-failed")


REFUSALS: list[tuple[Any, tuple[int, str]]] = [
    ((400, {"error": "invalid_client"}), (502, "login-failed")),
    ((401, {"error": "invalid_client"}), (502, "login-failed")),
    ((500, {}), (503, "authentication-unavailable")),
    ((429, {"error": "slow_down"}), (503, "authentication-unavailable")),
    ((302, {}), (503, "authentication-unavailable")),
]


async def test_a_token_endpoint_that_says_no(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for refusal, expected in REFUSALS:
            issuer.refusal = refusal
            assert reason(await log_in(browser, issuer)) == expected


async def test_a_refusal_is_a_problem_page_that_shows_nothing_of_what_anybody_could_write(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for word, shown in (("access_denied", "access_denied"), ("<script>", "no code")):
            back = await log_in(browser, issuer, code="-", error=word, error_description="Call 555-0100, <b>now</b>")
            assert reason(back) == (403, "login-refused")
            assert back.json()["detail"] == f"The authorization server refused the login ({shown})."
            assert back.headers["content-type"] == "application/problem+json"
        both = await log_in(browser, issuer, error="access_denied")
        assert reason(both) == (403, "login-refused")
        assert issuer.forms == [], "a code beside an error is none"


async def test_a_parameter_that_comes_twice_has_no_value(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for again in ("code", "state"):
            sent = await browser.get("/app/x", headers=PAGE)
            query = issuer.authorize(sent.headers["location"])
            value = dict(parse_qsl(query))[again]
            back = await browser.get(f"/auth/callback?{query}&{again}={value}", headers=PAGE)
            assert back.status_code in (400, 403)
    assert issuer.forms == []


async def test_the_callback_is_for_get_alone(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        sent = await browser.get("/app/x", headers=PAGE)
        query = issuer.authorize(sent.headers["location"])
        for method in ("HEAD", "POST", "OPTIONS"):
            assert (await browser.request(method, f"/auth/callback?{query}")).status_code == 405
        assert (await browser.get(f"/auth/callback?{query}", headers=PAGE)).status_code == 302


async def test_two_tabs_log_in_at_once_and_old_logins_do_not_pile_up(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        sent = [await browser.get(f"/app/{number}", headers=PAGE) for number in range(12)]
        assert len(dict(browser.cookies)) == 5
        for number in (11, 10):
            query = issuer.authorize(sent[number].headers["location"])
            back = await browser.get(f"/auth/callback?{query}", headers=PAGE)
            assert back.headers["location"] == f"/app/{number}"


# Where it leads.


ELSEWHERE = (
    "//evil.example",
    "/\\evil.example",
    "https://evil.example",
    "/a\r\nset-cookie: a=b",
    "\\\\evil",
    "/\t/evil",
    "javascript:alert(1)",
    "evil.example",
    "",
    "/" + "a" * 2000,
    "/\x00",
    "/\xe4",
)


async def test_nobody_is_sent_to_another_site(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        for target in ELSEWHERE:
            sent = await browser.get("/auth/login", params={"return_to": target}, headers=PAGE)
            back = await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
            assert back.headers["location"] == "/", target


async def test_a_page_may_send_its_visitor_to_log_in_and_back(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        sent = await browser.get("/auth/login", params={"return_to": "/app/y?z=1"}, headers=PAGE)
        back = await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
    assert back.headers["location"] == "/app/y?z=1"


async def test_a_path_that_browsers_take_for_a_host_is_not_gone_back_to(issuer: LoginIssuer) -> None:
    async with site(issuer, route={"path": "/*", "auth": {"login": True}}) as (browser, _):
        sent = await browser.get("https://gw.example//evil.example/x", headers=PAGE)
        assert sent.status_code == 302
        back = await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'])}", headers=PAGE)
    assert back.headers["location"] == "/"


# A session and the requests of others' pages.


PAGES: list[tuple[dict[str, str], int]] = [
    ({"sec-fetch-site": "same-origin", "origin": "https://gw.example"}, 200),
    ({"sec-fetch-site": "same-origin", "origin": "null"}, 200),
    ({"origin": "https://gw.example"}, 200),
    ({"origin": "https://GW.example"}, 403),
    ({"sec-fetch-site": "same-site", "origin": "https://other.gw.example"}, 403),
    ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
    ({"origin": "http://gw.example"}, 403),
    ({"origin": "https://gw.example.evil"}, 403),
    ({"origin": "null"}, 403),
    ({}, 403),
    ({"sec-fetch-site": "same-site", "origin": "https://app.example"}, 200),
]


async def test_a_method_that_changes_something_counts_from_own_pages_only(issuer: LoginIssuer) -> None:
    async with site(issuer, {"trusted_origins": ["https://app.example"]}) as (browser, _):
        await log_in(browser, issuer)
        for headers, status in PAGES:
            for method in ("POST", "DELETE"):
                answer = await browser.request(method, "/api/x", headers=headers)
                assert answer.status_code == status, headers
                assert status == 200 or reason(answer) == (403, "cross-site-request")
            assert (await browser.get("/api/x", headers=headers)).status_code == 200


async def test_a_token_counts_before_a_session_and_needs_no_page_of_ours(issuer: LoginIssuer) -> None:
    upstream = Upstream()
    own = provider(issuer, audience="shop")
    async with gateway_with(upstream, own) as gateway, browser_of(gateway) as browser:
        await log_in(browser, issuer)
        bob = issuer.id_token(sub="bob", aud="shop")
        answer = await browser.post("/api/x", headers={**bearer(bob), "origin": "https://evil.example"})
        assert answer.status_code == 200
        assert upstream.headers["x-auth-subject"] == "bob"
        assert "cookie" not in upstream.headers
        assert (await browser.get("/api/x", headers=bearer(issuer.id_token(aud="other")))).status_code == 401


async def test_an_id_token_is_no_access_token(issuer: LoginIssuer) -> None:
    """It goes through the browser's address line at a logout, and may be in anybody's log."""
    async with site(issuer) as (browser, _):
        assert (await browser.get("/api/x", headers=bearer(issuer.id_token()))).status_code == 401


async def test_scopes_and_roles_of_routes_count_for_sessions(issuer: LoginIssuer) -> None:
    issuer.claims = {"roles": ["user"]}
    issuer.answer = {"scope": "openid read"}
    found = []
    for asked in ({"scopes": ["read"]}, {"scopes": ["write"]}, {"roles": ["user"]}, {"roles": ["admin"]}):
        async with site(issuer, route={"auth": {"login": True, **asked}}) as (browser, _):
            await log_in(browser, issuer)
            found.append(reason(await browser.get("/app/x", headers=PAGE)))
    assert found == [(200, None), (403, "insufficient-scope"), (200, None), (403, "missing-role")]


async def test_a_session_of_one_provider_is_none_for_a_route_of_another(issuer: LoginIssuer) -> None:
    keys = APIKeyAuthProvider(keys={"billing": "key-of-billing-0123456789"})
    async with gateway_with(Upstream(), provider(issuer), keys) as gateway, browser_of(gateway) as browser:
        gateway.configure_routes(
            [
                {"path": "/app/*", "service": "up", "auth": {"login": True}},
                {"path": "/keys/*", "service": "up", "auth": {"providers": ["api_key"]}},
            ]
        )
        await log_in(browser, issuer)
        assert (await browser.get("/app/x", headers=PAGE)).status_code == 200
        assert (await browser.get("/keys/x", headers=PAGE)).status_code == 401


async def test_over_https_only_a_cookie_that_nobody_else_can_plant_counts(issuer: LoginIssuer) -> None:
    async with site(issuer) as (attacker, _), beside(attacker) as victim:
        await log_in(attacker, issuer)
        for name in ("mesh-session", "__Secure-mesh-session", "__host-mesh-session"):
            planted = {"cookie": f"{name}={attacker.cookies['__Host-mesh-session']}"}
            assert (await victim.get("/app/x", headers={**PAGE, **planted})).status_code == 302


async def test_answers_to_sessions_are_for_one_browser(issuer: LoginIssuer) -> None:
    said: list[bytes] = []

    async def service(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", said[-1])] if said[-1] else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async with gateway_with(service, provider(issuer)) as gateway, browser_of(gateway) as browser:
        await log_in(browser, issuer)
        found = []
        for value in (b"", b"max-age=60", b"public, max-age=60", b"no-store", b"private"):
            said.append(value)
            answer = await browser.get("/app/x", headers=PAGE)
            found.append(answer.headers.get_list("cache-control"))
    assert found == [
        ["private"],
        ["max-age=60", "private"],
        ["public, max-age=60"],
        ["no-store"],
        ["private"],
    ]


async def test_the_gateway_s_cache_keeps_sessions_apart(issuer: LoginIssuer) -> None:
    upstream = Upstream()
    async with gateway_with(upstream, provider(issuer), route={"auth": {"login": True}, "cache_ttl": 60}) as gateway:
        subjects = []
        async with browser_of(gateway) as alice, browser_of(gateway) as bob, browser_of(gateway) as nobody:
            for browser, subject in ((alice, "alice"), (bob, "bob")):
                issuer.claims = {"sub": subject}
                await log_in(browser, issuer)
                await browser.get("/app/x", headers=PAGE)
                subjects.append(upstream.headers["x-auth-subject"])
            again = await alice.get("/app/x", headers=PAGE)
            assert (await nobody.get("/app/x", headers=PAGE)).status_code == 302
    assert subjects == ["alice", "bob"]
    assert len(upstream.scopes) == 2
    assert "hit" in again.headers["cache-status"]


# The end.


async def test_logging_out_ends_the_session_here_and_at_the_server(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        await log_in(browser, issuer)
        stolen = browser.cookies["__Host-mesh-session"]
        out = await browser.get("/auth/logout", headers={**PAGE, "sec-fetch-site": "same-origin"})
        location = urlsplit(out.headers["location"])
        asked = dict(parse_qsl(location.query))
        assert f"{location.scheme}://{location.netloc}{location.path}" == f"{issuer.url}/logout"
        assert asked["post_logout_redirect_uri"] == "https://gw.example/"
        assert asked["client_id"] == "web"
        assert asked["id_token_hint"].count(".") == 2
        assert dict(browser.cookies) == {}
        assert issuer.hits["/revoke"] == 1
        again = await browser.get("/app/x", headers={**PAGE, "cookie": f"__Host-mesh-session={stolen}"})
        assert again.status_code == 302, "a copy of it counts no more, in this process"
        assert (await browser.get("/auth/logout", headers=PAGE)).headers["location"] == "/"


async def test_a_server_without_an_end_of_sessions(issuer: LoginIssuer) -> None:
    issuer.pages["/.well-known/openid-configuration"] = lambda body: {
        name: value
        for name, value in issuer.metadata().items()
        if name not in ("end_session_endpoint", "revocation_endpoint")
    }
    async with site(issuer, {"after_logout": "/open/bye"}) as (browser, _):
        await log_in(browser, issuer)
        assert (await browser.get("/auth/logout", headers=PAGE)).headers["location"] == "/open/bye"
        assert dict(browser.cookies) == {}


async def test_pages_of_others_log_nobody_out(issuer: LoginIssuer) -> None:
    async with site(issuer) as (browser, _):
        await log_in(browser, issuer)
        for method, headers in (
            ("GET", {**PAGE, "sec-fetch-site": "cross-site"}),
            ("POST", {"origin": "https://evil.example"}),
            ("POST", {}),
        ):
            assert reason(await browser.request(method, "/auth/logout", headers=headers)) == (403, "cross-site-request")
        assert (await browser.get("/app/x", headers=PAGE)).status_code == 200
        assert (await browser.post("/auth/logout", headers={"sec-fetch-site": "same-origin"})).status_code == 302


async def test_two_servers_each_with_its_own_paths_and_sessions(issuer: LoginIssuer) -> None:
    async with LoginIssuer() as staff:
        own = {"cookie": "staff", "redirect_path": "/s/back", "login_path": "/s/in", "logout_path": "/s/out"}
        providers = [provider(issuer), provider(staff, own, name="staff")]
        upstream = Upstream()
        async with gateway_with(upstream, *providers) as gateway, browser_of(gateway) as browser:
            gateway.configure_routes(
                [
                    {"path": "/app/*", "service": "up", "auth": {"login": True}},
                    {"path": "/staff/*", "service": "up", "auth": {"login": True, "providers": ["staff"]}},
                ]
            )
            await log_in(browser, issuer)
            sent = await browser.get("/staff/x", headers=PAGE)
            assert sent.headers["location"].startswith(f"{staff.url}/authorize")
            query = staff.authorize(sent.headers["location"])
            # Mix-up (RFC 9700 section 4.4): one server's answer at the other's path.
            assert reason(await browser.get(f"/auth/callback?{query}", headers=PAGE)) == (400, "login-state")
            assert (await browser.get(f"/s/back?{query}", headers=PAGE)).headers["location"] == "/staff/x"
            assert (await browser.get("/staff/x", headers=PAGE)).status_code == 200
            assert upstream.headers["x-auth-provider"] == "staff"
            assert sorted(browser.cookies) == ["__Host-mesh-session", "__Host-staff"]
            assert "cookie" not in upstream.headers
            await browser.get("/auth/logout", headers=PAGE)
            assert sorted(browser.cookies) == ["__Host-staff"]

    gateway = APIGateway(services={"up": upstream}, enable_metrics=False)  # type: ignore[dict-item]
    gateway.configure_auth([provider(issuer), provider(issuer, name="staff")])
    with pytest.raises(ConfigurationError, match="'/auth/callback' is another login's too"):
        await gateway.open_in({})


async def test_in_an_application_s_router_too(issuer: LoginIssuer) -> None:
    app = FastAPI()
    gateway = APIGateway(services={"up": Upstream()}, enable_metrics=False)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/app/*", "service": "up", "auth": {"login": True}}])
    gateway.configure_auth([provider(issuer)])
    app.include_router(gateway.router)
    transport = httpx2.ASGITransport(app=app)
    async with (
        gateway.lifespan(app),
        httpx2.AsyncClient(transport=transport, base_url="https://gw.example") as browser,
    ):
        await log_in(browser, issuer)
        assert (await browser.get("/app/x", headers=PAGE)).status_code == 200
        assert (await browser.post("/auth/callback")).status_code == 405


async def test_whatever_is_sent_to_the_paths_of_a_login_is_an_answer_of_ours(issuer: LoginIssuer) -> None:
    chance = random.Random(7)
    letters = "abc=&;%~.+-_ /\\\"'\t\x7f\xe4019" * 2 + "mesh-session"
    async with site(issuer) as (browser, upstream):
        await log_in(browser, issuer)
        session = browser.cookies["__Host-mesh-session"]
        browser.cookies.clear()
        for _ in range(300):
            text = "".join(chance.choice(letters) for _ in range(chance.randrange(60)))
            start = chance.randrange(len(session))
            cookie = chance.choice(
                [text, f"__Host-mesh-session={text}", f"__Host-mesh-session=1~{session[start:]}", f"a=b;;{session}"]
            )
            query = chance.choice([text, f"state={text}&code=x", "&".join(["code=1"] * 50)])
            path = chance.choice(["/auth/callback", "/auth/login", "/auth/logout", "/app/x"])
            headers = {**PAGE, "cookie": "".join(each for each in cookie if each.isprintable() and each.isascii())}
            answer = await browser.get(f"{path}?{quote(query, safe='=&%+;~')}", headers=headers)
            assert answer.status_code in (302, 400, 403), (path, query, cookie)
    assert upstream.scopes == []


async def test_no_log_gets_a_code(issuer: LoginIssuer, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bytes] = []

    async with gateway_with(Upstream(), provider(issuer), access_log=True) as gateway:

        async def server(scope: Any, receive: Any, send: Any) -> None:
            async def late(message: Any) -> None:
                seen.append(scope["query_string"])  # as uvicorn's own log does, when the answer begins
                await send(message)

            await gateway(scope, receive, late)

        with caplog.at_level("INFO"):
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=server), base_url="https://gw") as browser:
                await log_in(browser, issuer)
    lines = [record.getMessage() for record in caplog.records if record.name == "fastapi_mesh.gateway.access"]
    assert "/auth/callback" in lines[-1]
    assert "code-0" not in lines[-1]
    assert seen[-1] == b""


async def test_where_authentication_is_off_services_get_no_session_either(issuer: LoginIssuer) -> None:
    async with site(issuer, auth={"enabled": False}) as (browser, upstream):
        answer = await browser.get("/app/x", headers={**PAGE, "cookie": "__Host-mesh-session=1~x; theirs=1"})
        assert answer.status_code == 200
        assert upstream.headers["cookie"] == "theirs=1"
        assert (await browser.get("/auth/login", headers=PAGE)).status_code == 404


async def test_paths_and_results_are_counted(issuer: LoginIssuer) -> None:
    mesh = ServiceMesh("gw", discovery_backend="static", enable_service_discovery=False)
    gateway = APIGateway(services={"up": Upstream()}, service_mesh=mesh)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/app/*", "service": "up", "auth": {"login": True}}])
    gateway.configure_auth([provider(issuer)])
    async with gateway.opened({}), browser_of(gateway) as browser:
        await log_in(browser, issuer)
        await browser.get("/auth/callback?state=x&code=y", headers=PAGE)
        await browser.get("/app/x", headers=PAGE)
        assert mesh.metrics is not None
        text = mesh.metrics.render("")[0].decode()
        services = [state.name for state in mesh.states.all()]
    for result, count in (("login", 1), ("login-failed", 1), ("accepted", 1), ("missing", 1)):
        assert f'gateway_authentications_total{{provider="oauth2",result="{result}"}} {count}.0' in text
    assert 'gateway_requests_total{method="GET",path="/auth/callback",status="302"} 1.0' in text
    assert services == ["up"], "nobody looks for a service behind a login"


# Settings.


@pytest.mark.parametrize(
    ("login", "text"),
    [
        (True, "needs session_secret or session_secret_file, one of them"),
        ({}, "`openssl rand -base64 32` makes one"),
        ({"session_secret": "short"}, "has 5 bytes, fewer than 32"),
        ({"session_secret": [SECRET, SECRET]}, "twice"),
        ({"session_secret": SECRET, "scopes": ["email"]}, "'openid'"),
        ({"session_secret": SECRET, "after_logout": "//evil"}, "is no path of this gateway"),
        ({"session_secret": SECRET, "redirect_path": "/auth/login"}, "must differ"),
        ({"session_secret": SECRET, "cookie": "__Host-x"}, "prefix"),
        ({"session_secret": SECRET, "trusted_origins": ["*"]}, "any page"),
        ({"session_secret": SECRET, "parameters": {"state": "x"}}, "set by the gateway"),
        ({"session_secret": SECRET, "public_url": "https://x/?a=b"}, "more than an origin"),
        ({"session_secret": SECRET, "session_secret_file": "/x"}, "one of them"),
        ({"session_secret_file": "/nowhere"}, "can't be read"),
    ],
)
def test_settings_that_can_not_be_are_said_at_once(login: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OAuth2AuthProvider("web", "s", issuer="https://id.example", login=login)
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_login_needs_an_issuer() -> None:
    with pytest.raises(ConfigurationError, match="issuer"):
        OAuth2AuthProvider("web", "s", introspection_url="https://id.example/i", login={"session_secret": SECRET})


@pytest.mark.parametrize(
    ("routes", "text"),
    [
        ([{"auth": {"login": True, "providers": ["jwt"]}}], "none of the providers of '/app/*' logs anybody in"),
        ([{"auth": {"login": True}, "path": "/auth/callback"}], "is the path of a login"),
        ([{"auth": {"login": True, "optional": True}}], "optional"),
    ],
)
async def test_routes_that_can_not_be_are_said_at_the_start(routes: list[dict[str, object]], text: str) -> None:
    gateway = APIGateway(services={"up": "http://127.0.0.1:1"}, enable_metrics=False)
    gateway.configure_auth(
        [
            OAuth2AuthProvider("web", "s", issuer="https://id.example", login={"session_secret": SECRET}),
            JWTAuthProvider(secret_key=SECRET),
        ]
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigurationError) as caught:
            await _start(gateway, routes, stack)
    assert text in str(caught.value)


async def _start(gateway: APIGateway, routes: list[dict[str, object]], stack: AsyncExitStack) -> None:
    gateway.configure_routes([{"path": "/app/*", "service": "up", **each} for each in routes])
    await stack.enter_async_context(gateway.opened({}))


async def test_a_login_that_no_provider_has_is_said_at_the_start() -> None:
    gateway = APIGateway(services={"up": "http://127.0.0.1:1"}, auth={"login": True}, enable_metrics=False)
    with pytest.raises(ConfigurationError, match="no provider logs anybody in"):
        async with gateway.opened({}):
            pass


async def test_it_is_set_in_a_file_too(issuer: LoginIssuer) -> None:
    one = {
        "type": "oauth2",
        "client_id": "web",
        "client_secret": "secret-of-web",
        "issuer": issuer.url,
        "login": {"session_secret": SECRET, "cookie": "shop"},
    }
    async with gateway_with(Upstream(), auth={"providers": [one]}) as gateway, browser_of(gateway) as browser:
        await log_in(browser, issuer)
        assert sorted(browser.cookies) == ["__Host-shop"]
        assert SECRET not in repr(gateway.config)
