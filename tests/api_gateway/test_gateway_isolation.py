"""No client ever gets another's answer, cookie or token: twenty of them at once, a service that says all that can go
wrong, and everything on that shares anything (cache, single flight, verified tokens, splits, limits, connections).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, JWTAuthProvider

pytestmark = pytest.mark.spec("X-26", "X-27", "X-22", "B12")

SECRET = "a secret of the tests that is long enough for HS256"
OWNERS = [f"user-{number}" for number in range(20)]
PATHS = ["/items/1", "/items/2?page=1", "/items/3"]
TOKENS = {
    owner: jwt.encode({"alg": "HS256"}, {"sub": owner, "exp": int(time.time()) + 3600}, OctKey.import_key(SECRET))
    for owner in OWNERS[:14]
}
KEYS = {owner: f"key-of-{owner}-0123456789abcdef" for owner in OWNERS[14:]}

CONTROLS = [
    b"",
    b"max-age=60",
    b"private, max-age=60",
    b"no-cache",
    b"no-store",
    b"must-revalidate, max-age=60",
    b"max-age=0, stale-while-revalidate=60",
    b"max-age=0, stale-if-error=60",
    b'private="x-secret", max-age=60',
    b'no-cache="set-cookie", max-age=60',
    b"max-age=60, proxy-revalidate",
]
"""None of them permits a shared cache to give an answer to one client's credentials to another."""


@dataclass(frozen=True)
class Ask:
    """One request: who, where, how, and what the service is told to do with it."""

    owner: str
    path: str
    method: str
    control: int
    vary: int
    tag: bool
    cookie: bool
    status: int
    slow: bool
    leaves: bool
    conditional: bool


ASKS = st.lists(
    st.builds(
        Ask,
        owner=st.sampled_from(OWNERS),
        path=st.sampled_from(PATHS),
        method=st.sampled_from(["GET", "GET", "GET", "GET", "HEAD", "POST"]),
        control=st.integers(0, len(CONTROLS) - 1),
        vary=st.integers(0, 3),
        tag=st.booleans(),
        cookie=st.booleans(),
        status=st.sampled_from([200, 200, 200, 200, 404, 500]),
        slow=st.booleans(),
        leaves=st.sampled_from([False, False, False, True]),
        conditional=st.booleans(),
    ),
    min_size=30,
    max_size=60,
)


