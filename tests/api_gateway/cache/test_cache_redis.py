"""Redis as the store of several gateways: what they share, what they tell each other, and life without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fastapi_mesh.api_gateway.cache import redis as module
from fastapi_mesh.api_gateway.cache.key import Scope
from fastapi_mesh.api_gateway.cache.layered import LayeredStore
from fastapi_mesh.api_gateway.cache.memory import MemoryStore
from fastapi_mesh.api_gateway.cache.redis import MAX_OWED, MAX_PURGES, RedisStore
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.config.edge.cache import CacheConfig
from fastapi_mesh.core.message import Response
from tests.api_gateway.cache.cache_support import Parts, Script, Stage, numbered, pairs, reply
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.server("redis")]

LONG = "Cache-Control: max-age=600"


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def gateway(
    url: str,
    script: Script,
    *,
    recheck: float = 0.0,
    clock: Time | None = None,
    timeout: float = 0.25,
    **policy: object,
) -> AsyncIterator[Stage]:
    """A process of a gateway, as far as its cache is concerned."""
    config = CacheConfig(backend=url, timeout=timeout)
    memory = MemoryStore(1 << 20)
    stage = Stage(script, **policy)
    shared = RedisStore(config, failed=stage.meter.failed, clock=clock or time.monotonic)
    stage.engine.store = LayeredStore(memory, shared, recheck=recheck, clock=clock or time.monotonic)
    stage.memory = memory
    async with stage:
        try:
            yield stage
        finally:
            await stage.engine.aclose()


@pytest.mark.spec("X-26", "S-023")
async def test_what_one_process_stored_another_one_serves(redis_server: RedisServer) -> None:
    said = (LONG, "Vary: Accept-Language", "X-Latin: caf\xe9", 'ETag: "1"')
    async with (
        gateway(redis_server.url, numbered(*said)) as one,
        gateway(redis_server.url, numbered(*said)) as other,
    ):
        for language in ("en", "de"):
            await one.get("/a", f"Accept-Language: {language}")
        got = [(await other.get("/a", f"Accept-Language: {language}")) for language in ("de", "en", "de")]

    assert [each.body for each in got] == [b"2", b"1", b"2"]
    assert all(each.is_hit for each in got)
    assert got[0]["x-latin"] == "caf\xe9"
    assert other.calls == []


async def test_a_socket_is_an_address_too(redis_server: RedisServer) -> None:
    async with (
        gateway(redis_server.unix_url, numbered(LONG)) as one,
        gateway(redis_server.url, numbered(LONG)) as other,
    ):
        await one.get()
        assert (await other.get()).is_hit


async def test_an_answer_that_is_withdrawn_is_gone_for_all(redis_server: RedisServer) -> None:
    said = ["Cache-Control: max-age=5"]
    async with gateway(redis_server.url, lambda request: reply("x", *said)) as one:
        await one.get()
        one.now += 6
        said[0] = "Cache-Control: no-store"
        await one.get()
        async with gateway(redis_server.url, lambda request: reply("y", *said)) as other:
            assert (await other.get("/a", "Cache-Control: max-stale")).body == b"y"


@pytest.mark.spec("X-26", "B12")
async def test_partitions_hold_across_processes(redis_server: RedisServer) -> None:
    async with (
        gateway(redis_server.url, numbered(LONG)) as one,
        gateway(redis_server.url, numbered(LONG)) as other,
    ):
        await one.get("/me", principal=Principal("ann", "jwt"))
        assert not (await other.get("/me", principal=Principal("bob", "jwt"))).is_hit
        assert not (await other.get("/me")).is_hit
        assert (await other.get("/me", principal=Principal("ann", "jwt"))).is_hit


async def test_what_is_in_redis_expires_and_tells_nothing(redis_server: RedisServer) -> None:
    async with gateway(redis_server.url, lambda request: reply("x", f"{LONG}, public", "Vary: Authorization")) as stage:
        await stage.get("/secret-path?token=s3cret", "Authorization: Bearer s3cret", "Cookie: s3cret")
        await stage.get("/secret-path", method="POST")
        await stage.engine.purge(Scope("prefix", b"/x"))
        keys = redis_server.keys()

    assert len(keys) == 4
    for key in keys:
        assert key.startswith("fastapi-mesh:")
        assert "secret" not in key
        value = redis_server.command("GET", key)
        assert "s3cret" not in str(value)
        ttl = redis_server.command("PTTL", key)
        assert isinstance(ttl, int)
        assert ttl > 0


@pytest.mark.spec("X-26")
@pytest.mark.parametrize(
    "scope",
    [
        Scope("path", b"/a/b"),
        Scope("prefix", b"/a"),
        Scope("route", b"/*"),
        Scope("all"),
        Scope("key", b"http://gw/a/b"),
    ],
)
async def test_an_invalidation_in_one_process_is_seen_by_the_others(redis_server: RedisServer, scope: Scope) -> None:
    async with (
        gateway(redis_server.url, numbered(LONG)) as one,
        gateway(redis_server.url, numbered(LONG)) as other,
    ):
        await one.get("/a/b")
        await one.get("/c")
        assert (await other.get("/a/b")).is_hit
        await one.engine.purge(scope)
        assert not (await other.get("/a/b")).is_hit
        assert (await one.get("/a/b")).is_hit, "the other one has stored it anew"
        assert (await other.get("/c")).is_hit is (scope.kind not in ("all", "route"))


async def test_memory_is_trusted_for_a_while_and_its_own_invalidations_count_at_once(redis_server: RedisServer) -> None:
    clock = Time()
    async with (
        gateway(redis_server.url, numbered(LONG), recheck=1.0, clock=clock) as one,
        gateway(redis_server.url, numbered(LONG)) as other,
    ):
        await one.get()
        await other.get(method="POST")
        assert (await one.get()).is_hit
        clock.now += 1.1
        assert not (await one.get()).is_hit
        await one.get(method="POST")
        assert not (await one.get()).is_hit


@pytest.mark.spec("X-26")
async def test_an_answer_from_before_a_change_in_another_process_is_not_served_after_it(
    redis_server: RedisServer,
) -> None:
    gate = asyncio.Event()
    slow_body = Parts([b"old", gate, b" data"])
    async with (
        gateway(redis_server.url, lambda request: Response(200, pairs([LONG]), slow_body), recheck=60.0) as one,
        gateway(redis_server.url, numbered(LONG), recheck=60.0) as other,
    ):
        slow = one.supervisor.start(one.get(), name="client")
        while not one.calls:  # noqa: ASYNC110 - Redis answers in its own time
            await asyncio.sleep(0.005)
        await other.get(method="POST")
        gate.set()
        assert (await slow).body == b"old data"
        assert not (await other.get()).is_hit


async def test_many_purges_become_one_of_everything(redis_server: RedisServer) -> None:
    async with gateway(redis_server.url, numbered(LONG)) as stage:
        await stage.get()
        for number in range(MAX_PURGES):
            await stage.engine.purge(Scope("prefix", b"/other/%d" % number))
        assert (await stage.get()).is_hit
        await stage.engine.purge(Scope("prefix", b"/one-more"))
        assert not (await stage.get()).is_hit
        assert (await stage.get()).is_hit


async def test_purges_at_the_same_time_all_count(redis_server: RedisServer) -> None:
    async with (
        gateway(redis_server.url, numbered(LONG), timeout=20.0) as one,
        gateway(redis_server.url, numbered(LONG), timeout=20.0) as other,
    ):
        paths = [f"/{number}/x" for number in range(8)]
        for path in paths:
            await one.get(path)
        await asyncio.gather(
            *(
                stage.engine.purge(Scope("prefix", f"/{number}".encode()))
                for number, stage in enumerate([one, other] * 4)
            )
        )
        assert [(await one.get(path)).is_hit for path in paths] == [False] * 8


@pytest.mark.spec("X-26")
async def test_only_one_process_refreshes_a_stale_answer(redis_server: RedisServer) -> None:
    said = "Cache-Control: max-age=10, stale-while-revalidate=60"
    async with (
        gateway(redis_server.url, numbered(said)) as one,
        gateway(redis_server.url, numbered(said)) as other,
    ):
        gate = asyncio.Event()

        async def slow(request: Exchange) -> Response:
            await gate.wait()
            return reply("new", said)

        await one.get()
        one.script = other.script = slow
        one.now += 15
        other.now += 15
        assert (await one.get()).body == (await other.get()).body == b"1"
        await asyncio.sleep(0.05)
        assert len(one.calls) + len(other.calls) == 2
        gate.set()
        await one.settled()
        await other.settled()
        assert (await one.get()).body == (await other.get()).body == b"new"


# Without it.


@pytest.mark.spec("X-26")
async def test_without_redis_requests_go_on_and_nothing_is_waited_for(redis_server: RedisServer) -> None:
    clock = Time()
    async with gateway(redis_server.url, numbered(LONG), clock=clock) as stage:
        await stage.get()
        assert (await stage.get()).is_hit
        redis_server.kill()
        bypassing = [await stage.get() for _ in range(5)]
        redis_server.restart()
        still = await stage.get()
        clock.now += module.FIRST_PAUSE
        back = await stage.get()
        assert (await stage.get()).is_hit

    assert [each.body for each in bypassing] == [b"2", b"3", b"4", b"5", b"6"]
    assert {each.cache for each in [*bypassing, still]} == {"fwd=bypass; detail=store-away"}
    assert back.cache == "fwd=uri-miss; stored"
    assert stage.meter.failures == 1, "after one failure it is left alone"


async def test_a_redis_that_hangs_costs_one_request_its_timeout(redis_server: RedisServer) -> None:
    async with gateway(redis_server.url, numbered(LONG)) as stage:
        await stage.get()
        redis_server.pause()
        try:
            started = time.monotonic()
            first, second = await stage.get(), await stage.get()
            took = time.monotonic() - started
        finally:
            redis_server.resume()

    assert first.status == second.status == 200
    assert took < 10
    assert stage.meter.failures == 1, "the second did not wait for it"


async def test_the_pause_grows_while_redis_stays_away(redis_server: RedisServer) -> None:
    redis_server.kill()
    clock = Time()
    pauses = []
    async with gateway(redis_server.url, numbered(LONG), clock=clock) as stage:
        for _ in range(9):
            before = clock.now
            failures = stage.meter.failures
            await stage.get()
            while stage.meter.failures == failures:
                clock.now += 0.25
                await stage.get()
            pauses.append(clock.now - before)

    assert pauses[0] == 0.0
    assert pauses[1:] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.spec("X-26")
@pytest.mark.parametrize("many", [False, True])
async def test_a_change_while_redis_was_away_is_made_up_for(redis_server: RedisServer, many: bool) -> None:
    clock = Time()
    async with gateway(redis_server.url, numbered(LONG), clock=clock) as stage:
        await stage.get()
        redis_server.pause()
        await stage.get("/a", method="POST")
        for number in range(MAX_OWED + 5 if many else 0):
            await stage.engine.purge(Scope("path", b"/%d" % number))
        redis_server.resume()
        clock.now += module.LONGEST_PAUSE
        after = await stage.get()
        assert (await stage.get()).is_hit

    assert not after.is_hit


async def test_a_change_that_is_owed_is_written_when_the_gateway_closes(redis_server: RedisServer) -> None:
    clock = Time()
    async with gateway(redis_server.url, numbered(LONG), clock=clock) as one:
        await one.get()
        redis_server.pause()
        await one.get("/a", method="POST")
        redis_server.resume()
        clock.now += module.LONGEST_PAUSE
    async with gateway(redis_server.url, numbered(LONG)) as other:
        assert not (await other.get()).is_hit


async def test_what_somebody_else_wrote_into_redis_is_a_miss_and_never_run(redis_server: RedisServer) -> None:
    import pickle

    async with gateway(redis_server.url, numbered(LONG)) as stage:
        for junk in (b"junk", pickle.dumps({"a": 1}), b"[[1,[[1]]]]", b'[[9e99,[["x","y"]]]]', b"\xff\xfe"):
            await stage.get()
            keys = redis_server.keys()
            for key in keys:
                redis_server.command("SET", key, junk.decode("latin-1"), "PX", "60000")
            await stage.memory.aclose()
            assert (await stage.get()).status == 200


async def test_values_of_another_type_under_its_keys_are_misses_and_make_way(redis_server: RedisServer) -> None:
    async with gateway(redis_server.url, numbered(LONG)) as stage:
        await stage.get()
        keys = redis_server.keys()
        for key in keys:
            redis_server.command("DEL", key)
            redis_server.command("HSET", key, "field", "value")
        await stage.memory.aclose()

        assert not (await stage.get()).is_hit
        await stage.memory.aclose()
        assert (await stage.get()).is_hit, "it was stored, and Redis was not taken for one that fails"


async def test_a_cancelled_request_leaves_the_client_of_redis_in_order(redis_server: RedisServer) -> None:
    async with gateway(redis_server.url, numbered(LONG)) as stage:
        for turns in range(40):
            client = stage.supervisor.start(stage.get(f"/{turns}"), name="client")
            for _ in range(turns):
                await asyncio.sleep(0)
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
        await stage.get("/after")
        after = await stage.get("/after")
        statistics = stage.engine.statistics()

    assert after.is_hit
    assert statistics["errors"] == 0
    assert statistics["flights"] == 0
