"""The cache of a whole gateway, over real sockets; purging, reloading, metrics, the command."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

import pytest
from typer.testing import CliRunner

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.cli.application import application
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk, values
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio

LONG = "cache-control: max-age=600"


class Counting(RawUpstream):
    """A service that says how many requests it got, with some headers."""

    def __init__(self, *headers: str) -> None:
        super().__init__(self._say)
        self.lines = headers

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = str(len(self.received)).encode()
        head = "".join(f"{line}\r\n" for line in self.lines)
        dated = f"date: {formatdate(usegmt=True)}\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\n{dated}{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return True


async def get(port: int, target: str = "/api/a", *headers: str, method: str = "GET") -> tuple[bytes, bytes]:
    """The body, and what Cache-Status says first."""
    raw = await talk(port, request(f"{method} {target}", *headers))
    status = values(raw, b"cache-status")
    return parts(raw)[2], status[0].split(b"; ")[1] if status else b""


@pytest.mark.spec("S-009", "X-26", "B12")
async def test_a_cached_route_answers_by_itself_and_a_change_is_seen_at_once() -> None:
    routes = [
        {"path": "/api/*", "service": "up", "methods": ["GET"], "cache_ttl": 300},
        {"path": "/api/*", "service": "up", "methods": ["POST"]},
    ]
    async with Counting() as up:
        gateway = gateway_to(up.url, routes)
        async with serving(gateway) as port:
            got = [await get(port), await get(port), await get(port, method="POST"), await get(port), await get(port)]
            raw = await talk(port, request("GET /api/a"))

    assert [body for body, _ in got] == [b"1", b"1", b"2", b"3", b"3"]
    assert [status for _, status in got] == [b"fwd=uri-miss", b"hit", b"", b"fwd=uri-miss", b"hit"]
    assert len(values(raw, b"date")) == 1, "the server's own, the service's is not passed on"
    assert values(raw, b"age") != []
    assert len(values(raw, b"x-request-id")) == 1
    assert values(raw, b"via") == [b"1.1 fastapi-mesh"]
    assert values(raw, b"x-mesh-attempts") == []


@pytest.mark.spec("X-26")
async def test_each_request_has_an_id_of_its_own_also_when_it_hits() -> None:
    async with Counting(LONG) as up:
        gateway = gateway_to(up.url, [{"path": "/api/*", "service": "up", "cache": True}])
        async with serving(gateway) as port:
            ids = {values(await talk(port, request("GET /api/a")), b"x-request-id")[0] for _ in range(3)}

    assert len(ids) == 3
    assert len(up.received) == 1


async def test_two_routes_with_one_path_keep_their_answers_apart() -> None:
    routes = [
        {
            "path": "/api/*",
            "service": "up",
            "cache": True,
            "headers": {"X-Version": "2"},
            "request_headers": {"set": {"x-v": "2"}},
        },
        {"path": "/api/*", "service": "up", "cache": True},
    ]
    async with Counting(LONG) as up, serving(gateway_to(up.url, routes)) as port:
        await get(port)
        assert await get(port, "/api/a", "X-Version: 2") == (b"2", b"fwd=uri-miss")
        assert await get(port, "/api/a", "X-Version: 2") == (b"2", b"hit")
        assert await get(port) == (b"1", b"hit")


@pytest.mark.spec("X-26")
async def test_purging_in_code() -> None:
    routes = [{"path": "/api/*", "service": "up", "cache": True}]
    async with Counting(LONG) as up:
        gateway = gateway_to(up.url, routes)
        await gateway.cache.purge(everything=True)  # closed: there is nothing
        async with serving(gateway) as port:
            for purge in (
                {"route": "/api/*"},
                {"path": "/api/a"},
                {"prefix": "/api"},
                {"everything": True},
                {"key": "http://gw/api/a"},
            ):
                await get(port)
                assert (await get(port))[1] == b"hit"
                await gateway.cache.purge(**purge)  # type: ignore[arg-type]  # one of its keywords
                assert (await get(port))[1] == b"fwd=uri-miss"
            assert gateway.cache.statistics()["entries"] == 1
        assert gateway.cache.statistics() == {}


@pytest.mark.parametrize("wrong", [{}, {"path": "/a", "everything": True}, {"path": "a"}, {"prefix": "/a?b"}])
async def test_a_purge_of_nothing_clear_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        await APIGateway().cache.purge(**wrong)  # type: ignore[arg-type]  # the mistake


async def test_what_is_stored_survives_a_reload_unless_its_route_or_the_store_changed() -> None:
    route = {"path": "/api/*", "service": "up", "cache_ttl": 300}
    async with Counting() as up:
        gateway = gateway_to(up.url, [route])
        async with serving(gateway) as port:
            await get(port)
            gateway.configure_routes([route, {"path": "/other", "service": "up"}])
            kept = await get(port)
            gateway.configure_routes([{**route, "cache_ttl": 5}])
            changed = await get(port)
            gateway.configure_routes([{"path": "/api/*", "service": "up"}])
            off = await get(port)

    assert (kept[1], changed[1], off) == (b"hit", b"fwd=uri-miss", (b"3", b""))


@pytest.mark.spec("X-26", "X-54")
async def test_the_metrics_say_what_the_cache_did() -> None:
    async with Counting(LONG) as up:
        gateway = gateway_to(up.url, [{"path": "/api/*", "service": "up", "cache": True}])
        async with serving(gateway) as port:
            for _ in range(3):
                await get(port)
            await get(port, "/api/a", 'If-Match: "1"')
            text = (await talk(port, request("GET /metrics"))).decode()

    assert 'gateway_cache_requests_total{path="/api/*",result="hit"} 2.0' in text
    assert 'gateway_cache_requests_total{path="/api/*",result="miss"} 1.0' in text
    assert 'gateway_cache_requests_total{path="/api/*",result="bypass"} 1.0' in text
    assert "gateway_cache_store_failures_total 0.0" in text
    stored = next(line for line in text.splitlines() if line.startswith("gateway_cache_stored_bytes_total "))
    assert float(stored.split()[1]) > 0


async def test_only_if_cached_is_a_problem_that_names_the_rule() -> None:
    async with (
        Counting(LONG) as up,
        serving(gateway_to(up.url, [{"path": "/api/*", "service": "up", "cache": True}])) as port,
    ):
        raw = await talk(port, request("GET /api/a", "Cache-Control: only-if-cached"))

    assert parts(raw)[0] == 504
    assert values(raw, b"x-mesh-reason") == [b"only-if-cached"]


@pytest.mark.spec("X-26")
async def test_an_answer_stands_in_when_the_service_is_dead() -> None:
    async with Counting("cache-control: max-age=0", 'etag: "1"') as up:
        gateway = gateway_to(up.url, [{"path": "/api/*", "service": "up", "cache": True}], max_retries=0)
        async with serving(gateway) as port:
            await get(port)
            await up.__aexit__()
            raw = await talk(port, request("GET /api/a"))

    assert (parts(raw)[0], parts(raw)[2]) == (200, b"1")
    assert b"detail=stale-if-error" in values(raw, b"cache-status")[0]


@pytest.mark.spec("X-26")
async def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    """On sockets: a long body, some read all of it, some close in the middle; then all is as if nobody had left."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: 300000\r\n\r\n")
        for _ in range(30):
            writer.write(b"x" * 10_000)
            await writer.drain()
            await asyncio.sleep(0)
        return True

    async def leave(port: int, size: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(f"GET /api/{size % 3}"))
        await reader.read(size)
        writer.transport.abort()

    async with RawUpstream(slowly) as up:
        gateway = gateway_to(up.url, [{"path": "/api/*", "service": "up", "cache": True}])
        async with serving(gateway) as port:
            await asyncio.gather(*(leave(port, number * 9_000) for number in range(1, 31)))
            bodies = [parts(await talk(port, request(f"GET /api/{number % 3}")))[2] for number in range(6)]
            statistics = gateway.cache.statistics()

    assert {len(body) for body in bodies} == {300_000}
    assert (statistics["flights"], statistics["entries"]) == (0, 3)


