"""Counting in a real Redis: one server, a Unix socket, Sentinels, a Cluster; and without one."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from fastapi_mesh.api_gateway.ratelimit.memory import MemoryCounters
from fastapi_mesh.api_gateway.ratelimit.store import RedisCounters
from fastapi_mesh.api_gateway.ratelimit.windows import Charge
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.wire.redis import StorageUnavailableError
from tests.api_gateway.ratelimit.ratelimit_support import STRATEGIES, Clock, charges
from tests.support.process import free_port, until
from tests.support.redis import PRIMARY_NAME, RedisCluster, RedisSentinel, RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.server("redis"), pytest.mark.spec("X-25")]


@asynccontextmanager
async def counters_on(url: str, *, timeout: float = 2.0, retry_interval: float = 0.05) -> AsyncIterator[RedisCounters]:
    """Counters in the Redis at `url`; the timeout is long, for a machine that does other things too."""
    supervisor = Supervisor()
    counters = RedisCounters(url, supervisor, timeout=timeout, retry_interval=retry_interval, namespace="test")
    try:
        yield counters
    finally:
        await counters.aclose()
        await supervisor.aclose()


async def passed(counters: RedisCounters, count: int, limit: list[Charge]) -> int:
    """How many of so many requests at once pass."""
    verdicts = await asyncio.gather(*(counters.charge(limit) for _ in range(count)))
    return sum(verdict.allowed for verdict in verdicts)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_64_clients_at_once_get_exactly_the_limit(redis_server: RedisServer, strategy: str) -> None:
    async with counters_on(redis_server.url) as counters:
        for _ in range(5):
            assert await passed(counters, 64, charges("30/hour", strategy, key=str(random.random()))) == 30


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_two_gateways_on_one_redis_share_a_count(redis_server: RedisServer, strategy: str) -> None:
    async with counters_on(redis_server.url) as one, counters_on(redis_server.url) as other:
        limit = charges("30/hour;50/day", strategy)
        assert sum(await asyncio.gather(passed(one, 40, limit), passed(other, 40, limit))) == 30


async def test_redis_decides_as_memory_does(redis_server: RedisServer) -> None:
    """The same requests at nearly the same times: where both agree on the time left, they agree on all."""
    clock = Clock(0.0)
    memory = MemoryCounters(1000, now=clock)
    rand = random.Random(5)
    async with counters_on(redis_server.url) as counters:
        for strategy in STRATEGIES:
            for number in range(60):
                cost = rand.choice([1, 1, 2, 5])
                limit = charges("25/hour;40/day", strategy, cost=cost)
                clock.now = time.time()
                expected, verdict = memory.charge(limit), await counters.charge(limit)
                where = (strategy, number)
                assert verdict.allowed == expected.allowed, where
                assert verdict.remaining == expected.remaining, where
                assert verdict.window is expected.window, where
                assert verdict.soon == pytest.approx(expected.soon, abs=1.0), where
                assert verdict.wait == pytest.approx(expected.wait, abs=1.0), where


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_time_passes_in_redis(redis_server: RedisServer, strategy: str) -> None:
    async with counters_on(redis_server.url) as counters:
        limit = charges("3/second", strategy)
        assert await passed(counters, 10, limit) <= 6  # a second may begin in between
        refused = await counters.charge(limit)
        while refused.allowed:
            refused = await counters.charge(limit)
        assert 0 < refused.wait <= 2
        await asyncio.sleep(refused.wait)
        assert (await counters.charge(limit)).allowed


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_request_that_one_window_refuses_is_counted_in_none(redis_server: RedisServer, strategy: str) -> None:
    async with counters_on(redis_server.url) as counters:
        assert await passed(counters, 20, charges("4/hour;10/day", strategy)) == 4
        assert await passed(counters, 20, charges("10/day", strategy)) == 6


async def test_nothing_stays_in_redis_for_ever_and_no_client_is_named_there(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url) as counters:
        for strategy in STRATEGIES:
            await counters.charge(charges("10/second;100/minute", strategy))
        keys = redis_server.keys()
        lifetimes = [redis_server.command("PTTL", key) for key in keys]

    assert len(keys) == 6
    assert all(isinstance(each, int) and 0 < each <= 120_000 for each in lifetimes)


async def test_all_requests_that_wait_go_in_one_round_trip(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url) as counters:
        await counters.charge(charges("1000/hour"))
        before = _reads(redis_server)
        await asyncio.gather(*(counters.charge(charges("1000/hour;5000/day")) for _ in range(100)))
        trips = _reads(redis_server) - before

    assert trips <= 8  # the server reads at most 16 kB at a time


def _reads(server: RedisServer) -> int:
    """How often the server read from a connection."""
    info = str(server.command("INFO", "stats"))
    return int(info.partition("total_reads_processed:")[2].partition("\r")[0])


async def test_a_client_that_goes_away_takes_no_connection_with_it(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url) as counters:
        await counters.charge(charges("1000/hour"))
        connections = _connections(redis_server)
        for number in range(50):
            tasks = [asyncio.ensure_future(counters.charge(charges("1000/hour"))) for _ in range(4)]  # noqa: TID251
            for _ in range(number % 7):
                await asyncio.sleep(0)
            tasks[0].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError) or results[0].allowed  # type: ignore[union-attr]
            assert all(not isinstance(result, BaseException) and result.allowed for result in results[1:])
        assert _connections(redis_server) - connections <= 2  # those of this test's own commands
        assert counters.statistics() == {"waiting": 0, "down": 0, "outages": 0}


def _connections(server: RedisServer) -> int:
    info = str(server.command("INFO", "stats"))
    return int(info.partition("total_connections_received:")[2].partition("\r")[0])


async def test_over_a_unix_socket(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.unix_url) as counters:
        assert await passed(counters, 20, charges("5/hour")) == 5


async def test_with_a_password_and_a_database(redis_server: RedisServer) -> None:
    redis_server.command("ACL", "SETUSER", "limits", "on", ">p@ss/word", "~*", "+@all")
    try:
        url = redis_server.url.replace("://", "://limits:p%40ss%2Fword@") + "/3"
        async with counters_on(url) as counters:
            assert await passed(counters, 20, charges("5/hour")) == 5
            assert redis_server.keys() == []  # of database 0
        async with counters_on(url.replace("p%40ss", "wrong")) as counters:
            with pytest.raises(StorageUnavailableError) as failure:
                await counters.charge(charges("5/hour"))
    finally:
        redis_server.command("ACL", "DELUSER", "limits")
    assert "ss/word" not in str(failure.value)


RIGHTS = ["+evalsha", "+eval", "+set", "+get", "+time", "+pexpire", "+rpush", "+lpop", "+lindex", "+llen"]
"""As docs/backends/redis.md says."""


async def test_a_user_of_few_rights_is_enough(redis_server: RedisServer) -> None:
    redis_server.command("ACL", "SETUSER", "limits", "on", ">pw", "~test:*", *RIGHTS)
    try:
        async with counters_on(redis_server.url.replace("://", "://limits:pw@")) as counters:
            limit = [
                (f"test:{key}", window, cost)
                for strategy in STRATEGIES
                for key, window, cost in charges("5/hour", strategy)
            ]
            assert await passed(counters, 10, limit) == 5
            assert await counters._client.probe("SET", "test:probe", "1", "PX", 1000)
    finally:
        redis_server.command("ACL", "DELUSER", "limits")


async def test_over_tls_with_a_ca_of_ones_own_and_not_without(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem")
    options = [str(tmp_path / each) if each.endswith(".pem") else each for each in files]
    server = RedisServer(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *options)
    server.start()
    try:
        async with counters_on(f"rediss://127.0.0.1:{port}/0?cafile={tmp_path}/ca.pem") as counters:
            assert await passed(counters, 10, charges("5/hour")) == 5
        async with counters_on(f"rediss://127.0.0.1:{port}/0") as counters:
            with pytest.raises(StorageUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                await counters.charge(charges("5/hour"))
    finally:
        server.kill()


async def test_a_mesh_that_stopped_and_started_again_looks_anew(redis_server: RedisServer) -> None:
    supervisor = Supervisor()
    counters = RedisCounters(redis_server.url, supervisor, timeout=2.0, retry_interval=60.0, namespace="test")
    redis_server.kill()
    with pytest.raises(StorageUnavailableError):
        await counters.charge(charges("5/hour"))
    redis_server.start()
    assert counters.is_down

    await supervisor.aclose()
    with pytest.raises(StorageUnavailableError, match="stopped"):
        await counters.charge(charges("5/hour"))
    supervisor.reopen()

    assert (await counters.charge(charges("5/hour"))).allowed
    await counters.aclose()
    await supervisor.aclose()


async def test_a_redis_that_is_killed_costs_requests_nothing_and_counts_again_when_it_is_back(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastapi_mesh")
    async with counters_on(redis_server.url) as counters:
        assert await passed(counters, 3, charges("5/hour")) == 3
        redis_server.kill()
        with pytest.raises(StorageUnavailableError):
            await counters.charge(charges("5/hour"))

        started = time.perf_counter()
        for _ in range(1000):
            with pytest.raises(StorageUnavailableError):
                await counters.charge(charges("5/hour"))
        spent = time.perf_counter() - started
        assert counters.statistics() == {"waiting": 0, "down": 1, "outages": 1}

        redis_server.restart()
        await until(lambda: _answers(counters), "it counts again")
        assert await passed(counters, 10, charges("5/hour", key="after")) == 5

    assert spent < 5  # asking it a thousand times would take longer by far
    lines = [record.getMessage() for record in caplog.records if "rate limits" in record.getMessage()]
    assert len(lines) == 2
    assert "failed" in lines[0]
    assert "answers again" in lines[1]


async def _answers(counters: RedisCounters) -> bool:
    return not counters.is_down


async def test_a_redis_that_hangs_is_given_up_within_the_timeout_by_everybody(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url, timeout=0.25) as counters:
        await counters.charge(charges("5/hour"))
        redis_server.pause()
        try:
            started = time.perf_counter()
            waits = [counters.charge(charges("5/hour")) for _ in range(20)]
            results = await asyncio.gather(*waits, return_exceptions=True)
            spent = time.perf_counter() - started
        finally:
            redis_server.resume()
        assert all(isinstance(result, StorageUnavailableError) for result in results)
        assert 0.2 < spent < 4  # one after the other they would take five
        await until(lambda: _answers(counters), "it counts again")
        assert (await counters.charge(charges("5/hour", key="after"))).allowed


async def test_a_gateway_that_is_busy_is_not_taken_for_a_redis_that_is_down(redis_server: RedisServer) -> None:
    """Else a flood of requests would switch its own limits off."""
    async with counters_on(redis_server.url, timeout=0.25) as counters:
        await counters.charge(charges("1000/hour"))
        for turns in range(12):
            waiting = [asyncio.ensure_future(counters.charge(charges("1000/hour"))) for _ in range(3)]  # noqa: TID251
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251 - it keeps the event loop busy
            assert all(verdict.allowed for verdict in await asyncio.gather(*waiting))
        assert counters.outages == 0


async def test_a_sentinel_that_does_not_answer_is_passed_over(redis_sentinel: RedisSentinel) -> None:
    hosts = [f"127.0.0.1:{sentinel.port}" for sentinel in redis_sentinel.sentinels]
    redis_sentinel.sentinels[0].pause()
    redis_sentinel.sentinels[1].pause()
    try:
        async with counters_on(f"redis+sentinel://{','.join(hosts)}/{PRIMARY_NAME}", timeout=0.25) as counters:
            with suppress(StorageUnavailableError):
                await counters.charge(charges("5/hour"))
            await until(lambda: _answers(counters), "it counts")
            assert await passed(counters, 10, charges("5/hour", key="after")) == 5
    finally:
        redis_sentinel.sentinels[0].resume()
        redis_sentinel.sentinels[1].resume()


async def test_a_redis_that_was_never_there_is_found_when_it_comes(redis_server: RedisServer) -> None:
    redis_server.kill()
    async with counters_on(redis_server.url) as counters:
        with pytest.raises(StorageUnavailableError):
            await counters.charge(charges("5/hour"))
        redis_server.start()
        await until(lambda: _answers(counters), "it counts")
        assert await passed(counters, 10, charges("5/hour")) == 5


async def test_a_redis_without_memory_is_a_failure_and_no_crash(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url) as counters:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StorageUnavailableError, match="OutOfMemory"):
                await counters.charge(charges("5/hour"))
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: _answers(counters), "it counts again")
        assert (await counters.charge(charges("5/hour"))).allowed


async def test_a_server_that_forgot_the_script_gets_it_again(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url) as counters:
        await counters.charge(charges("5/hour"))
        redis_server.command("SCRIPT", "FLUSH")
        assert await passed(counters, 10, charges("5/hour")) == 4
        assert counters.outages == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_value_of_somebody_else_under_one_of_its_keys_makes_way(
    redis_server: RedisServer, strategy: str
) -> None:
    limit = charges("3/hour", strategy)
    command = ("SET", limit[0][0], "x") if strategy == "moving" else ("LPUSH", limit[0][0], "x")
    async with counters_on(redis_server.url) as counters:
        redis_server.command(*command)
        assert await passed(counters, 9, limit) == 3
        assert counters.outages == 0, "one key is not the whole server"


async def test_nobody_is_left_waiting_when_it_is_closed(redis_server: RedisServer) -> None:
    async with counters_on(redis_server.url, timeout=30.0) as counters:
        await counters.charge(charges("5/hour"))
        redis_server.pause()
        try:
            waiting = asyncio.ensure_future(counters.charge(charges("5/hour")))  # noqa: TID251
            await asyncio.sleep(0.05)
            await counters.aclose()
            with pytest.raises(StorageUnavailableError):
                await waiting
        finally:
            redis_server.resume()
        with pytest.raises(StorageUnavailableError):
            await counters.charge(charges("5/hour"))


async def test_an_address_where_nobody_listens_fails_at_once() -> None:
    async with counters_on(f"redis://127.0.0.1:{free_port()}", timeout=60.0) as counters:
        started = time.perf_counter()
        with pytest.raises(StorageUnavailableError):
            await counters.charge(charges("5/hour"))
        assert time.perf_counter() - started < 10


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_in_a_cluster_64_clients_at_once_get_exactly_the_limit(
    redis_cluster: RedisCluster, strategy: str
) -> None:
    async with counters_on(redis_cluster.url) as counters:
        tenants = [f"tenant-{number}" for number in range(6)]
        results = await asyncio.gather(
            *(passed(counters, 64, charges("30/hour;100/day", strategy, key=tenant)) for tenant in tenants)
        )
        spread = [server for server in redis_cluster.primaries if server.keys()]

    assert results == [30] * 6
    assert len(spread) >= 2


async def test_in_a_cluster_limits_of_different_clients_are_counted_apart(redis_cluster: RedisCluster) -> None:
    """One request under two limits whose counts lie on different nodes: each limit is a step of its own."""
    both = [*charges("3/hour", key="tenant"), *charges("100/hour", key="user-1")]
    async with counters_on(redis_cluster.url) as counters:
        assert await passed(counters, 10, both) == 3
        assert (await counters.charge(charges("100/hour", key="user-1"))).remaining == 100 - 10 - 1


async def test_after_a_failover_of_sentinels_it_counts_again(redis_sentinel: RedisSentinel) -> None:
    async with counters_on(redis_sentinel.url) as counters:
        assert await passed(counters, 10, charges("5/hour")) == 5
        assert redis_sentinel.primary.keys()
        killed = redis_sentinel.kill_primary()
        with pytest.raises(StorageUnavailableError):
            await counters.charge(charges("5/hour", key="during"))
        await asyncio.to_thread(redis_sentinel.wait_failover, killed)
        await until(lambda: _answers(counters), "it counts again")
        assert await passed(counters, 10, charges("5/hour", key="after")) == 5
        assert redis_sentinel.primary is not killed
