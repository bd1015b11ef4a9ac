"""Authentication at a gateway: who is asked, what is refused and how, what reaches the service."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from auth_support import (
    NOW,
    SECRET,
    Upstream,
    bearer,
    calling,
    client_of,
    ec,
    key_set,
    rsa,
    token,
)
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import OctKey

from fastapi_mesh import APIGateway, ServiceMesh
from fastapi_mesh.api_gateway.auth import (
    APIKeyAuthProvider,
    AuthProvider,
    CredentialError,
    ExpiredCredentialError,
    FromHeader,
    JWTAuthProvider,
    Principal,
    UnknownCredentialError,
)
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

KEY = "key-of-billing-0123456789"
FAR = 4_000_000_000


def jwt(**settings: object) -> JWTAuthProvider:
    return JWTAuthProvider(**{"secret_key": SECRET, **settings})  # type: ignore[arg-type]


def api_key(**settings: object) -> APIKeyAuthProvider:
    return APIKeyAuthProvider(**{"keys": {"billing": KEY}, **settings})  # type: ignore[arg-type]


def good(**changed: object) -> str:
    """A token that is good in the real time of these tests."""
    return token({"sub": "alice", "exp": FAR, **changed})


def challenges(response: httpx2.Response) -> list[str]:
    return response.headers.get_list("www-authenticate")


# Who gets in.


@pytest.mark.spec("S-007", "S-050", "S-053", "X-27")
async def test_a_route_that_asks_lets_in_who_brings_a_good_token_and_nobody_else() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt()) as client:
        with_token = await client.get("/api/x", headers=bearer(good()))
        without = await client.get("/api/x")
        with_another = await client.get("/api/x", headers=bearer(token(key=OctKey.import_key("y" * 40))))

    assert with_token.status_code == 200
    assert len(upstream.scopes) == 1
    assert (without.status_code, without.headers["x-mesh-reason"]) == (401, "authentication-required")
    assert challenges(without) == ['Bearer realm="gateway"'], "no error for who brings nothing (RFC 6750 section 3.1)"
    assert (with_another.status_code, with_another.headers["x-mesh-reason"]) == (401, "invalid-credentials")
    assert challenges(with_another) == [
        'Bearer realm="gateway", error="invalid_token", error_description="the credential is not valid"'
    ]


@pytest.mark.spec("X-27", "B7")
async def test_a_refusal_says_whether_a_token_has_expired_and_nothing_else() -> None:
    async with calling(Upstream(), jwt(issuer="https://id.example")) as client:
        expired = await client.get("/api/x", headers=bearer(good(iss="https://id.example", exp=NOW)))
        others = [
            await client.get("/api/x", headers=bearer(made))
            for made in (good(), good(iss="https://id.example", aud="x"), "x", token(alg="none"), good(iss=1))
        ]

    assert expired.json()["detail"] == "The credential has expired."
    assert 'error_description="the credential has expired"' in challenges(expired)[0]
    bodies = [{**each.json(), "trace_id": ""} for each in others]
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["detail"] == "The credential is not valid."


@pytest.mark.spec("S-007")
async def test_a_route_that_does_not_ask_passes_credentials_on_as_they_are() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), route={}) as client:
        response = await client.get("/api/x?api_key=1", headers=bearer("anything"))

    assert response.status_code == 200
    assert upstream.headers["authorization"] == "Bearer anything"
    assert upstream.query == b"api_key=1"


@pytest.mark.spec("X-27")
async def test_an_optional_route_lets_in_nobody_in_particular_and_refuses_a_wrong_credential() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), route={"auth": {"optional": True}}) as client:
        without = await client.get("/api/x", headers={"x-auth-subject": "root"})
        known = await client.get("/api/x", headers=bearer(good()))
        wrong = await client.get("/api/x", headers=bearer("wrong"))

    assert [without.status_code, known.status_code, wrong.status_code] == [200, 200, 401]
    assert "x-auth-subject" not in dict(upstream.scopes[0]["headers"])
    assert upstream.headers["x-auth-subject"] == "alice"


@pytest.mark.spec("S-007")
async def test_a_gateway_s_default_counts_for_routes_that_do_not_say() -> None:
    upstream = Upstream()
    gateway = APIGateway(services={"up": upstream}, auth={"required": True})
    gateway.configure_routes(
        [
            {"path": "/closed/*", "service": "up"},
            {"path": "/open/*", "service": "up", "auth_required": False},
        ]
    )
    gateway.configure_auth([jwt()])
    async with gateway.opened({}), client_of(gateway) as client:
        assert (await client.get("/closed/x")).status_code == 401
        assert (await client.get("/open/x")).status_code == 200


# Several providers.


@pytest.mark.spec("B7", "S-053")
async def test_any_one_provider_suffices() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), api_key()) as client:
        by_token = await client.get("/api/x", headers=bearer(good()))
        first = upstream.headers["x-auth-provider"]
        by_key = await client.get("/api/x", headers={"x-api-key": KEY})
        neither = await client.get("/api/x")

    assert (by_token.status_code, by_key.status_code, neither.status_code) == (200, 200, 401)
    assert (first, upstream.headers["x-auth-provider"], upstream.headers["x-auth-subject"]) == (
        "jwt",
        "api_key",
        "billing",
    )
    assert challenges(neither) == ['Bearer realm="gateway"', 'ApiKey realm="gateway"']


@pytest.mark.spec("B7")
async def test_a_wrong_credential_is_a_refusal_whatever_else_is_there_unless_the_settings_say_otherwise() -> None:
    both = {**bearer("wrong"), "x-api-key": KEY}
    async with calling(Upstream(), jwt(), api_key()) as client:
        strict = await client.get("/api/x", headers=both)
    async with calling(Upstream(), jwt(), api_key(), auth={"try_next": True}) as client:
        lenient = await client.get("/api/x", headers=both)
        expired = await client.get("/api/x", headers={**bearer(good(exp=NOW)), "x-api-key": KEY})
        hopeless = await client.get("/api/x", headers={**bearer("wrong"), "x-api-key": "wrong"})

    assert [each.status_code for each in (strict, lenient, expired, hopeless)] == [401, 200, 200, 401]


@pytest.mark.spec("B7", "B8")
async def test_providers_of_one_place_are_asked_in_turn_for_the_same_token() -> None:
    upstream = Upstream()
    second = jwt(secret_key="another-secret-of-32-bytes-and-more", name="partner")
    by_second = token({"sub": "bob", "exp": FAR}, key=OctKey.import_key("another-secret-of-32-bytes-and-more"))
    async with calling(upstream, jwt(), second, jwt()) as client:
        for _ in range(2):
            assert (await client.get("/api/x", headers=bearer(by_second))).status_code == 200
        assert (upstream.headers["x-auth-subject"], upstream.headers["x-auth-provider"]) == ("bob", "partner")
        assert (await client.get("/api/x", headers=bearer(token()))).status_code == 401, (
            "expired, and known to the first"
        )


async def test_providers_of_one_name_are_numbered_and_routes_choose_by_name() -> None:
    second = jwt(secret_key="another-secret-of-32-bytes-and-more")
    async with calling(Upstream(), jwt(), second, route={"auth": {"providers": ["jwt-2"]}}) as client:
        assert (await client.get("/api/x", headers=bearer(good()))).status_code == 401
        by_second = token({"sub": "bob", "exp": FAR}, key=OctKey.import_key("another-secret-of-32-bytes-and-more"))
        assert (await client.get("/api/x", headers=bearer(by_second))).status_code == 200


@pytest.mark.spec("B7", "X-27")
@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/api/x", [("authorization", f"Bearer {good()}"), ("authorization", f"Bearer {good()}")]),
        ("/api/x", [("authorization", f"Bearer {good()}"), ("authorization", "Basic eDp5")]),
        ("/api/x", [("x-api-key", KEY), ("x-api-key", KEY)]),
        (f"/api/x?api_key={KEY}", [("x-api-key", KEY)]),
        (f"/api/x?api_key={KEY}&api_key={KEY}", []),
        (f"/api/x?api_key={KEY}&api%5Fkey=other", []),
        ("/api/x", [("cookie", f"key={KEY}; key={KEY}")]),
        ("/api/x", [("cookie", f"key={KEY}"), ("cookie", f"key={KEY}")]),
        ("/api/x", [("cookie", f"key={KEY}"), ("x-api-key", KEY)]),
    ],
)
async def test_a_credential_that_comes_twice_is_a_bad_request(target: str, headers: list[tuple[str, str]]) -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), api_key(api_key_cookie="key")) as client:
        response = await client.get(target, headers=headers)

    assert (response.status_code, response.headers["x-mesh-reason"]) == (400, "ambiguous-credentials")
    assert 'error="invalid_request"' in challenges(response)[0]
    assert KEY not in response.text
    assert upstream.scopes == []


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", "bearer", f"Bearer{SECRET}", "Bearer a, Bearer b", "Bearer a b", "Bearer \xe9", "BEARER x"],
)
async def test_authorization_that_is_no_token_in_form_is_refused(value: str) -> None:
    async with calling(Upstream(), jwt()) as client:
        response = await client.get("/api/x", headers=[(b"authorization", value.encode("latin-1"))])

    assert response.status_code == 401


async def test_the_word_bearer_has_any_case_and_any_number_of_spaces() -> None:
    async with calling(Upstream(), jwt()) as client:
        for word in ("bearer", "BEARER", "Bearer  "):
            assert (await client.get("/api/x", headers={"authorization": f"{word} {good()}"})).status_code == 200


# API keys.


@pytest.mark.spec("S-052", "B11", "X-27")
@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/api/x?a=1&b=%2F", {"x-api-key": KEY}),
        (f"/api/x?a=1&api_key={KEY}&b=%2F", {}),
        (f"/api/x?api%5fke%79={KEY}&a=1&b=%2F", {}),
        (f"/api/x?a=1&b=%2F&api_key={KEY.replace('-', '%2d')}", {}),
        ("/api/x?a=1&b=%2F", {"cookie": f"a=1; key={KEY}; b=2"}),
    ],
)
async def test_a_key_is_read_from_its_place_and_goes_no_further(target: str, headers: dict[str, str]) -> None:
    upstream = Upstream()
    async with calling(upstream, api_key(api_key_cookie="key")) as client:
        response = await client.get(target, headers=headers)

    assert response.status_code == 200
    assert upstream.query == b"a=1&b=%2F"
    assert "x-api-key" not in upstream.headers
    assert upstream.headers.get("cookie") in (None, "a=1; b=2")
    assert KEY not in str(upstream.scopes)


@pytest.mark.spec("B11")
async def test_the_server_s_own_log_does_not_get_the_key_of_a_query() -> None:
    upstream = Upstream()
    gateway = APIGateway(services={"up": upstream})
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth_required": True}])
    gateway.configure_auth([api_key()])
    seen: list[dict[str, object]] = []

    async def server(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        seen.append(scope)
        await gateway(scope, receive, send)

    async with gateway.opened({}):
        transport = httpx2.ASGITransport(app=server)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
            for key, status in ((KEY, 200), ("wrong-" + KEY, 401)):
                assert (await client.get(f"/api/x?api_key={key}")).status_code == status

    assert [scope["query_string"] for scope in seen] == [b"", b""]


@pytest.mark.spec("B11")
async def test_keys_are_given_as_a_list_by_owner_with_scopes_or_as_hashes() -> None:
    import hashlib

    hashed = "sha256:" + hashlib.sha256(b"hashed-key-0123456789").hexdigest()
    provider = APIKeyAuthProvider(
        keys={
            "plain": "plain-key-0123456789",
            "table": {"key": "table-key-0123456789", "scopes": ["read"], "roles": ["ops"]},
            "hashed": hashed,
        }
    )
    upstream = Upstream()
    async with calling(upstream, provider) as client:
        for owner in ("plain", "table", "hashed"):
            await client.get("/api/x", headers={"x-api-key": f"{owner}-key-0123456789"})
            assert upstream.headers["x-auth-subject"] == owner
        assert (await client.get("/api/x", headers={"x-api-key": hashed})).status_code == 401, "a hash is not the key"
        await client.get("/api/x", headers={"x-api-key": "table-key-0123456789"})
    async with calling(upstream, APIKeyAuthProvider(keys=["first-key-0123456789", "second-key-0123456789"])) as client:
        await client.get("/api/x", headers={"x-api-key": "second-key-0123456789"})
        assert upstream.headers["x-auth-subject"] == "2"

    sent = dict(upstream.scopes[3]["headers"])
    assert (sent[b"x-auth-scopes"], sent[b"x-auth-roles"]) == (b"read", b"ops")
    for text in (repr(provider), str(provider.settings), str(provider.__dict__)):
        assert "-key-0123456789" not in text, "only hashes are kept"


@pytest.mark.spec("B11")
async def test_a_function_can_know_the_keys_and_is_asked_once_per_key() -> None:
    asked: list[str] = []

    async def verify(key: str) -> Principal | str | None:
        asked.append(key)
        if key == "boom":
            raise RuntimeError("database")
        return {"a": Principal("ann", "x", scopes=frozenset({"read"})), "b": "bob"}.get(key)

    upstream = Upstream()
    async with calling(upstream, api_key(verify=verify)) as client:
        answers = [await client.get("/api/x", headers={"x-api-key": key}) for key in ("a", "a", "b", "c", "c", KEY)]
        failed = await client.get("/api/x", headers={"x-api-key": "boom"})

    assert [each.status_code for each in answers] == [200, 200, 200, 401, 401, 200]
    assert asked == ["a", "b", "c", "c", "boom"], "what is good is remembered, what isn't is not"
    assert (failed.status_code, failed.headers["x-mesh-reason"]) == (503, "authentication-unavailable")
    assert failed.headers["retry-after"] == "1"
    assert dict(upstream.scopes[0]["headers"])[b"x-auth-provider"] == b"api_key"


@pytest.mark.spec("S-053")
async def test_a_provider_that_can_not_be_asked_keeps_nobody_out_whom_another_knows() -> None:
    async def verify(key: str) -> str | None:
        if key == "expired":
            raise ExpiredCredentialError("long ago")
        raise ConnectionError("database")

    away, other = api_key(verify=verify, name="away"), APIKeyAuthProvider(keys={"bob": "other-key-0123456789"})
    async with calling(Upstream(), away, other) as client:
        statuses = [
            (await client.get("/api/x", headers={"x-api-key": key})).status_code
            for key in ("other-key-0123456789", "whose-key-0123456789", "expired")
        ]

    assert statuses == [200, 503, 401]


@pytest.mark.spec("B11", "X-27")
async def test_a_provider_without_any_key_refuses_every_key_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with calling(Upstream(), APIKeyAuthProvider(api_key_header="X-API-Key", api_key_query="api_key")) as client:
        for key in ("", "x", "None"):
            assert (await client.get("/api/x", headers={"x-api-key": key})).status_code == 401

    assert "authentication provider api_key: it has no keys and no verify function" in caplog.text


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"keys": ["same-key-0123456789"] * 2}, "two owners have the same key"),
        ({"keys": {"a": "with space"}}, "is not a key"),
        ({"keys": {"a": ""}}, "is not a key"),
        ({"keys": {"a": "sha256:xyz"}}, "is not 'sha256:' and 64"),
        ({"api_key_header": "Authorization"}, "has a meaning of its own"),
        ({"api_key_header": None, "api_key_query": None}, "has no place for the key"),
    ],
)
def test_key_settings_that_can_not_be_right_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        APIKeyAuthProvider(**settings)  # type: ignore[arg-type]
    assert "0123456789" not in str(refused.value)
    assert problem in str(refused.value) or "(its value isn't shown)" in str(refused.value)


# What may be done.


@pytest.mark.spec("X-27")
async def test_scopes_are_all_needed_and_a_missing_one_is_named_in_the_challenge() -> None:
    async with calling(Upstream(), jwt(), route={"auth": {"scopes": ["read", "write"]}}) as client:
        statuses = [
            (await client.get("/api/x", headers=bearer(good(scope=scope)))).status_code
            for scope in ("write read more", "read", "", "readwrite", "READ WRITE")
        ]
        refused = await client.get("/api/x", headers=bearer(good(scope="read")))
        nobody = await client.get("/api/x")

    assert statuses == [200, 403, 403, 403, 403]
    assert refused.headers["x-mesh-reason"] == "insufficient-scope"
    assert challenges(refused) == ['Bearer realm="gateway", error="insufficient_scope", scope="read write"']
    assert challenges(nobody) == ['Bearer realm="gateway", scope="read write"']


@pytest.mark.spec("X-27")
async def test_one_of_the_roles_is_enough() -> None:
    async with calling(Upstream(), jwt(), route={"auth": {"roles": ["admin", "ops"]}}) as client:
        statuses = [
            (await client.get("/api/x", headers=bearer(good(roles=roles)))).status_code
            for roles in (["ops"], ["x", "admin"], "admin", [], ["Admin"], "admin ops")
        ]
        refused = await client.get("/api/x", headers=bearer(good()))

    assert statuses == [200, 200, 200, 403, 403, 403]
    assert refused.headers["x-mesh-reason"] == "missing-role"


# What the service learns.


@pytest.mark.spec("X-27")
async def test_the_service_learns_who_it_is_and_gets_no_credential() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt()) as client:
        await client.get("/api/x", headers=bearer(good(scope="b a", roles=["r,1", "r 2"])))

    sent = upstream.headers
    assert "authorization" not in sent
    assert (sent["x-auth-subject"], sent["x-auth-provider"]) == ("alice", "jwt")
    assert (sent["x-auth-scopes"], sent["x-auth-roles"]) == ("a b", "r%202,r%2C1")


@pytest.mark.spec("X-27")
async def test_another_scheme_of_authorization_is_the_service_s_business() -> None:
    upstream = Upstream()
    async with calling(upstream, api_key(), jwt()) as client:
        await client.get("/api/x", headers={"x-api-key": KEY, "authorization": "Basic eDp5"})

    assert upstream.headers["authorization"] == "Basic eDp5"


@pytest.mark.spec("X-27")
async def test_all_credentials_go_not_only_the_one_that_counted() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), api_key(api_key_header=None, api_key_cookie="key")) as client:
        await client.get(f"/api/x?api_key={KEY}", headers=bearer(good()))

    assert upstream.query == b""
    assert KEY not in str(upstream.scopes)


@pytest.mark.spec("X-27")
async def test_a_route_can_ask_for_the_credential_itself() -> None:
    upstream = Upstream()
    route = {"auth": {"forward_credentials": True}}
    made = good()
    async with calling(upstream, jwt(), api_key(api_key_cookie="key"), route=route) as client:
        await client.get("/api/x", headers=bearer(made))
        assert upstream.headers["authorization"] == f"Bearer {made}"
        await client.get(f"/api/x?a&api_key={KEY}&b")
        assert upstream.query == f"a&api_key={KEY}&b".encode()
        await client.get("/api/x", headers={"cookie": f"a=1; key={KEY}"})
        assert upstream.headers["cookie"] == f"a=1; key={KEY}"
        assert upstream.headers["x-auth-subject"] == "billing"


@pytest.mark.spec("X-27")
@pytest.mark.parametrize("route", [{"auth_required": True}, {}, {"auth": {"optional": True}}])
@pytest.mark.parametrize(
    "name",
    [
        "x-auth-subject",
        "X-Auth-Subject",
        "x_auth_subject",
        "x-auth_subject",
        "x-auth-roles",
        "x_auth_identity",
        "x-auth-provider",
    ],
)
async def test_nobody_can_say_of_themselves_who_they_are(route: dict[str, object], name: str) -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), route=route) as client:
        headers = [(name, "root"), *(bearer(good()).items() if route else ())]
        response = await client.get("/api/x", headers=headers)

    assert response.status_code == 200
    assert "root" not in str(upstream.scopes[0]["headers"])


@pytest.mark.spec("X-27")
@pytest.mark.parametrize("subject", ["Zoë", "a\r\nx-auth-roles: admin", "a%0d%0ab", "a b", 'a"b', "\U0001f600", "\0"])
async def test_a_subject_is_one_header_whatever_is_in_it(subject: str) -> None:
    from urllib.parse import unquote

    upstream = Upstream()
    async with calling(upstream, jwt()) as client:
        await client.get("/api/x", headers=bearer(good(sub=subject)))

    assert unquote(upstream.headers["x-auth-subject"]) == subject
    assert "x-auth-roles" not in upstream.headers
    assert upstream.headers["x-auth-subject"].isascii()


@pytest.mark.spec("X-27")
@pytest.mark.parametrize(
    ("algorithm", "private", "public"),
    [
        ("HS256", SECRET, OctKey.import_key(SECRET)),
        ("ES256", ec().as_pem(private=True).decode(), ec()),
        ("RS256", rsa().as_pem(private=True).decode(), rsa()),
    ],
)
async def test_the_identity_can_be_a_signed_token_for_that_service(
    algorithm: str, private: str, public: object
) -> None:
    upstream = Upstream()
    identity = {"mode": "signed", "key": private, "algorithm": algorithm, "key_id": "k1", "issuer": "edge"}
    async with calling(upstream, jwt(), auth={"identity": identity}) as client:
        await client.get("/api/x", headers=bearer(good(scope="read", roles=["ops"])))
        await client.get("/api/x", headers={**bearer(good(scope="read", roles=["ops"])), "x-auth-identity": "forged"})

    first, second = (dict(scope["headers"])[b"x-auth-identity"].decode() for scope in upstream.scopes)
    read = joserfc_jwt.decode(first, public, algorithms=[algorithm])
    assert read.header == {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    assert (read.claims["sub"], read.claims["aud"], read.claims["iss"]) == ("alice", "up", "edge")
    assert (read.claims["scope"], read.claims["roles"]) == ("read", ["ops"])
    assert read.claims["exp"] - read.claims["iat"] == 60
    assert first == second, "made once"
    assert "x-auth-subject" not in upstream.headers


@pytest.mark.spec("X-27", "X-28")
async def test_a_mirror_gets_a_signed_identity_of_its_own_and_never_that_of_the_service() -> None:
    upstream, shadow = Upstream(), Upstream()
    copied = asyncio.Event()

    async def shadowing(scope: Any, receive: Any, send: Any) -> None:
        await shadow(scope, receive, send)
        copied.set()

    key = "a-secret-that-services-share-32-bytes"
    gateway = APIGateway(
        services={"up": upstream, "shadow": shadowing}, auth={"identity": {"mode": "signed", "key": key}}
    )
    gateway.configure_routes([{"path": "/*", "service": "up", "auth_required": True, "mirror": {"service": "shadow"}}])
    gateway.configure_auth([jwt()])
    transport = httpx2.ASGITransport(app=gateway)
    async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        await client.get("/x", headers=bearer(good()))
        await copied.wait()

    for service, name in ((upstream, "up"), (shadow, "shadow")):
        (token,) = [value for header, value in service.scopes[0]["headers"] if header == b"x-auth-identity"]
        claims = joserfc_jwt.decode(token.decode(), OctKey.import_key(key), algorithms=["HS256"]).claims
        assert (claims["aud"], claims["sub"]) == (name, "alice")


@pytest.mark.spec("X-27")
async def test_the_identity_can_stay_at_the_gateway() -> None:
    upstream = Upstream()
    async with calling(upstream, jwt(), auth={"identity": {"mode": "none"}}) as client:
        await client.get("/api/x", headers={**bearer(good()), "x-auth-subject": "root"})

    assert not [name for name in upstream.headers if name.startswith("x-auth")]


# What can't be right.


@pytest.mark.spec("B42", "S-007")
@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (
            {"auth_required": True},
            "routes[0].auth_required: '/api/*' asks for authentication, and there is no provider",
        ),
        ({"auth": {"scopes": ["read"]}}, "routes[0].auth: '/api/*' asks for authentication, and there is no provider"),
    ],
)
async def test_a_route_that_asks_without_any_provider_stops_the_start(route: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with calling(Upstream(), route=route):
            pass
    assert problem in str(refused.value)


@pytest.mark.spec("B42")
@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ({"auth": {"providers": ["jwtt"]}}, "routes[0].auth.providers: 'jwtt' is no provider; there are jwt - did you"),
        ({"auth_required": False, "auth": {"scopes": ["a"]}}, "has auth, and auth_required is false"),
        ({"auth_required": True, "auth": {"optional": True}}, "auth.optional lets everybody in"),
    ],
)
async def test_a_route_that_contradicts_itself_stops_the_start(route: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with calling(Upstream(), jwt(), route=route):
            pass
    assert problem in str(refused.value)


@pytest.mark.spec("B42")
async def test_what_is_configured_may_come_in_any_order_and_change_live() -> None:
    gateway = APIGateway(services={"up": Upstream()})
    gateway.configure_auth([jwt()])
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth_required": True}])
    async with gateway.opened({}), client_of(gateway) as client:
        assert (await client.get("/api/x", headers=bearer(good()))).status_code == 200
        with pytest.raises(ConfigurationError):
            gateway.configure_auth([])
        assert (await client.get("/api/x", headers=bearer(good()))).status_code == 200, "nothing has changed"
        gateway.configure_auth([api_key()])
        assert (await client.get("/api/x", headers=bearer(good()))).status_code == 401
        assert (await client.get("/api/x", headers={"x-api-key": KEY})).status_code == 200


@pytest.mark.spec("X-27")
async def test_a_reload_keeps_what_a_provider_has_learnt_while_its_settings_stay() -> None:
    asked: list[str] = []

    async def verify(key: str) -> str:
        asked.append(key)
        return "ann"

    gateway = APIGateway(services={"up": Upstream()})
    gateway.configure_auth([APIKeyAuthProvider(verify=verify)])
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth_required": True}])
    async with gateway.opened({}), client_of(gateway) as client:
        await client.get("/api/x", headers={"x-api-key": "a"})
        gateway.configure_routes([{"path": "/api/y", "service": "up", "auth_required": True}])
        gateway.configure_auth([APIKeyAuthProvider(verify=verify)])
        assert (await client.get("/api/y", headers={"x-api-key": "a"})).status_code == 200

    assert asked == ["a"]


def test_what_is_no_provider_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"\[1\]: a value of type str is no provider"):
        APIGateway().configure_auth([jwt(), "jwt"])  # type: ignore[list-item]


# In production.


@pytest.fixture
def in_production(monkeypatch: pytest.MonkeyPatch) -> APIGateway:
    """A gateway with one route that asks for authentication."""
    monkeypatch.setenv("MESH_ENVIRONMENT", "production")
    gateway = APIGateway(services={"up": Upstream()})  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth_required": True}])
    return gateway


@pytest.mark.spec("X-27")
async def test_weak_keys_are_a_warning_in_development(caplog: pytest.LogCaptureFixture) -> None:
    async with calling(Upstream(), *weak_providers()) as client:
        made = token({"sub": "a", "exp": FAR}, key=_quiet_key("jwt-secret"))
        assert (await client.get("/api/x", headers=bearer(made))).status_code == 200

    assert "authentication provider jwt: the secret has 10 bytes, fewer than 32" in caplog.text
    assert "jwt-secret" not in caplog.text


@pytest.mark.spec("X-27")
async def test_weak_keys_stop_the_start_in_production(in_production: APIGateway) -> None:
    in_production.configure_auth(weak_providers())

    with pytest.raises(ConfigurationError) as refused:
        async with in_production.opened({}):
            pass
    assert len(refused.value.problems) == 3
    assert "auth.jwt: the secret has 10 bytes" in str(refused.value)
    assert "jwt-secret" not in str(refused.value)


def weak_providers() -> list[AuthProvider]:
    return [
        JWTAuthProvider(secret_key="jwt-secret"),
        APIKeyAuthProvider(keys={"billing": "short"}),
        JWTAuthProvider(jwks=key_set(rsa("weak", 1024), rsa()), name="published"),
    ]


def _quiet_key(secret: str) -> OctKey:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OctKey.import_key(secret)


@pytest.mark.spec("B43", "S-322")
async def test_switched_off_authentication_lets_everybody_in_and_is_loud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GATEWAY_AUTH_ENABLED", "false")
    upstream = Upstream()
    route = {"auth": {"scopes": ["admin"]}}
    async with calling(upstream, jwt(), route=route) as client:
        response = await client.get("/api/x", headers={**bearer("anything"), "x-auth-subject": "root"})

    assert response.status_code == 200
    assert "x-auth-subject" not in upstream.headers, "nobody was checked, so nobody can claim to be somebody"
    (record,) = [each for each in caplog.records if "AUTHENTICATION IS OFF" in each.message]
    assert record.levelno == logging.WARNING
    assert "/api/*" in record.message


@pytest.mark.spec("B43")
async def test_switched_off_authentication_stops_the_start_in_production(
    monkeypatch: pytest.MonkeyPatch, in_production: APIGateway
) -> None:
    monkeypatch.setenv("GATEWAY_AUTH_ENABLED", "false")
    in_production.configure_auth([jwt()])

    with pytest.raises(ConfigurationError, match="can't be switched off in production"):
        async with in_production.opened({}):
            pass


# Settings as data.


@pytest.mark.spec("S-053", "X-27")
async def test_providers_come_from_a_file_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-secret-in-a-file-of-32-bytes-or-more\n")
    file = tmp_path / "gateway.toml"
    file.write_text(f"""
        [gateway.auth]
        realm = "shop"

        [[gateway.auth.providers]]
        type = "jwt"
        name = "staff"
        secret_key_file = "{secret}"

        [[gateway.auth.providers]]
        type = "api_key"
        api_key_header = "X-Key"
        keys = {{ billing = "{KEY}", shop = {{ key = "key-of-shop-0123456789", scopes = ["read"] }} }}

        [[gateway.routes]]
        path = "/api/*"
        service = "up"
        auth = {{ scopes = ["read"], providers = ["api_key", "staff"] }}
    """)
    upstream = Upstream()
    gateway = APIGateway(services={"up": upstream}, config_file=str(file))
    async with gateway.opened({}), client_of(gateway) as client:
        made = token(
            {"sub": "a", "exp": FAR, "scope": "read"}, key=OctKey.import_key("a-secret-in-a-file-of-32-bytes-or-more")
        )
        assert (await client.get("/api/x", headers=bearer(made))).status_code == 200
        assert (await client.get("/api/x", headers={"x-key": "key-of-shop-0123456789"})).status_code == 200
        assert (await client.get("/api/x", headers={"x-key": KEY})).status_code == 403
        nobody = await client.get("/api/x")

    assert challenges(nobody) == ['ApiKey realm="shop"', 'Bearer realm="shop", scope="read"']
    for text in (repr(gateway.config), str(gateway.config.model_dump()), gateway.config.model_dump_json(), caplog.text):
        assert KEY not in text
        assert "a-secret-in-a-file" not in text


@pytest.mark.spec("X-27")
async def test_providers_come_from_a_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = [{"type": "jwt", "secret_key": SECRET, "algorithm": "HS256"}]
    monkeypatch.setenv("MESH_GATEWAY__AUTH__PROVIDERS", json.dumps(providers))
    monkeypatch.setenv("MESH_GATEWAY__AUTH__REQUIRED", "true")
    async with calling(Upstream(), route={}) as client:
        assert (await client.get("/api/x", headers=bearer(good()))).status_code == 200
        assert (await client.get("/api/x")).status_code == 401


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        ({"type": "jwtt"}, "auth.providers[0].type: 'jwtt' is not one of jwt, oauth2, api_key - did you mean 'jwt'?"),
        ({}, "auth.providers[0].type: is missing: one of jwt, oauth2, api_key"),
        ({"type": "jwt", "secret": SECRET}, "auth.providers[0].secret: unknown key - did you mean 'secret_key'?"),
        ({"type": "jwt", "secret_key": 7}, "auth.providers[0].secret_key: the value (not shown) is not a text"),
        ({"type": "jwt"}, "auth.providers[0]: has no key"),
        ({"type": "api_key", "keys": {"a": "with space " + SECRET}}, "auth.providers[0].keys.a"),
        ({"type": "oauth2", "client_id": "a"}, "auth.providers[0]: can't check a token"),
        ({"type": "oauth2", "client_id": "a", "token_url": "http://id.example/t"}, "it is not https"),
    ],
)
def test_a_provider_s_settings_are_explained_without_their_secrets(provider: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        APIGateway(auth={"providers": [provider]})

    assert problem in str(refused.value)
    assert SECRET not in str(refused.value)


# A provider of one's own.


@pytest.mark.spec("S-053")
async def test_a_provider_of_one_s_own_is_a_class_with_one_method() -> None:
    class Tickets(AuthProvider):
        name = "tickets"
        places = (FromHeader(b"x-ticket"),)
        challenge = "Ticket"

        async def authenticate(self, credential: str) -> Principal:
            if credential == "used":
                raise CredentialError("used")
            if credential != "good":
                raise UnknownCredentialError("no such ticket")
            return Principal("seat-7", "whatever", roles=frozenset({"guest"}))

    upstream = Upstream()
    async with calling(upstream, Tickets(), jwt(), route={"auth": {"roles": ["guest"]}}) as client:
        statuses = [
            (await client.get("/api/x", headers={"x-ticket": ticket})).status_code for ticket in ("good", "used", "bad")
        ]
        nobody = await client.get("/api/x")

    assert statuses == [200, 401, 401]
    assert (upstream.headers["x-auth-subject"], upstream.headers["x-auth-provider"]) == ("seat-7", "tickets")
    assert challenges(nobody)[0] == 'Ticket realm="gateway"'


@pytest.mark.spec("X-27")
async def test_authentications_are_counted_by_provider_and_result() -> None:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    mesh = ServiceMesh("gw", discovery_backend="static", enable_service_discovery=False, metrics_registry=registry)
    gateway = APIGateway(services={"up": Upstream()}, service_mesh=mesh)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth": {"scopes": ["read"]}}])
    gateway.configure_auth([jwt(), api_key()])
    async with gateway.opened({}), client_of(gateway) as client:
        made = good(scope="read")
        for headers in (
            bearer(made),
            bearer(made),
            bearer(good()),
            bearer("wrong"),
            bearer(good(exp=NOW)),
            {"x-api-key": "wrong"},
            {},
        ):
            await client.get("/api/x", headers=headers)
        await client.get("/api/x?api_key=1&api_key=2")

    def count(provider: str, result: str) -> float | None:
        return registry.get_sample_value("gateway_authentications_total", {"provider": provider, "result": result})

    assert (count("jwt", "accepted"), count("jwt", "forbidden"), count("jwt", "invalid")) == (3, 1, 1)
    assert (count("jwt", "expired"), count("api_key", "invalid")) == (1, 1)
    assert (count("none", "missing"), count("none", "ambiguous")) == (1, 1)
