"""No client gets another client's answer, whatever the service forgets to say."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.cache.asked import Asked, kinds_of
from fastapi_mesh.api_gateway.cache.key import EVERYBODY, NOBODY, key_of, route_mark
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.core.message import Response
from tests.api_gateway.cache.cache_support import POLICY, ROUTE, Parts, Reply, Stage, exchange, pairs, reply

pytestmark = pytest.mark.anyio

ANN, BOB = Principal("ann", "jwt"), Principal("bob", "jwt")
LONG = "Cache-Control: max-age=600"


def whose(request: Exchange) -> bytes:
    """Who asked, as the service sees it: every credential there is."""
    credentials = [value for name, value in request.headers if name in (b"authorization", b"cookie", b"x-api-key")]
    named = request.principal.key.encode() if request.principal else b"nobody"
    return b"|".join([named, *credentials])


@pytest.mark.spec("X-26", "B12")
@pytest.mark.parametrize("said", [LONG, "X-Silent: yes", "Cache-Control: max-age=600, must-revalidate"])
@pytest.mark.parametrize(
    "clients",
    [
        [((), ANN), ((), BOB), ((), None)],
        [((), Principal("ann", "jwt")), ((), Principal("ann", "api-key")), ((), Principal("t:ann", "jw"))],
        [
            ((), Principal("ann", "jwt", scopes=frozenset({"read"}))),
            ((), Principal("ann", "jwt", roles=frozenset({"read"}))),
        ],
        [((), Principal("ann", "jwt", claims={"tenant": "a"})), ((), Principal("ann", "jwt", claims={"tenant": "b"}))],
        [(("Cookie: session=1",), None), (("Cookie: session=2",), None), ((), None)],
        [(("X-API-Key: 1",), None), (("X-API-Key: 2",), None), ((), None)],
        [(("Authorization: Bearer 1",), ANN), (("Authorization: Bearer 2",), ANN), ((), ANN)],
        [(("Cookie: a", "X-API-Key: b"), None), (("Cookie: b", "X-API-Key: a"), None), (("Cookie: ab",), None)],
    ],
)
async def test_clients_with_different_credentials_share_no_answer(said: str, clients) -> None:  # type: ignore[no-untyped-def]
    async with Stage(lambda request: reply(whose(request), said), ttl=600.0) as stage:
        for _ in range(2):
            got = [(await stage.get("/me", *headers, principal=principal)).body for headers, principal in clients]
        expected = [whose(exchange("/me", *headers, principal=principal)) for headers, principal in clients]
        again = [(await stage.get("/me", *headers, principal=principal)).is_hit for headers, principal in clients]

    assert got == expected
    assert all(again), "each of them has an answer of its own"
    assert len(stage.calls) == len(clients)


@pytest.mark.spec("X-26", "B12")
async def test_a_client_whose_claims_change_gets_another_answer_and_its_fingerprint_is_not_inherited() -> None:
    claims: dict[str, object] = {"tenant": "a"}
    ann = Principal("ann", "jwt", claims=claims)
    fixed = Principal("ann", "jwt", claims=MappingProxyType({"tenant": "a"}))
    async with Stage(lambda request: reply("x", LONG)) as stage:
        for principal in (ann, fixed):
            await stage.get("/me", principal=principal)
            assert (await stage.get("/me", principal=principal)).is_hit
        claims["tenant"] = "b"
        assert not (await stage.get("/me", principal=ann)).is_hit
        assert not (await stage.get("/me", principal=replace(fixed, scopes=frozenset({"write"})))).is_hit

    assert len(stage.calls) == 3
    assert fixed.fingerprint
    assert fixed == Principal("ann", "jwt", claims={"tenant": "a"})


@pytest.mark.spec("X-26")
async def test_a_bearer_token_that_nobody_has_checked_makes_an_answer_unfit_for_the_cache() -> None:
    async with Stage(lambda request: reply("secret", LONG), ttl=600.0) as stage:
        for _ in range(2):
            assert not (await stage.get("/me", "Authorization: Bearer 1")).is_hit
        assert not (await stage.get("/me")).is_hit

    assert len(stage.calls) == 3


@pytest.mark.spec("X-26", "B12")
@pytest.mark.parametrize("directive", ["public, max-age=600", "s-maxage=600"])
async def test_what_the_service_calls_public_is_for_everybody(directive: str) -> None:
    async with Stage(lambda request: reply("same for all", f"Cache-Control: {directive}")) as stage:
        await stage.get("/a", "Authorization: Bearer 1", principal=ANN)
        assert (await stage.get("/a", principal=BOB)).is_hit
        assert (await stage.get("/a", "Cookie: x=1")).is_hit
        assert (await stage.get("/a")).is_hit

    assert len(stage.calls) == 1


async def test_what_was_said_last_decides_whether_it_is_for_everybody() -> None:
    said = iter(["max-age=5", "public, max-age=5", "max-age=5"])
    async with Stage(lambda request: reply("x", f"Cache-Control: {next(said)}")) as stage:
        await stage.get(principal=ANN)
        stage.now += 6
        await stage.get(principal=ANN)
        assert (await stage.get(principal=BOB)).is_hit
        stage.now += 6
        await stage.get(principal=ANN)
        assert (await stage.get(principal=ANN)).is_hit
        assert len(stage.calls) == 3


async def test_by_the_letter_of_the_rfc_a_cookie_is_no_credential() -> None:
    async with Stage(lambda request: reply("x", LONG), sharing="rfc") as stage:
        await stage.get("/a", "Cookie: a=1")
        assert (await stage.get("/a", "Cookie: a=2")).is_hit

    async with Stage(lambda request: reply("x", f"{LONG}, must-revalidate"), sharing="rfc") as stage:
        await stage.get("/a", "Authorization: Bearer 1")
        assert (await stage.get("/a")).is_hit
        await stage.get("/b", principal=ANN)
        assert not (await stage.get("/b", principal=BOB)).is_hit, "an authenticated client always has its own"


@pytest.mark.spec("X-26")
@pytest.mark.parametrize("said", ["max-age=600", "public, max-age=600"])
async def test_nobody_is_given_another_one_s_cookie(said: str) -> None:
    script = [f"Cache-Control: {said}", "Set-Cookie: session=1"]
    async with Stage(lambda request: reply("x", *script)) as stage:
        first = await stage.get()
        second = await stage.get()

    assert first["set-cookie"] == "session=1"
    assert second.is_hit is ("public" in said)
    if second.is_hit:
        assert second["set-cookie"] is None


@pytest.mark.parametrize(
    "said", ["private, max-age=600", "no-store", "no-store, public, max-age=600", 'private="", max-age=9']
)
async def test_what_is_private_is_kept_for_nobody(said: str) -> None:
    async with Stage(lambda request: reply("x", f"Cache-Control: {said}"), ttl=600.0) as stage:
        await stage.get(principal=ANN)
        assert not (await stage.get(principal=ANN)).is_hit


async def test_fields_that_are_private_are_kept_for_nobody() -> None:
    said = ['Cache-Control: max-age=600, private="x-user", no-cache="set-cookie"', "X-User: ann", "Set-Cookie: a=1"]
    async with Stage(lambda request: reply("x", *said)) as stage:
        first = await stage.get()
        second = await stage.get()

    assert (first["x-user"], first["set-cookie"]) == ("ann", "a=1")
    assert (second.is_hit, second["x-user"], second["set-cookie"]) == (True, None, None)


# Variants.


@pytest.mark.spec("X-26")
async def test_variants_that_share_an_entity_tag_are_not_mixed_up() -> None:
    """Of a service whose 304 says nothing of the variant, hishel 2.0 gave the Spanish body to the English client."""

    def script(request: Exchange) -> Response:
        language = next(value for name, value in request.headers if name == b"accept-language")
        if any(name == b"if-none-match" for name, _ in request.headers):
            return Response.of(304, pairs(['ETag: "same"', "Vary: Accept-Language"]), b"")
        return reply(language, "Cache-Control: max-age=10", 'ETag: "same"', "Vary: Accept-Language")

    async with Stage(script) as stage:
        for language in ("es", "en"):
            await stage.get("/a", f"Accept-Language: {language}")
        stage.now += 11
        got = [(await stage.get("/a", f"Accept-Language: {language}")).body for language in ("en", "es", "de")]

    assert got == [b"en", b"es", b"de"]
    assert stage.asked_for("if-none-match") == [None, None, '"same"', '"same"', None]


@pytest.mark.spec("X-26")
async def test_variants_do_not_push_each_other_out() -> None:
    def script(request: Exchange) -> Response:
        return reply(
            b",".join(value for name, value in request.headers if name == b"x-variant"), LONG, "Vary: X-Variant"
        )

    async with Stage(script) as stage:
        for _ in range(3):
            for variant in "abcd":
                assert (await stage.get("/a", f"X-Variant: {variant}")).body == variant.encode()

    assert len(stage.calls) == 4
    assert stage.memory.statistics()["entries"] == 4


async def test_the_number_of_variants_has_a_bound() -> None:
    async with Stage(lambda request: reply("x", LONG, "Vary: X-Variant"), max_variants=3) as stage:
        for number in range(50):
            await stage.get("/a", f"X-Variant: {number}")
        assert stage.memory.statistics()["entries"] == 3
        assert (await stage.get("/a", "X-Variant: 49")).is_hit
        assert not (await stage.get("/a", "X-Variant: 3")).is_hit


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (["Accept-Encoding: gzip, br"], ["Accept-Encoding: BR;q=1.0,gzip"], True),
        (["Accept-Encoding: gzip"], ["Accept-Encoding: gzip;q=0"], False),
        (["Accept-Language: en, de"], ["Accept-Language: de", "Accept-Language: EN"], True),
        (["X-A: 1, 2"], ["X-A: 1", "X-A: 2"], True),
        (["X-A: a, b"], ["X-A: b, a"], False),
        (["X-A: a"], ["X-A: A"], False),
        (["X-A: "], [], False),
        ([f"X-A: {'a' * 4000}b"], [f"X-A: {'a' * 4000}c"], False),
        ([f"X-A: {'a' * 4000}"], [f"X-A: {'a' * 4000}"], True),
    ],
)
async def test_which_requests_are_for_the_same_variant(first: list[str], second: list[str], same: bool) -> None:
    vary = "Vary: Accept-Encoding, accept-language, X-A"
    async with Stage(lambda request: reply("x", LONG, vary)) as stage:
        await stage.get("/a", *first)
        assert (await stage.get("/a", *second)).is_hit is same


async def test_a_compressed_answer_is_given_only_to_who_takes_it_whatever_its_service_forgot() -> None:
    def script(request: Exchange) -> Response:
        if (b"accept-encoding", b"gzip") in request.headers:
            return reply("zipped", LONG, "Content-Encoding: gzip")
        return reply("plain", LONG)

    async with Stage(script) as stage:
        await stage.get("/a", "Accept-Encoding: gzip")
        assert (await stage.get("/a", "Accept-Encoding: gzip")).is_hit
        assert (await stage.get("/a")).body == b"plain"


async def test_secrets_that_an_answer_varies_by_are_not_kept_as_they_are() -> None:
    async with Stage(lambda request: reply("x", f"{LONG}, public", "Vary: Authorization")) as stage:
        await stage.get("/a", "Authorization: Bearer s3cret")
        assert (await stage.get("/a", "Authorization: Bearer s3cret")).is_hit
        assert not (await stage.get("/a", "Authorization: Bearer other")).is_hit
        kept = await stage.memory.find(
            key_of(exchange("/a"), Asked([], {}, obeys=True), route_mark(ROUTE)),
            _Anything(),  # type: ignore[arg-type]
        )

    assert kept is not None
    assert kept.entry is not None
    assert "s3cret" not in repr(kept)


class _Anything:
    def matches(self, wanted: object) -> bool:
        return True


# Whatever happens at the same time.

credentials = st.lists(
    st.sampled_from(
        ["Authorization: Bearer 1", "Authorization: Bearer 2", "Cookie: s=1", "Cookie: s=2", "X-API-Key: 1"]
    ),
    max_size=2,
    unique=True,
)
principals = st.sampled_from([None, ANN, BOB, Principal("ann", "other")])
said = st.lists(
    st.sampled_from(
        [
            *(
                "Cache-Control: max-age=600",
                "Cache-Control: max-age=0",
                "Cache-Control: private",
                "Cache-Control: no-cache",
            ),
            *('ETag: "same"', "Vary: X-Any", "Vary: Cookie", "Set-Cookie: s=9", "Expires: 0", "Vary: Accept-Language"),
            *("Cache-Control: must-revalidate", "Cache-Control: stale-while-revalidate=60", "Cache-Control: max-age=1"),
        ]
    ),
    max_size=4,
)


@pytest.mark.spec("X-26", "B12")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(credentials, principals, said, st.integers(0, 3)), min_size=2, max_size=10),
    seed=st.integers(0, 1000),
    force=st.booleans(),
)
def test_of_many_clients_at_once_each_gets_its_own_answer(
    requests: list[tuple[list[str], Principal | None, list[str], int]], seed: int, force: bool
) -> None:
    """The service never says `public`, so an answer with somebody else's name on it is a leak."""
    source = random.Random(seed)

    async def run() -> None:
        queue = [list(headers) for _, _, headers, _ in requests]

        async def script(request: Exchange) -> Response:
            for _ in range(source.randrange(3)):
                await asyncio.sleep(0)
            headers = source.choice(queue)
            if any(name == b"if-none-match" for name, _ in request.headers) and source.random() < 0.5:
                return Response.of(304, pairs(headers), b"")
            name = whose(request)
            parts: list[bytes | BaseException | asyncio.Event] = (
                [name[:3], name[3:]] if source.random() < 0.5 else [name]
            )
            return Response(200, pairs(headers), Parts(parts))

        async with Stage(script, ttl=600.0, force=force) as stage:

            async def ask(headers: list[str], principal: Principal | None, turns: int) -> tuple[Reply, bytes]:
                for _ in range(turns):
                    await asyncio.sleep(0)
                stage.now += turns
                got = await stage.get("/me", *headers, principal=principal)
                return got, whose(exchange("/me", *headers, principal=principal))

            for _ in range(2):
                for got, expected in await asyncio.gather(
                    *(ask(headers, principal, turns) for headers, principal, _, turns in requests)
                ):
                    assert got.body == expected
                    assert got["set-cookie"] is None or not got.is_hit
            await stage.settled()

    asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(
    one=st.tuples(credentials, principals),
    other=st.tuples(credentials, principals),
    name=st.text(max_size=4),
    subject=st.text(max_size=4),
)
def test_partitions_are_the_same_only_for_the_same_credentials(
    one: tuple[list[str], Principal | None], other: tuple[list[str], Principal | None], name: str, subject: str
) -> None:
    kinds = kinds_of(POLICY.credentials, cookies=True)

    def partition(headers: list[str], principal: Principal | None) -> bytes:
        request = exchange("/a", *headers, principal=principal)
        return key_of(request, Asked(request.headers, kinds, obeys=True), b"").own

    same = one == other
    assert (partition(*one) == partition(*other)) is same
    made = partition([], Principal(subject, name))
    assert made not in (EVERYBODY, NOBODY, partition(*one)) or one == ([], Principal(subject, name))