async def service(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """Answers with who asked, as it was told; its entity tags are the same for everybody, as careless ones are."""
    if scope["type"] != "http":
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    told = json.loads(headers["x-told"])
    if told["slow"]:
        await asyncio.sleep(0.002)
    owner = headers["x-auth-subject"]
    answer = [
        (b"content-type", b"application/json"),
        (b"x-secret", owner.encode()),
        (b"x-credential", (headers.get("authorization", "") + headers.get("x-api-key", "")).encode()),
    ]
    if CONTROLS[told["control"]]:
        answer.append((b"cache-control", CONTROLS[told["control"]]))
    if told["vary"]:
        answer.append((b"vary", [b"", b"accept", b"Authorization", b"x-auth-subject, accept-language"][told["vary"]]))
    if told["tag"]:
        answer.append((b"etag", b'"the-same-for-all"'))
    if told["cookie"]:
        answer.append((b"set-cookie", b"session=" + owner.encode() + b"; Path=/"))
    status = told["status"]
    if headers.get("if-none-match") == '"the-same-for-all"' and told["tag"]:
        status = 304
    await send({"type": "http.response.start", "status": status, "headers": answer})
    body = b"" if status == 304 else json.dumps({"owner": owner, "path": scope["path"]}).encode()
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


@asynccontextmanager
async def shop(settings_of_route: Mapping[str, object]) -> AsyncIterator[httpx2.AsyncClient]:
    gateway = APIGateway(services={"items": service, "items-next": service})
    gateway.configure_auth([JWTAuthProvider(secret_key=SECRET), APIKeyAuthProvider(keys=KEYS)])
    gateway.configure_routes(
        [
            {
                "path": "/*",
                "service": "items",
                "auth_required": True,
                "cache_ttl": 60,
                "rate_limit": "100000/minute",
                "circuit_breaker": None,  # the service fails on purpose, and its answers are what this is about
                "split": {"services": {"items": 1, "items-next": 1}, "sticky_cookie": "version"},
                **settings_of_route,
            }
        ]
    )
    transport = httpx2.ASGITransport(app=gateway)
    async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        yield client


def credential(owner: str) -> dict[str, str]:
    if owner in TOKENS:
        return {"authorization": f"Bearer {TOKENS[owner]}"}
    return {"x-api-key": KEYS[owner]}


async def play(client: httpx2.AsyncClient, asks: list[Ask]) -> int:
    """All at once; returns how many were answered."""
    answered = 0

    async def ask(each: Ask) -> None:
        nonlocal answered
        told = {name: getattr(each, name) for name in ("control", "vary", "tag", "cookie", "status", "slow")}
        headers = {**credential(each.owner), "x-told": json.dumps(told), "accept-language": "en"}
        if each.conditional:
            headers["if-none-match"] = '"the-same-for-all"'
        request = client.build_request(each.method, each.path, headers=headers)
        with anyio.move_on_after(0.001 if each.leaves else 20) as scope:
            response = await client.send(request)
        if scope.cancelled_caught:
            return
        answered += 1
        assert response.status_code in (200, 304, 404, 500), response.text
        # A hit may lack it: `private="x-secret"` keeps that one field out of the cache (RFC 9111 section 5.2.2.7).
        assert response.headers.get("x-secret", each.owner) == each.owner
        if response.status_code != 304 and each.method != "HEAD":
            assert response.json() == {"owner": each.owner, "path": each.path.partition("?")[0]}
        assert response.headers.get("x-credential", "") == "", "the credential is not for the service"
        for name, value in response.headers.multi_items():
            if name == "set-cookie" and value.startswith("session="):
                assert value.startswith(f"session={each.owner};")

    async with anyio.create_task_group() as group:
        for each in asks:
            group.start_soon(ask, each)
    client.cookies.clear()
    return answered


CACHES = [{}, {"force": True}, {"sharing": "rfc"}, {"heuristic": 1.0, "grace": 600}]


@pytest.mark.parametrize("cache", CACHES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(asks=ASKS)
def test_twenty_clients_get_their_own_answers(cache: Mapping[str, object], asks: list[Ask]) -> None:
    each_gets_its_own(cache, asks)


@pytest.mark.soak
@pytest.mark.parametrize("cache", CACHES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(asks=ASKS)
def test_twenty_clients_get_their_own_answers_for_long(cache: Mapping[str, object], asks: list[Ask]) -> None:
    each_gets_its_own(cache, asks)


def each_gets_its_own(cache: Mapping[str, object], asks: list[Ask]) -> None:
    if cache.get("sharing") == "rfc":  # by RFC 9111 section 3.5 must-revalidate permits sharing
        asks = [each for each in asks if b"must-revalidate" not in CONTROLS[each.control]]

    async def run() -> None:
        async with shop({"cache": cache}) as client:
            answered = await play(client, asks)
            assert answered >= sum(not each.leaves for each in asks)
            await play(client, asks)

    anyio.run(run)


def test_one_and_the_same_answer_is_shared_only_when_it_is_public() -> None:
    told = {"vary": 0, "tag": False, "cookie": False, "status": 200, "slow": True}

    async def run() -> None:
        async with shop({"split": None}) as client:
            for control, shared in ((1, False), (5, False)):
                headers = {"x-told": json.dumps({**told, "control": control})}
                first = await client.get(f"/c{control}", headers={**headers, **credential("user-1")})
                again = await client.get(f"/c{control}", headers={**headers, **credential("user-1")})
                other = await client.get(f"/c{control}", headers={**headers, **credential("user-15")})
                assert "hit" in again.headers["cache-status"], "the test would show nothing if nothing were cached"
                assert first.json() == again.json()
                assert (other.json()["owner"] == "user-1") is shared

    anyio.run(run)
