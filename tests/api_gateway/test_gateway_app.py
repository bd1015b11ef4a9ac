"""APIGateway: its settings, its life, and what it answers by itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import anyio
import pytest

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.forwarded import PROXY_HEADERS
from fastapi_mesh.config.gateway import GatewayConfig, RouteConfig
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh import ServiceMesh
from tests.api_gateway.gateway_support import OK, RawUpstream, gateway_to, parts, request, serving, talk, values
from tests.support.process import free_port

pytestmark = pytest.mark.anyio


def reasons(raw: bytes) -> tuple[int, str]:
    """Status and reason of a problem; the header and the document must agree."""
    status, headers, body = parts(raw)
    document = json.loads(body)
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert document["reason"] == dict(headers)[b"x-mesh-reason"].decode()
    assert document["status"] == status
    assert isinstance(document["detail"], str)
    assert document["trace_id"] == dict(headers)[b"x-request-id"].decode()
    return status, document["reason"]


# Settings.


@pytest.mark.spec("S-001")
def test_the_defaults_are_the_descriptions() -> None:
    config = APIGateway(services={"user-service": "http://127.0.0.1:8001"}).config

    assert (config.host, config.port) == ("0.0.0.0", 8080)
    assert (config.request_timeout, config.upstream_timeout) == (30.0, 25.0)
    assert (config.max_retries, config.retry_backoff) == (3, 2.0)
    assert config.services["user-service"].instances == ("http://127.0.0.1:8001",)
    assert config.trusted_proxies == ()


@pytest.mark.spec("S-001")
def test_host_and_port_come_in_order_and_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9191")
    monkeypatch.setenv("GATEWAY_HOST", "10.1.1.1")

    assert APIGateway().config.port == 9191
    assert APIGateway("127.0.0.1", 8081).config.port == 8081
    assert APIGateway("127.0.0.1").config.host == "127.0.0.1"


def test_an_unknown_option_is_refused_with_the_likeliest_one() -> None:
    with pytest.raises(ConfigurationError, match="request_timeout"):
        APIGateway(request_timout=3)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        APIGateway(request_timeout=5, upstream_timeout=10, max_retries=-1, trusted_proxies=["not a network"])

    text = "\n".join(refused.value.problems)
    assert all(name in text for name in ("upstream_timeout", "max_retries", "trusted_proxies"))


@pytest.mark.spec("S-003", "S-005", "S-006")
def test_routes_are_dicts_or_models_and_their_problems_have_a_place() -> None:
    gateway = APIGateway()
    gateway.configure_routes(
        [{"path": "/a/*", "service": "a", "methods": ["get", "POST"]}, RouteConfig(path="/b/{id}", service="b")]
    )
    assert [route.methods for route in gateway.config.routes] == [("GET", "POST"), None]

    with pytest.raises(ConfigurationError) as refused:
        gateway.configure_routes([{"path": "a", "service": "a"}, {"path": "/b", "servce": "b"}])
    text = "\n".join(refused.value.problems)
    assert "[0].path" in text
    assert "[1].servce" in text
    assert len(gateway.config.routes) == 2, "the routes from before are still there"


def test_a_whole_configuration_can_be_given_but_not_mixed() -> None:
    config = GatewayConfig(port=8090, routes=(RouteConfig(path="/a/*", service="a"),))

    gateway = APIGateway(config=config)

    assert gateway.config == config
    gateway.configure_services({"a": "http://127.0.0.1:1"})
    assert gateway.config.port == 8090
    with pytest.raises(ConfigurationError, match="port"):
        APIGateway(config=config, port=1)


@pytest.mark.spec("S-011", "S-012", "B2")
async def test_routes_and_services_come_in_any_order_and_are_checked_when_it_opens() -> None:
    gateway = APIGateway(services={"user-service": "http://127.0.0.1:1"})
    gateway.configure_routes([{"path": "/u/*", "service": "user-servce"}, {"path": "/o/*", "service": "billing"}])

    with pytest.raises(ConfigurationError) as refused:
        await gateway.open_in({})
    assert refused.value.problems == (
        "routes[0].service: 'user-servce' is not a known service - did you mean 'user-service'?",
        "routes[1].service: 'billing' is not a known service",
    )

    gateway.configure_services({"billing": {"instances": ["http://127.0.0.1:2"]}, "user-servce": "127.0.0.1:3"})
    async with gateway.opened({}):
        assert gateway.life is not None


async def test_a_service_that_discovery_may_know_is_no_problem() -> None:
    mesh = ServiceMesh("edge", discovery_backend="memory")
    gateway = APIGateway(service_mesh=mesh)
    gateway.configure_routes([{"path": "/u/*", "service": "somebody"}])

    async with gateway.opened({}):
        assert mesh.started
    assert not mesh.started


@pytest.mark.spec("S-013", "B3", "B4", "B5")
async def test_timeouts_and_retries_become_the_policy_of_each_route() -> None:
    gateway = APIGateway(
        services={"a": "http://127.0.0.1:1"}, request_timeout=10, upstream_timeout=4, max_retries=2, retry_backoff=3.0
    )
    gateway.configure_services(
        {"b": {"instances": ["http://127.0.0.1:2"], "load_balancing": "least_connections", "retry": None}}
    )
    gateway.configure_routes([{"path": "/a/*", "service": "a"}, {"path": "/b/*", "service": "b"}])

    async with gateway.opened({}):
        found = gateway.find({"path": "/a/1", "raw_path": b"/a/1", "method": "GET"})
        assert found is not None
        policy = found.route.policy  # type: ignore[union-attr]
        other = gateway.find({"path": "/b/1", "raw_path": b"/b/1", "method": "GET"})
        assert other is not None
        assert other.route.policy.retry is None  # type: ignore[union-attr]
        assert gateway.life is not None
        assert gateway.life.mesh.policy_of("b").load_balancing.strategy == "least_connections"

    assert (policy.timeout, policy.attempt_timeout) == (10, 4)
    assert policy.retry.max_attempts == 3, "retries are extra tries"
    assert (policy.retry.base_delay, policy.retry.multiplier, policy.retry.jitter) == (0.1, 3.0, True)


async def test_a_policy_of_the_mesh_that_changes_later_reaches_the_routes() -> None:
    mesh = ServiceMesh("edge", discovery_backend="static", services={"a": "http://127.0.0.1:1"})
    gateway = APIGateway(service_mesh=mesh)
    gateway.configure_routes([{"path": "/a/*", "service": "a"}])

    async with gateway.opened({}):
        mesh.configure_circuit_breakers({"a": {"failure_threshold": 2}})
        found = gateway.find({"path": "/a/1", "raw_path": b"/a/1", "method": "GET"})

    assert found is not None
    assert found.route.policy.breaker.failure_threshold == 2  # type: ignore[union-attr]


# Answers of its own.


@pytest.mark.spec("S-016", "A12")
@pytest.mark.spec("B18")
async def test_alone_it_answers_health_metrics_and_404() -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url)) as port:
        assert parts(await talk(port, request("GET /api/x")))[0] == 200
        for path in ("/health", "/health/live", "/health/ready"):
            status, _, body = parts(await talk(port, request(f"GET {path}")))
            assert (status, json.loads(body)["status"]) == (200, "healthy")
        assert reasons(await talk(port, request("GET /nowhere"))) == (404, "no-route")
        assert reasons(await talk(port, request("GET /health/x"))) == (404, "no-route")
        assert parts(await talk(port, request("POST /health")))[0] == 405
        status, _, body = parts(await talk(port, request("HEAD /health")))
        assert (status, body) == (200, b"")
        metrics = parts(await talk(port, request("GET /metrics")))[2].decode()

    assert 'gateway_requests_total{method="GET",path="/api/*",status="200"} 1.0' in metrics
    assert 'gateway_requests_total{method="GET",path="__unmatched__",status="404"} 2.0' in metrics
    assert 'gateway_local_responses_total{path="__unmatched__",reason="no-route"} 2.0' in metrics
    assert 'mesh_service_calls_total{source_service="api-gateway",status="200",target_service="up"} 1.0' in metrics


async def test_without_metrics_the_path_is_a_route_like_any_other() -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url, [{"path": "/*", "service": "up"}], enable_metrics=False)
        async with serving(gateway) as port:
            await talk(port, request("GET /metrics"))

    assert upstream.received[0].startswith(b"GET /metrics ")


async def test_a_health_check_that_fails_is_seen() -> None:
    mesh = ServiceMesh("edge", discovery_backend="static", services={"up": "http://127.0.0.1:1"})

    @mesh.health_check
    def disk() -> bool:
        return False

    async with serving(APIGateway(service_mesh=mesh)) as port:
        status, _, body = parts(await talk(port, request("GET /health/ready")))

    assert (status, json.loads(body)["checks"]) == (503, {"disk": "fail"})


@pytest.mark.spec("S-006")
async def test_a_method_without_a_route_is_405_with_allow() -> None:
    routes = [{"path": "/api/*", "service": "up", "methods": ["GET", "POST"]}]
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url, routes)) as port:
        raw = await talk(port, request("DELETE /api/x"))

    assert reasons(raw) == (405, "method-not-allowed")
    assert dict(parts(raw)[1])[b"allow"] == b"GET, HEAD, OPTIONS, POST"
    assert upstream.received == []


async def test_a_service_that_can_not_be_reached_is_502_without_its_address() -> None:
    port_of_nobody = free_port()
    gateway = gateway_to(f"http://127.0.0.1:{port_of_nobody}", max_retries=0)
    async with serving(gateway) as port:
        raw = await talk(port, request("GET /api/x"))

    assert reasons(raw) == (502, "connection-failed")
    assert str(port_of_nobody).encode() not in raw
    assert json.loads(parts(raw)[2])["service"] == "up"


async def test_a_service_that_does_not_answer_in_time_is_504() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawUpstream(never) as upstream:
        gateway = gateway_to(upstream.url, request_timeout=0.2, upstream_timeout=0.1, max_retries=0)
        async with serving(gateway) as port:
            raw = await talk(port, request("GET /api/x"))

    assert reasons(raw) == (504, "upstream-timeout")


async def test_a_head_that_fails_has_the_headers_of_the_problem_and_no_body() -> None:
    gateway = gateway_to(f"http://127.0.0.1:{free_port()}", max_retries=0)
    async with serving(gateway) as port:
        status, headers, body = parts(await talk(port, request("HEAD /api/x")))

    assert (status, body) == (502, b"")
    assert int(dict(headers)[b"content-length"]) > 100


@pytest.mark.spec("S-012")
async def test_a_get_that_one_instance_refuses_is_answered_by_the_other() -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to([f"http://127.0.0.1:{free_port()}", upstream.url])
        async with serving(gateway) as port:
            answers = [parts(await talk(port, request("GET /api/x")))[0] for _ in range(4)]

    assert answers == [200] * 4
    assert len(upstream.received) == 4


async def test_a_post_with_a_short_body_is_sent_again_whole_where_nothing_was_sent_before() -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to([f"http://127.0.0.1:{free_port()}", upstream.url])
        async with serving(gateway) as port:
            for _ in range(4):
                raw = await talk(port, request("POST /api/x", "Content-Length: 5", body=b"hello"))
                assert parts(raw)[0] == 200

    assert [received[-5:] for received in upstream.received] == [b"hello"] * 4


async def test_a_websocket_is_refused_in_its_handshake() -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url)) as port:
        handshake = ["Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
        payload = "\r\n".join(["GET /api/ws HTTP/1.1", "Host: gw", "Connection: Upgrade", *handshake, "", ""])
        raw = await talk(port, payload.encode(), until_close=False)

    assert parts(raw)[0] in (403, 200)  # 200: no WebSocket library is installed, and the server ignores the upgrade


@pytest.mark.spec("X-22")
async def test_an_id_of_the_request_is_kept_from_trusted_proxies_only() -> None:
    async with RawUpstream() as upstream:
        async with serving(gateway_to(upstream.url)) as port:
            untrusted = await talk(port, request("GET /api/x", "X-Request-ID: mine"))
        async with serving(gateway_to(upstream.url, trusted_proxies=["127.0.0.0/8"])) as port:
            trusted = await talk(port, request("GET /api/x", "X-Request-ID: mine", "X-Forwarded-For: 6.6.6.6"))

    assert values(untrusted, b"x-request-id") == values(upstream.received[0], b"x-request-id") != [b"mine"]
    assert values(trusted, b"x-request-id") == values(upstream.received[1], b"x-request-id") == [b"mine"]
    assert values(upstream.received[1], b"x-forwarded-for") == [b"6.6.6.6, 127.0.0.1"]


async def test_the_services_own_request_id_is_not_passed_on_beside_the_gateways() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\ncontent-length: 2\r\n\r\nok"
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url)) as port:
        raw = await talk(port, request("GET /api/x"))

    assert values(raw, b"x-request-id") == values(upstream.received[0], b"x-request-id")


@pytest.mark.spec("B14")
async def test_a_server_that_believes_forwarding_headers_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), proxy_headers=True) as port:
        await talk(port, request("GET /api/x"))
        quiet = len(caplog.records)
        for _ in range(2):
            await talk(port, request("GET /api/x", "X-Forwarded-For: 6.6.6.6"))

    assert quiet == 0
    assert [record.message for record in caplog.records if "--no-proxy-headers" in record.message] == [PROXY_HEADERS]


# Life.


@pytest.mark.spec("X-30")
async def test_routes_are_swapped_whole_and_a_bad_set_changes_nothing() -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway) as port:
            assert parts(await talk(port, request("GET /api/x")))[0] == 200

            gateway.configure_routes([{"path": "/new/*", "service": "up"}])
            assert parts(await talk(port, request("GET /new/x")))[0] == 200
            assert parts(await talk(port, request("GET /api/x")))[0] == 404

            with pytest.raises(ConfigurationError):
                gateway.configure_routes([{"path": "/api/*", "service": "nobody"}])
            assert parts(await talk(port, request("GET /new/x")))[0] == 200

            gateway.configure_services({"other": upstream.url})
            gateway.configure_routes([{"path": "/api/*", "service": "other"}])
            assert parts(await talk(port, request("GET /api/x")))[0] == 200


async def test_a_request_under_way_keeps_the_route_it_began_with() -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(OK)
        await writer.drain()

    async with RawUpstream(slow) as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway) as port, anyio.create_task_group() as tasks:
            answers: list[int] = []

            async def ask() -> None:
                answers.append(parts(await talk(port, request("GET /api/x")))[0])

            tasks.start_soon(ask)
            while not upstream.received:  # noqa: ASYNC110 - another server has no event of ours
                await asyncio.sleep(0.005)
            gateway.configure_routes([])
            go_on.set()

    assert answers == [200]


@pytest.mark.spec("S-016")
async def test_start_serves_until_stop() -> None:
    port = free_port()
    async with RawUpstream(b"HTTP/1.1 200 OK\r\ndate: Tue\r\nserver: up\r\ncontent-length: 2\r\n\r\nok") as upstream:
        gateway = APIGateway("127.0.0.1", port, services={"up": upstream.url})
        gateway.configure_routes([{"path": "/api/*", "service": "up"}])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.start)
            while gateway.life is None:  # noqa: ASYNC110 - start() is the server's own loop
                await asyncio.sleep(0.01)
            raw = b""
            while not raw:
                try:
                    raw = await talk(port, request("GET /api/x", "X-Forwarded-Proto: https"))
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
            await gateway.stop()

    assert parts(raw)[0] == 200
    assert gateway.life is None
    assert len(values(raw, b"date")) == 1
    assert values(raw, b"date") != [b"Tue"]
    assert values(raw, b"server") == []
    assert values(upstream.received[0], b"x-forwarded-proto") == [b"http"], "the server in front doesn't believe it"


def test_start_fails_with_exit_code_3_and_says_why() -> None:
    script = (
        "import asyncio; from fastapi_mesh.api_gateway import APIGateway\n"
        f"gateway = APIGateway('127.0.0.1', {free_port()}, services={{'user-service': 'http://127.0.0.1:1'}})\n"
        "gateway.configure_routes([{'path': '/u/*', 'service': 'user-servce'}])\n"
        "asyncio.run(gateway.start())"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 3
    assert "'user-servce' is not a known service - did you mean 'user-service'?" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_first_door_closes_it() -> None:
    gateway = gateway_to("http://127.0.0.1:1")

    async with gateway.opened({}):
        life = gateway.life
        async with gateway.opened({}):
            assert gateway.life is life
        assert gateway.life is life

    assert gateway.life is None
    await gateway.aclose()


async def test_many_first_requests_open_it_once() -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        async with serving(gateway, lifespan="off") as port, anyio.create_task_group() as tasks:
            lives = []

            async def ask() -> None:
                assert parts(await talk(port, request("GET /api/x")))[0] == 200
                lives.append(gateway.life)

            for _ in range(8):
                tasks.start_soon(ask)
        await gateway.aclose()

    assert len(set(lives)) == 1
