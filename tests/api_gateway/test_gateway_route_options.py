"""What routes do to requests on their way: headers, Host, HTTPS, body limits and policies of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fastapi_mesh.api_gateway import APIGateway, headers
from fastapi_mesh.config.edge import routing
from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh import ServiceMesh
from tests.api_gateway.gateway_support import OK, RawUpstream, parts, request, serving, talk, values

pytestmark = pytest.mark.anyio

SEE_OTHER_SIDE = {"trusted_proxies": ["127.0.0.1"]}
FAILS = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def one_route(
    upstream: RawUpstream, gateway: dict[str, object] | None = None, **route: object
) -> AsyncIterator[int]:
    """The port of a gateway with one route to `upstream`."""
    door = APIGateway(services={"up": upstream.url}, enable_metrics=False, **(gateway or {}))  # type: ignore[arg-type]
    door.configure_routes([{"path": "/api/*", "service": "up", **route}])
    async with serving(door) as port:
        yield port


async def sent(upstream: RawUpstream, payload: bytes, **route: object) -> bytes:
    """What the service gets of one request."""
    async with one_route(upstream, **route) as port:
        assert parts(await talk(port, payload))[0] == 200
    return upstream.received[-1]


def status_and_reason(raw: bytes) -> tuple[int, str]:
    status, headers, _ = parts(raw)
    return status, dict(headers).get(b"x-mesh-reason", b"").decode()


# Headers.


@pytest.mark.spec("X-21")
async def test_headers_of_a_request_are_removed_set_and_added_in_this_order() -> None:
    changes = {
        "remove": ["X-Secret", "cookie"],
        "set": {"X-Version": "2", "Authorization": "Basic abc"},
        "add": {"x-tag": ["{tenant}", "a-{request_id}-{{b}}"]},
    }
    payload = request("GET /api/ac%20me/x", "X-Secret: 1", "Cookie: a=b", "x-version: 1", "X-Version: 0", "x-tag: mine")
    async with RawUpstream() as upstream:
        head = await sent(upstream, payload, path="/api/{tenant}/*", request_headers=changes)

    (request_id,) = values(head, b"x-request-id")
    assert values(head, b"x-secret") == values(head, b"cookie") == []
    assert values(head, b"x-version") == [b"2"]
    assert values(head, b"authorization") == [b"Basic abc"]
    assert values(head, b"x-tag") == [b"mine", b"ac%20me", b"a-" + request_id + b"-{b}"]


@pytest.mark.spec("X-21")
async def test_headers_of_an_answer_are_changed_and_those_of_a_refusal_are_not() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Powered-By: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
    changes = {"remove": "x-powered-by", "set": {"Cache-Control": "no-store"}, "add": {"set-cookie": "c={id}"}}
    async with (
        RawUpstream(answer) as upstream,
        one_route(upstream, path="/api/{id}", response_headers=changes, max_body=1) as port,
    ):
        raw = await talk(port, request("GET /api/7"))
        refused = await talk(port, request("POST /api/7", "Content-Length: 2", body=b"xy"))

    assert values(raw, b"x-powered-by") == []
    assert values(raw, b"cache-control") == [b"no-store"]
    assert values(raw, b"set-cookie") == [b"a", b"b", b"c=7"]
    assert values(refused, b"set-cookie") == []


@pytest.mark.spec("X-21")
@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "TE", "transfer_encoding", "Content-Length", "Host", "X-Forwarded-For", "x_forwarded_proto"),
        *("Via", "Forwarded", "Expect", "X-Request-ID", "x-mesh-timeout-ms", "Upgrade"),
    ],
)
@pytest.mark.parametrize("operation", ["set", "remove"])
def test_headers_of_the_hop_and_of_forwarding_are_nobodys_to_change(name: str, operation: str) -> None:
    changes = {operation: {name: "x"} if operation == "set" else [name]}

    with pytest.raises(ConfigurationError, match="the gateway writes this header"):
        APIGateway().configure_routes([{"path": "/a", "service": "up", "request_headers": changes}])


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0", " a", "a ", "{id", "{nobody}", "}"])
def test_a_header_value_that_could_not_be_sent_or_filled_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="request_headers"):
        APIGateway().configure_routes(
            [{"path": "/a/{id}", "service": "up", "request_headers": {"set": {"x-a": value}}}]
        )


# Host.


@pytest.mark.spec("X-21")
async def test_the_service_sees_the_clients_host_unless_the_route_says_otherwise() -> None:
    async with RawUpstream() as upstream:
        own = upstream.url.removeprefix("http://").encode()
        payload = request("GET /api/x", host="shop.example")
        seen = {
            setting: values(
                await sent(upstream, payload, **({} if setting is None else {"preserve_host": setting})), b"host"
            )
            for setting in (None, True, False, "fixed.example:81")
        }
        forwarded = values(upstream.received[-1], b"x-forwarded-host")

    assert seen[None] == seen[True] == [b"shop.example"]
    assert seen[False] == [own]
    assert seen["fixed.example:81"] == [b"fixed.example:81"]
    assert forwarded == [b"shop.example"]


# Paths.


@pytest.mark.spec("X-21", "B1")
async def test_a_rewritten_path_reaches_the_service_and_a_stripped_one_says_what_was_taken() -> None:
    async with RawUpstream() as upstream:
        rewritten = await sent(upstream, request("GET /api/a%2Fb?q=%20"), path="/api/*", rewrite="/v2/*")
        stripped = await sent(upstream, request("GET /api/x"), strip_prefix=True)

    assert rewritten.startswith(b"GET /v2/a%2Fb?q=%20 HTTP/1.1\r\n")
    assert values(rewritten, b"x-forwarded-prefix") == []
    assert stripped.startswith(b"GET /x HTTP/1.1\r\n")
    assert values(stripped, b"x-forwarded-prefix") == [b"/api"]


async def test_a_path_that_leads_out_of_the_rewrite_is_refused_before_the_service_hears_of_it() -> None:
    async with RawUpstream() as upstream, one_route(upstream, rewrite="/public/*") as port:
        raw = await talk(port, request("GET /api/x/../../api/secret"))

    assert status_and_reason(raw) == (400, "invalid-request")
    assert upstream.received == []


@pytest.mark.spec("S-006")
async def test_options_without_a_route_is_answered_by_the_gateway() -> None:
    async with RawUpstream() as upstream, one_route(upstream, methods=["GET"]) as port:
        raw = await talk(port, request("OPTIONS /api/x"))

    assert parts(raw)[0] == 204
    assert values(raw, b"allow") == [b"GET, HEAD, OPTIONS"]
    assert values(raw, b"content-length") == []
    assert upstream.received == []


@pytest.mark.spec("X-20")
async def test_a_host_without_a_route_is_404_standalone() -> None:
    async with RawUpstream() as upstream, one_route(upstream, host="a.example", methods=["GET"]) as port:
        found = await talk(port, request("GET /api/x", host="A.example:99"))
        other = await talk(port, request("GET /api/x", host="b.example"))
        method = await talk(port, request("PUT /api/x", host="a.example"))

    assert [parts(raw)[0] for raw in (found, other, method)] == [200, 404, 405]


# HTTPS.


@pytest.mark.spec("S-010", "B14")
@pytest.mark.parametrize(
    ("line", "headers", "gateway", "location"),
    [
        ("GET /api/a%2Fb?q=%20&r", [], {}, b"https://shop.example/api/a%2Fb?q=%20&r"),
        ("HEAD /api", [], {"https_port": 8443}, b"https://shop.example:8443/api"),
        ("GET /gw/api/x", [], {"prefix": "/gw"}, b"https://shop.example/gw/api/x"),
        ("GET /api/x", ["X-Forwarded-Proto: https"], {}, b"https://shop.example/api/x"),
        (
            "GET /api/x",
            ["X-Forwarded-Proto: http", "X-Forwarded-Host: www.example:8080", "X-Forwarded-Prefix: /shop"],
            SEE_OTHER_SIDE,
            b"https://www.example/shop/api/x",
        ),
        ("GET /api/x", ["X-Forwarded-Host: a b"], SEE_OTHER_SIDE, None),
    ],
)
@pytest.mark.parametrize("strip", [False, True])
async def test_a_get_over_plain_http_is_sent_to_the_same_url_over_https(
    line: str, headers: list[str], gateway: dict[str, object], location: bytes | None, strip: bool
) -> None:
    async with (
        RawUpstream() as upstream,
        one_route(upstream, gateway, require_https=True, strip_prefix=strip) as port,
    ):
        raw = await talk(port, request(line, *headers, host="shop.example:8080"))

    assert status_and_reason(raw) == (403 if location is None else 308, "https-required")
    assert values(raw, b"location") == ([] if location is None else [location])
    assert upstream.received == []


@pytest.mark.spec("S-010", "B14")
async def test_other_methods_over_plain_http_are_refused_and_a_trusted_proxy_may_say_that_it_was_https() -> None:
    async with RawUpstream() as upstream:
        async with one_route(upstream, SEE_OTHER_SIDE, require_https=True) as port:
            refused = await talk(port, request("POST /api/x", "Content-Length: 1", body=b"x"))
            passed = await talk(
                port, request("POST /api/x", "X-Forwarded-Proto: https", "Content-Length: 1", body=b"x")
            )
        async with one_route(upstream, {"require_https": True}, require_https=False) as port:
            plain = await talk(port, request("GET /api/x"))

    assert status_and_reason(refused) == (403, "https-required")
    assert [parts(raw)[0] for raw in (passed, plain)] == [200, 200]
    assert len(upstream.received) == 2


# Body limits.


@pytest.mark.spec("X-21")
async def test_a_content_length_above_the_limit_is_413_before_the_body_is_asked_for() -> None:
    payload = request("POST /api/x", "Content-Length: 11", "Expect: 100-continue")
    async with RawUpstream() as upstream, one_route(upstream, max_body=10) as port:
        refused = await talk(port, payload)
        passed = await talk(port, request("POST /api/x", "Content-Length: 10", body=b"0123456789"))

    assert status_and_reason(refused) == (413, "body-too-large")
    assert b"100 Continue" not in refused
    assert json.loads(parts(refused)[2])["detail"] == "The body of a request may have 10 bytes here."
    assert parts(passed)[0] == 200
    assert len(upstream.received) == 1


@pytest.mark.spec("X-21")
async def test_a_chunked_body_that_grows_too_long_ends_the_call_to_the_service() -> None:
    whole = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n0\r\n\r\n")
            whole.set()

    payload = request("POST /api/x", "Transfer-Encoding: chunked", body=b"5\r\nabcde\r\n" * 3 + b"0\r\n\r\n")
    async with RawUpstream(answer, reads_body=False) as upstream, one_route(upstream, max_body=10) as port:
        raw = await talk(port, payload)

    assert status_and_reason(raw) == (413, "body-too-large")
    assert not whole.is_set()


@pytest.mark.spec("X-21")
async def test_a_chunked_body_within_the_limit_passes_and_the_instance_is_not_blamed_for_others() -> None:
    short = request("POST /api/x", "Transfer-Encoding: chunked", body=b"a\r\n0123456789\r\n0\r\n\r\n")
    long = request("POST /api/x", "Transfer-Encoding: chunked", body=b"b\r\n01234567890\r\n0\r\n\r\n")
    async with RawUpstream() as upstream, one_route(upstream, {"max_body": 10}) as port:
        refused = [parts(await talk(port, long))[0] for _ in range(8)]
        passed = parts(await talk(port, short))[0]

    assert set(refused) == {413}
    assert passed == 200


# Policies of a route.


@pytest.mark.spec("X-21")
async def test_a_circuit_that_a_route_sets_is_its_own() -> None:
    async with RawUpstream(FAILS) as upstream:
        gateway = APIGateway(services={"up": upstream.url}, max_retries=0, enable_metrics=False)
        gateway.configure_routes(
            [
                {"path": "/own/*", "service": "up", "circuit_breaker": {"failure_threshold": 2}},
                {"path": "/shared/*", "service": "up"},
                {"path": "/none/*", "service": "up", "circuit_breaker": None},
            ]
        )
        async with serving(gateway) as port:
            own = [status_and_reason(await talk(port, request("GET /own/x"))) for _ in range(3)]
            shared = [status_and_reason(await talk(port, request("GET /shared/x"))) for _ in range(6)]
            none = [parts(await talk(port, request("GET /none/x")))[0] for _ in range(8)]

    assert own == [(500, ""), (500, ""), (503, "circuit-open")]
    assert shared == [(500, "")] * 5 + [(503, "circuit-open")]
    assert set(none) == {500}


@pytest.mark.spec("X-21", "X-30")
async def test_a_routes_circuit_outlives_a_change_of_its_other_settings_and_not_of_its_own() -> None:
    def routes(threshold: int, **more: object) -> list[dict[str, object]]:
        own = {"circuit_breaker": {"failure_threshold": threshold}}
        return [{"path": "/own/*", "service": "up", **own, **more}, {"path": "/shared/*", "service": "up"}]

    async with RawUpstream(FAILS) as upstream:
        gateway = APIGateway(services={"up": upstream.url}, max_retries=0, enable_metrics=False)
        gateway.configure_routes(routes(2))
        async with serving(gateway) as port:
            states = gateway.life.mesh.states  # type: ignore[union-attr]  # it is open
            for _ in range(2):
                await talk(port, request("GET /own/x"))
            gateway.configure_routes(routes(2, max_body=7))
            kept = status_and_reason(await talk(port, request("GET /own/x")))
            gateway.configure_routes(routes(3))
            anew = status_and_reason(await talk(port, request("GET /own/x")))
            family = len(states.get("up").family)
            others = status_and_reason(await talk(port, request("GET /shared/x")))

    assert kept == (503, "circuit-open")
    assert anew == others == (500, "")
    assert family == 2


@pytest.mark.spec("X-21")
async def test_a_change_of_the_services_circuit_reaches_what_the_route_inherits() -> None:
    async with RawUpstream(FAILS) as upstream:
        mesh = ServiceMesh("gw", services={"up": upstream.url}, enable_service_discovery=False)
        gateway = APIGateway(service_mesh=mesh, max_retries=0)
        gateway.configure_routes([{"path": "/own/*", "service": "up", "bulkhead": {"max_concurrent": 5}}])
        async with serving(gateway) as port:
            await talk(port, request("GET /own/x"))
            mesh.policies.change("up", circuit_breaker={"failure_threshold": 1})
            first, second = [status_and_reason(await talk(port, request("GET /own/x"))) for _ in range(2)]

    assert (first, second) == ((500, ""), (503, "circuit-open"))


@pytest.mark.spec("X-21", "B5")
async def test_timeouts_and_retries_of_a_route_lie_over_the_services() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawUpstream(silent) as upstream:
        gateway = APIGateway(services={"up": upstream.url}, enable_metrics=False)
        gateway.configure_routes(
            [
                {"path": "/once/*", "service": "up", "timeouts": {"attempt_timeout": 0.05}, "retry": None},
                {
                    "path": "/twice/*",
                    "service": "up",
                    "timeouts": {"attempt_timeout": 0.05},
                    "retry": {"max_attempts": 2, "base_delay": 0.0},
                },
            ]
        )
        async with serving(gateway) as port:
            once = await talk(port, request("GET /once/x"))
            attempts_once = len(upstream.received)
            twice = await talk(port, request("GET /twice/x"))

    assert status_and_reason(once) == status_and_reason(twice) == (504, "upstream-timeout")
    assert (attempts_once, len(upstream.received) - attempts_once) == (1, 2)


@pytest.mark.spec("X-21")
async def test_seats_of_a_route_are_its_own() -> None:
    leave, full = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if len(upstream.received) == 2:
            full.set()
        await leave.wait()
        writer.write(OK)
        return True

    async with RawUpstream(slow) as upstream:
        gateway = APIGateway(services={"up": upstream.url}, enable_metrics=False)
        gateway.configure_routes(
            [
                {"path": "/own/*", "service": "up", "bulkhead": {"max_concurrent": 1}},
                {"path": "/shared/*", "service": "up"},
            ]
        )
        async with serving(gateway) as port, asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(talk(port, request(f"GET {path}"))) for path in ("/own/x", "/shared/x")]
            await asyncio.wait_for(full.wait(), 20)
            refused = await talk(port, request("GET /own/y"))
            leave.set()
            answers = await asyncio.gather(*running)

    assert status_and_reason(refused) == (503, "bulkhead-full")
    assert [parts(raw)[0] for raw in answers] == [200, 200]


@pytest.mark.spec("X-21")
def test_times_of_a_route_that_do_not_fit_are_refused_with_both_numbers() -> None:
    gateway = APIGateway(request_timeout=5, upstream_timeout=5)

    with pytest.raises(ConfigurationError) as refused:
        gateway.configure_routes([{"path": "/a", "service": "up", "timeouts": {"attempt_timeout": 9.0}}])

    (problem,) = refused.value.problems
    assert problem.startswith("routes[0].timeouts")
    assert "9 s" in problem
    assert "5 s" in problem


def test_a_policy_that_sets_nothing_is_not_the_routes_own() -> None:
    gateway = APIGateway()
    gateway.configure_routes([{"path": "/a", "service": "up", "timeouts": None}])

    assert gateway.config.routes[0].overrides == frozenset()
    assert gateway.config.routes[0].policy() == ServicePolicy()


# Live.


@pytest.mark.spec("X-30")
@pytest.mark.parametrize("changes", [40, pytest.param(200, marks=pytest.mark.soak)])
async def test_no_request_fails_while_routes_change_all_the_time(changes: int) -> None:
    failed: list[bytes] = []
    done, answered = asyncio.Event(), asyncio.Event()

    async def ask(port: int, host: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not done.is_set():
                writer.write(f"GET /api/7/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                answered.set()
                if not head.startswith(b"HTTP/1.1 200"):
                    failed.append(head)
        finally:
            writer.close()
            await writer.wait_closed()

    async with RawUpstream() as upstream:
        gateway = APIGateway(services={"up": upstream.url}, enable_metrics=False)

        def change(number: int) -> None:
            gateway.configure_routes(
                [
                    {
                        "path": "/api/{id}/*" if number % 2 else "/api/*",
                        "service": "up",
                        "host": ["a.example", f"b-{number}.example"] if number % 3 else ["a.example"],
                        "rewrite": f"/v{number}/*",
                        "request_headers": {"set": {"x-number": str(number)}},
                        "circuit_breaker": {"failure_threshold": 3 + number % 2},
                    },
                    {"path": "/api/*", "service": "up", "priority": -1 - number % 2, "max_body": number},
                ]
            )

        change(0)
        async with serving(gateway) as port, asyncio.TaskGroup() as tasks:
            for host in ("a.example", "b.example", "a.example", "c.example"):
                tasks.create_task(ask(port, host))
            for number in range(changes):
                change(number)
                answered.clear()
                await answered.wait()
            done.set()

    assert failed == []


def test_what_nobody_may_change_is_what_the_gateway_writes_or_ends() -> None:
    requests = {name.encode() for name in routing.OF_REQUESTS}

    assert {name.decode() for name in headers.HOP_BY_HOP} == routing.HOP_BY_HOP
    assert requests - headers.HOP_BY_HOP >= headers.FORWARDING