# Redis.


@pytest.mark.server("redis")
@pytest.mark.spec("X-26", "S-023")
async def test_two_gateways_share_a_redis_and_the_command_purges_both(redis_server: RedisServer) -> None:
    options = {"cache": {"backend": redis_server.url, "recheck": 0, "namespace": "shop"}}
    routes = [{"path": "/api/*", "service": "up", "cache": True}]
    async with Counting(LONG) as up:
        one, other = (gateway_to(up.url, routes, **options) for _ in range(2))
        async with serving(one) as first, serving(other) as second:
            assert (await get(first))[1] == b"fwd=uri-miss"
            assert await get(second) == (b"1", b"hit")
            arguments = ["cache", "purge", "--prefix", "/api", "--redis", redis_server.url, "--namespace", "shop"]
            done = await asyncio.to_thread(CliRunner().invoke, application, arguments)
            assert (await get(first))[1] == b"fwd=uri-miss"
            assert (await get(second))[1] == b"hit"

    assert (done.exit_code, done.output) == (0, "purged\n")
    keys = redis_server.keys()
    assert keys
    assert all(key.startswith("shop:") for key in keys)


@pytest.mark.server("redis")
def test_the_command_takes_the_gateway_s_own_settings(redis_server: RedisServer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "gateway.toml"
    file.write_text(f'[gateway.cache]\nbackend = "{redis_server.url}"\n')

    by_file = CliRunner().invoke(application, ["cache", "purge", "--all", "--config", str(file)])
    by_variable = CliRunner().invoke(
        application, ["cache", "purge", "--path", "/a"], env={"MESH_GATEWAY__CACHE__BACKEND": redis_server.url}
    )
    redis_server.kill()
    away = CliRunner().invoke(application, ["cache", "purge", "--all", "--redis", redis_server.url])

    assert (by_file.exit_code, by_variable.exit_code) == (0, 0)
    assert (away.exit_code, away.output) == (1, "Redis did not answer; nothing was purged\n")


def test_the_command_says_what_it_can_t_do() -> None:
    memory = CliRunner().invoke(application, ["cache", "purge", "--all"])
    nothing = CliRunner().invoke(application, ["cache", "purge", "--redis", "redis://127.0.0.1:1"])
    wrong = CliRunner().invoke(application, ["cache", "purge", "--all", "--redis", "http://x"])

    assert (memory.exit_code, nothing.exit_code, wrong.exit_code) == (2, 2, 2)
    assert "gateway.cache.purge" in memory.output
    assert "exactly one of" in nothing.output
    assert "cache.backend" in wrong.output
