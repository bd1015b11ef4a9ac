"""Rate limits through a whole gateway, and through four of them on one Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import parts, request, serving, talk, values
from tests.support.process import Processes, until
from tests.support.redis import RedisCluster, RedisSentinel, RedisServer

pytestmark = pytest.mark.anyio

APP = "tests.api_gateway.ratelimit.limited_gateway:app"


async def service(scope, receive, send):  # type: ignore[no-untyped-def]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-service", b"1")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def limited(
    routes: list[dict[str, object]] | None = None, **settings: object
) -> AsyncIterator[tuple[APIGateway, int]]:
    gateway = APIGateway(services={"up": service}, **settings)  # type: ignore[arg-type]
    gateway.configure_routes(routes or [{"path": "/api/*", "service": "up"}])
    async with serving(gateway) as port:
        yield gateway, port


async def ask(port: int, path: str = "/api/x", *headers: str) -> bytes:
    return await talk(port, request(f"GET {path}", *headers))


async def statuses(port: int, count: int, path: str = "/api/x") -> dict[int, int]:
    """How many of so many requests at once got which status."""
    counts: dict[int, int] = {}
    for answer in await asyncio.gather(*(ask(port, path) for _ in range(count))):
        status = parts(answer)[0]
        counts[status] = counts.get(status, 0) + 1
    return counts


@pytest.mark.spec("X-25")
@pytest.mark.parametrize("strategy", ["sliding", "moving", "fixed"])
async def test_64_clients_at_once_get_exactly_the_limit(strategy: str) -> None:
    async with limited(rate_limit="30/hour", rate_limiting={"strategy": strategy}) as (_, port):
        assert await statuses(port, 64) == {200: 30, 429: 34}


@pytest.mark.spec("S-008", "X-25")
async def test_a_refusal_names_the_rule_and_a_success_the_standing() -> None:
    async with limited([{"path": "/api/*", "service": "up", "rate_limit": "1/minute"}]) as (_, port):
        first, second = await ask(port), await ask(port)

    assert parts(first)[0] == 200
    assert values(first, b"ratelimit-policy") == [b'"route";q=1;w=60']
    assert values(first, b"x-ratelimit-remaining") == [b"0"]
    status, headers, body = parts(second)
    document = json.loads(body)
    assert status == document["status"] == 429
    assert document["reason"] == "rate-limited"
    assert dict(headers)[b"x-mesh-reason"] == b"rate-limited"
    assert 1 <= int(dict(headers)[b"retry-after"]) <= 121
    assert b"127.0.0.1" not in second


@pytest.mark.spec("S-323", "B44")
async def test_the_description_s_variable_sets_the_default_and_without_it_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with limited() as (_, port):
        assert values(await ask(port), b"ratelimit") == []
    monkeypatch.setenv("GATEWAY_RATE_LIMIT", "2/hour")
    async with limited() as (_, port):
        assert await statuses(port, 5) == {200: 2, 429: 3}


async def test_counts_survive_a_live_change_of_a_limit() -> None:
    routes = [{"path": "/a", "service": "up", "rate_limit": "3/hour"}, {"path": "/b", "service": "up"}]
    async with limited(routes, rate_limit="100/hour") as (gateway, port):
        assert await statuses(port, 5, "/a") == {200: 3, 429: 2}

        gateway.configure_routes([{**routes[0], "rate_limit": "5/hour"}, routes[1]])

        assert await statuses(port, 5, "/a") == {200: 2, 429: 3}
        assert values(await ask(port, "/b"), b"x-ratelimit-remaining") == [b"94"]


async def test_limits_are_configured_in_code_before_opening_and_live() -> None:
    gateway = APIGateway(services={"up": service})
    gateway.configure_rate_limits("4/hour", keys={"tenant": lambda request: request.host.decode()})
    gateway.configure_routes([{"path": "/api/*", "service": "up"}])
    async with serving(gateway) as port:
        assert await statuses(port, 6) == {200: 4, 429: 2}

        gateway.configure_rate_limits({"limit": "2/hour", "key": "function:tenant"}, strategy="fixed")
        assert await statuses(port, 5) == {200: 2, 429: 3}

        with pytest.raises(ConfigurationError, match="function:nobody"):
            gateway.configure_rate_limits({"limit": "2/hour", "key": "function:nobody"})
        with pytest.raises(ConfigurationError, match="did you mean 'strategy'"):
            gateway.configure_rate_limits(stratgy="fixed")
        assert await statuses(port, 5) == {429: 5}, "the limit from before is still there"
        assert gateway.config.rate_limiting.strategy == "fixed"


@pytest.mark.spec("X-54")
async def test_refusals_are_counted_by_route_and_limit() -> None:
    async with limited([{"path": "/api/*", "service": "up", "rate_limit": {"limit": "2/hour", "name": "search"}}]) as (
        _,
        port,
    ):
        await statuses(port, 5)
        metrics = (await ask(port, "/metrics")).decode()

    assert 'gateway_rate_limited_total{limit="search",path="/api/*"} 3.0' in metrics
    assert 'gateway_local_responses_total{path="/api/*",reason="rate-limited"} 3.0' in metrics


@pytest.mark.spec("X-25", "B13", "X-54")
@pytest.mark.server("redis")
async def test_redis_killed_and_back(redis_server: RedisServer) -> None:
    settings = {"storage": redis_server.url, "retry_interval": 0.05, "timeout": 2.0}
    async with limited(rate_limit="20/hour", rate_limiting=settings) as (_, port):
        assert await statuses(port, 30) == {200: 20, 429: 10}

        redis_server.kill()
        started = time.perf_counter()
        assert await statuses(port, 30) == {200: 30}
        assert time.perf_counter() - started < 15  # a timeout each would be sixty
        metrics = (await ask(port, "/metrics")).decode()
        assert 'gateway_rate_limit_failures_total{outcome="open"} 30.0' in metrics

        redis_server.restart()

        async def counts_again() -> bool:
            return values(await ask(port), b"ratelimit") != []

        await until(counts_again, "requests are counted again", timeout=5)
        assert (await statuses(port, 30))[200] == 19


@pytest.mark.spec("S-022", "X-25")
@pytest.mark.server("redis")
async def test_the_client_s_secrets_are_not_in_redis(redis_server: RedisServer) -> None:
    limit = {"limit": "20/hour", "key": "header:X-API-Key"}
    async with limited(rate_limit=limit, rate_limiting={"storage": redis_server.url}) as (_, port):
        await ask(port, "/api/x", "X-API-Key: s3cret-token")

    (key,) = redis_server.keys()
    assert "s3cret" not in key
    assert key.startswith("fastapi-mesh:{")
    assert key.endswith("}:default:sliding:3600")


async def passed_through_four(processes: Processes, storage: str) -> dict[str, int]:
    """For each strategy: how many of 64 clients of each of four gateway processes pass."""
    settings = {"MESH_GATEWAY__RATE_LIMITING__STORAGE": storage, "MESH_GATEWAY__RATE_LIMITING__TIMEOUT": "5"}
    gateways = [processes.app(APP, "--no-proxy-headers", name=f"gateway-{n}", environment=settings) for n in range(4)]
    for gateway in gateways:
        await gateway.ready()
    results = {}
    for strategy in ("sliding", "moving", "fixed"):
        answers = await asyncio.gather(*(ask(g.port, f"/{strategy}/x") for _ in range(64) for g in gateways))
        passed = [parts(answer)[2] for answer in answers if parts(answer)[0] == 200]
        assert len(passed) + sum(parts(answer)[0] == 429 for answer in answers) == 256
        assert len(set(passed)) >= 2, "more than one process let some pass"
        results[strategy] = len(passed)
    return results


EXACT = {"sliding": 100, "moving": 100, "fixed": 100}


@pytest.mark.spec("X-25")
@pytest.mark.server("redis")
async def test_four_gateway_processes_on_one_redis_let_exactly_the_limit_pass(
    redis_server: RedisServer, processes: Processes
) -> None:
    assert await passed_through_four(processes, redis_server.url) == EXACT


@pytest.mark.soak
@pytest.mark.spec("X-25")
@pytest.mark.server("redis")
async def test_four_gateway_processes_on_a_cluster_let_exactly_the_limit_pass(
    redis_cluster: RedisCluster, processes: Processes
) -> None:
    assert await passed_through_four(processes, redis_cluster.url) == EXACT


@pytest.mark.soak
@pytest.mark.spec("X-25")
@pytest.mark.server("redis")
async def test_four_gateway_processes_under_sentinels_go_on_after_a_failover(
    redis_sentinel: RedisSentinel, processes: Processes
) -> None:
    settings = {"MESH_GATEWAY__RATE_LIMITING__STORAGE": redis_sentinel.url}
    gateways = [processes.app(APP, "--no-proxy-headers", name=f"gateway-{n}", environment=settings) for n in range(4)]
    for gateway in gateways:
        await gateway.ready()
        assert values(await ask(gateway.port, "/fixed/x"), b"ratelimit")

    killed = redis_sentinel.kill_primary()
    during = await asyncio.gather(*(ask(gateway.port, "/fixed/x") for _ in range(64) for gateway in gateways))
    assert {parts(answer)[0] for answer in during} == {200}, "on_failure is open"
    await asyncio.to_thread(redis_sentinel.wait_failover, killed)
    for gateway in gateways:

        async def counts_again(port: int = gateway.port) -> bool:
            return values(await ask(port, "/sliding/x"), b"ratelimit") != []

        await until(counts_again, "requests are counted again", timeout=10)
    answers = await asyncio.gather(*(ask(gateway.port, "/moving/x") for _ in range(64) for gateway in gateways))
    assert sum(parts(answer)[0] == 200 for answer in answers) == 100
