"""Authentication under random input: nothing but a refusal, nobody taken for somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import random

import httpx2
import pytest
from auth_support import SECRET, Upstream, claims, client_of, token, tools
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastapi_mesh import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, CredentialError, JWTAuthProvider
from fastapi_mesh.api_gateway.auth.compact import MalformedTokenError, read_compact

pytestmark = pytest.mark.anyio

GOOD = token()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"


async def refused(credential: str) -> bool:
    async with tools() as made:
        verifier = JWTAuthProvider(secret_key=SECRET).open(made)
        try:
            await verifier.authenticate(credential)
        except CredentialError:
            return True
    return False


@pytest.mark.spec("X-27")
async def test_a_token_with_one_letter_changed_added_or_left_out_is_refused() -> None:
    """Every place, a few letters each: a token has one spelling."""
    drawn = random.Random(7)
    for place in range(len(GOOD)):
        assert await refused(GOOD[:place] + GOOD[place + 1 :])
        for letter in drawn.sample(LETTERS, 4):
            assert await refused(GOOD[:place] + letter + GOOD[place:])
            if letter != GOOD[place]:
                assert await refused(GOOD[:place] + letter + GOOD[place + 1 :])


@pytest.mark.spec("X-27")
@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}"))
@hypothesis_settings(max_examples=300, deadline=None)
def test_whatever_is_no_token_is_malformed_and_nothing_else(text: str) -> None:
    with contextlib.suppress(MalformedTokenError):
        read_compact(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "scope", "scp", "roles", "cnf", "jti", "x"])


@pytest.mark.spec("X-27")
@given(st.dictionaries(NAMES, JSON, max_size=6))
@hypothesis_settings(max_examples=300, deadline=None)
def test_claims_of_any_kind_are_taken_or_refused_and_never_an_error(changed: dict[str, object]) -> None:
    asyncio.run(refused(token(claims(**changed))))


@pytest.mark.spec("X-27")
async def test_twenty_clients_at_once_are_never_taken_for_each_other() -> None:
    class Echo(Upstream):
        async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            name = dict(scope["headers"])[b"x-auth-subject"]
            await asyncio.sleep(0)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-name", name)]})
            await send({"type": "http.response.body", "body": b""})

    gateway = APIGateway(services={"up": Echo()}, enable_metrics=False)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/api/*", "service": "up", "auth_required": True}])
    keys = {f"key-{number}": f"key-of-client-{number}-0123456789" for number in range(10)}
    gateway.configure_auth([JWTAuthProvider(secret_key=SECRET), APIKeyAuthProvider(keys=keys)])
    clients = [(name, {"x-api-key": key}) for name, key in keys.items()]
    for number in range(10):
        made = token({"sub": f"user-{number}", "exp": 4_000_000_000})
        clients.append((f"user-{number}", {"authorization": f"Bearer {made}"}))
    drawn = random.Random(3)

    async with gateway.opened({}), client_of(gateway) as client:

        async def ask() -> tuple[str, httpx2.Response]:
            name, headers = drawn.choice(clients)
            return name, await client.get("/api/x", headers=headers)

        for _ in range(20):
            for name, answer in await asyncio.gather(*(ask() for _ in range(30))):
                assert answer.headers["x-name"] == name
