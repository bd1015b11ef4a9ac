"""The handshake of a WebSocket through a gateway: what the service is asked, and who is refused how."""

# ruff: noqa: SIM117 - a block per party: service, gateway, client
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse

from fastapi_mesh.api_gateway import APIGateway
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, serving, talk, values
from tests.api_gateway.websocket.ws_support import (
    IMPLEMENTATIONS,
    Service,
    connect,
    gateway_in_front,
    refusal,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-24")]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepting(*extra: str, key: bytes | None = None):
    """An answer that accepts the handshake, with `extra` headers, and then echoes bytes until the end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = _upstreams[0].received[-1]
        asked = values(head, b"sec-websocket-key")[0] if key is None else key
        accept = base64.b64encode(hashlib.sha1(asked + GUID).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept}", *extra, "", ""]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        await reader.read(1)
        _upstreams[0].closed.set()
        return False

    return answer


_upstreams: list[RawUpstream] = []


class Raw(RawUpstream):
    """A service whose answers are made of what it was asked."""

    async def __aenter__(self) -> Raw:
        _upstreams[:] = [self]
        await super().__aenter__()
        return self


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_what_the_service_is_asked(ws: str) -> None:
    own = "x" if ws == "websockets" else "ä"  # uvicorn's oldest protocol answers 500 to anything but ASCII
    headers = {"Origin": "https://shop.example", "Cookie": "a=1; b=2", "X-Own": own}
    async with (
        Raw(accepting()) as upstream,
        gateway_in_front(upstream.url, ws=ws) as (_, port),
        connect(port, "/api/a%2fb?x=%20&x=2", subprotocols=["chat", "mqtt"], additional_headers=headers) as client,
    ):
        key = client.request.headers["Sec-WebSocket-Key"].encode()  # type: ignore[union-attr]
        head = upstream.received[0]
        assert head.startswith(b"GET /api/a%2fb?x=%20&x=2 HTTP/1.1\r\n")
        assert values(head, b"upgrade") == [b"websocket"]
        assert values(head, b"connection") == [b"upgrade"]
        assert values(head, b"sec-websocket-version") == [b"13"]
        assert values(head, b"sec-websocket-protocol") == [b"chat, mqtt"]
        assert values(head, b"sec-websocket-extensions") == []  # the client offered permessage-deflate
        [own_key] = values(head, b"sec-websocket-key")
        assert own_key != key
        assert len(base64.b64decode(own_key)) == 16
        assert values(head, b"origin") == [b"https://shop.example"]
        assert values(head, b"cookie") == [b"a=1; b=2"]
        assert values(head, b"x-own") == [own.encode("latin-1")]
        assert values(head, b"host") == [b"127.0.0.1:%d" % port]
        assert values(head, b"x-forwarded-for") == [b"127.0.0.1"]
        assert values(head, b"x-forwarded-proto") == [b"http"]
        assert values(head, b"via") == [b"1.1 fastapi-mesh"]
        assert len(values(head, b"x-request-id")) == 1
        client.transport.abort()


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_the_service_chooses_the_subprotocol_and_its_headers_reach_the_client(ws: str) -> None:
    extra = ["Sec-WebSocket-Protocol: mqtt", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-Own: yes", "Server: secret"]
    async with Raw(accepting(*extra)) as upstream, gateway_in_front(upstream.url, ws=ws) as (_, port):
        async with connect(port, subprotocols=["chat", "mqtt"]) as client:
            got = client.response.headers  # type: ignore[union-attr]
            assert client.subprotocol == "mqtt"
            assert got.get_all("Set-Cookie") == ["a=1", "b=2"]
            assert got.get_all("X-Own") == ["yes"]
            assert "secret" not in got.get_all("Server")
            assert len(got.get_all("Sec-WebSocket-Accept")) == 1
            assert len(got.get_all("X-Request-ID")) == 1
            client.transport.abort()


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        pytest.param(["Sec-WebSocket-Protocol: other"], None, id="a subprotocol that was not offered"),
        pytest.param(["Sec-WebSocket-Protocol: chat, mqtt"], None, id="two subprotocols"),
        pytest.param(["Sec-WebSocket-Extensions: permessage-deflate"], None, id="an extension that was not offered"),
        pytest.param([], b"another key", id="the answer to another key"),
    ],
)
async def test_a_101_that_does_not_fit_the_question_is_a_502(extra: list[str], key: bytes | None) -> None:
    async with Raw(accepting(*extra, key=key)) as upstream, gateway_in_front(upstream.url) as (gateway, port):
        response = await refusal(port, subprotocols=["chat", "mqtt"])
        assert response.status_code == 502
        assert json.loads(response.body)["reason"] == "invalid-response"
        async with asyncio.timeout(20):
            await upstream.closed.wait()
        assert gateway.life is not None
        assert gateway.life.websockets.statistics() == {"handshakes": 1, "refused": 1, "opened": 0, "running": 0}


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_what_the_service_answers_instead_is_the_answer(ws: str) -> None:
    service = FastAPI()

    @service.websocket("/api/ws")
    async def refuse(socket: WebSocket, status: int) -> None:
        headers = {"www-authenticate": "Bearer", "x-own": "yes"}
        await socket.send_denial_response(PlainTextResponse("no", status, headers))

    async with serving(service) as up, gateway_in_front(f"http://127.0.0.1:{up}", ws=ws) as (_, port):
        for status in (200, 302, 401, 403, 404, 418, 429, 500):
            response = await refusal(port, f"/api/ws?status={status}")
            assert (response.status_code, response.body) == (status, b"no")
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert len(response.headers.get_all("Content-Length")) == 1


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_answers_that_no_server_could_pass_on_are_replaced(ws: str) -> None:
    long = b"x" * 100_000
    answers = {
        599: b"HTTP/1.1 599 Hm\r\ncontent-length: 2\r\n\r\nno",
        403: b"HTTP/1.1 403 No\r\nx-own: yes\r\ncontent-encoding: gzip\r\ncontent-length: 100000\r\n\r\n" + long,
        204: b"HTTP/1.1 204 No Content\r\n\r\n",
    }
    async with RawUpstream() as upstream, gateway_in_front(upstream.url, ws=ws) as (_, port):
        upstream.answer = answers[599]
        assert (await refusal(port)).status_code == 500
        upstream.answer = answers[403]
        response = await refusal(port)
        assert (response.status_code, response.headers["X-Own"]) == (403, "yes")
        assert "Content-Encoding" not in response.headers
        assert json.loads(response.body)["reason"] == "invalid-response"
        upstream.answer = answers[204]
        assert (await refusal(port)).status_code == 204


@pytest.mark.parametrize("ws", IMPLEMENTATIONS)
async def test_refusals_of_the_gateway_are_problem_documents(ws: str) -> None:
    routes: list[dict[str, object]] = [
        {"path": "/api/*", "service": "up"},
        {"path": "/post", "service": "up", "methods": ["POST"]},
        {"path": "/off", "service": "up", "websocket": False},
        {"path": "/down", "service": "down"},
        {"path": "/h2", "service": "h2"},
    ]
    services = {"up": "http://127.0.0.1:9", "down": "http://127.0.0.1:9", "h2": "h2c://127.0.0.1:9"}
    async with gateway_in_front("http://127.0.0.1:9", ws=ws, routes=None) as (gateway, port):
        gateway.configure_services({name: url for name, url in services.items() if name != "up"})
        gateway.configure_routes(routes)
        for path, status, reason in (
            ("/nowhere", 404, "no-route"),
            ("/post", 405, "method-not-allowed"),
            ("/off", 403, "websocket-off"),
            ("/down", 502, "connection-failed"),
        ):
            response = await refusal(port, path)
            assert response.status_code == status
            assert response.headers["X-Mesh-Reason"] == reason
            assert json.loads(response.body)["reason"] == reason
        assert "POST" in (await refusal(port, "/post")).headers["Allow"]
        assert (await refusal(port, "/h2")).status_code in (400, 500, 502)


async def test_a_handshake_counts_like_a_request() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port):
        async with connect(port) as client:
            await client.send("x")
            await client.recv()
            shown = _metrics(gateway)
            assert 'gateway_requests_total{method="GET",path="/api/*",status="101"} 1.0' in shown
            assert 'gateway_websockets_open{path="/api/*"} 1.0' in shown
            assert 'gateway_websocket_messages_total{direction="client",path="/api/*"} 1.0' in shown
            assert 'gateway_websocket_message_size_total{direction="service",path="/api/*"} 1.0' in shown
        await service.close_code()
        await until(
            lambda: 'gateway_websockets_open{path="/api/*"} 0.0' in _metrics(gateway), "it is counted as closed"
        )
        assert 'gateway_websockets_closed_total{code="1000",path="/api/*"} 1.0' in _metrics(gateway)
        await refusal(port, "/nowhere")
        assert 'status="404"} 1.0' in _metrics(gateway)


def _metrics(gateway: object) -> str:
    return gateway.life.mesh.metrics.render()[0].decode()  # type: ignore[attr-defined,no-any-return]


async def test_a_connection_that_is_refused_is_tried_at_another_instance() -> None:
    async with Service() as service, gateway_in_front(["http://127.0.0.1:9", service.url]) as (_gateway, port):
        for _ in range(4):
            async with connect(port) as client:
                await client.send("x")
                assert await client.recv() == "x"


async def test_the_lease_of_an_instance_lasts_as_long_as_the_socket() -> None:
    async with Service() as service, gateway_in_front(service.url) as (gateway, port):
        async with connect(port):
            assert _in_flight(gateway) == 1
        await until(lambda: _in_flight(gateway) == 0, "the lease ends")


def _in_flight(gateway: object) -> int:
    context = gateway.life.mesh.new_context("up")  # type: ignore[attr-defined]
    return sum(each.in_flight for each in context.state.instances.value)


async def test_an_open_circuit_refuses_handshakes() -> None:
    async with RawUpstream(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n") as upstream:
        async with gateway_in_front(upstream.url, max_retries=0) as (gateway, port):
            gateway.configure_services(
                {"up": {"instances": [upstream.url], "circuit_breaker": {"failure_threshold": 3}}}
            )
            for _ in range(3):
                assert (await refusal(port)).status_code == 500
            response = await refusal(port)
            assert (response.status_code, response.headers["X-Mesh-Reason"]) == (503, "circuit-open")


async def test_a_client_that_leaves_during_the_handshake_takes_the_call_with_it() -> None:
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        upstream.closed.set()

    async with RawUpstream(never) as upstream, gateway_in_front(upstream.url) as (gateway, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /api/ws HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        async with asyncio.timeout(20):
            await asked.wait()
            writer.close()
            await writer.wait_closed()
            await upstream.closed.wait()
        await until(lambda: gateway.life.websockets.statistics()["running"] == 0, "it is over")  # type: ignore[union-attr]


async def test_a_handshake_that_takes_too_long_is_a_504() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawUpstream(never) as upstream:
        async with gateway_in_front(upstream.url, request_timeout=0.2, upstream_timeout=0.2) as (_, port):
            assert (await refusal(port)).status_code == 504


async def test_an_open_socket_outlives_the_timeouts_of_its_handshake() -> None:
    async with Service() as service:
        async with gateway_in_front(service.url, request_timeout=0.1, upstream_timeout=0.1) as (_, port):
            async with connect(port) as client:
                await asyncio.sleep(0.25)
                await client.send("still here")
                assert await client.recv() == "still here"


@pytest.mark.parametrize("protocols", ["a b", "a;q=1", '"x"'])
async def test_subprotocols_that_are_no_tokens_are_a_400(protocols: str) -> None:
    raw = (
        f"GET /api/ws HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
    )
    async with RawUpstream() as upstream, gateway_in_front(upstream.url) as (_, port):
        status, _headers, _body = parts(await talk(port, raw.encode()))
        assert status == 400
        assert upstream.received == []


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"gw"), (b"content-length", b"5")],
        [(b"host", b"gw"), (b"transfer-encoding", b"chunked")],
        [(b"host", b"a@b")],
        [(b"host", b"gw"), (b"host", b"gw")],
        [(b"host", b"gw"), (b"x", b"\0")],
    ],
)
async def test_a_handshake_that_cannot_be_passed_on_is_a_400(headers: list[tuple[bytes, bytes]]) -> None:
    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        sent = await handshake_by_hand(gateway, {"headers": headers})
        assert sent[0]["status"] == 400
        assert upstream.received == []


async def test_a_scope_with_only_what_asgi_demands_is_enough() -> None:
    async with Raw(accepting()) as upstream:
        gateway = gateway_to(upstream.url)
        sent = await handshake_by_hand(gateway, {"headers": [(b"Host", b"gw")]}, then={"type": "websocket.disconnect"})
        assert sent[0]["type"] == "websocket.accept"
        assert upstream.received[0].startswith(b"GET /api/ws HTTP/1.1\r\n")


async def handshake_by_hand(
    gateway: APIGateway, scope: dict[str, object], then: dict[str, object] | None = None
) -> list[dict[str, object]]:
    """Give the gateway a scope that no server would make; `then` is what the client does when it is accepted."""
    sent: list[dict[str, object]] = []
    arrived: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    arrived.put_nowait({"type": "websocket.connect"})

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if message["type"] == "websocket.accept" and then is not None:
            arrived.put_nowait(then)

    whole = {
        "type": "websocket",
        "path": "/api/ws",
        "query_string": b"",
        "extensions": {"websocket.http.response": {}},
        **scope,
    }
    async with gateway.opened({}), asyncio.timeout(20):
        await gateway(whole, arrived.get, send)
    return sent


async def test_without_the_extra_the_answer_is_a_500_and_the_log_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with RawUpstream() as upstream, gateway_in_front(upstream.url) as (_, port):
        monkeypatch.setitem(sys.modules, "websockets.client", None)
        raw = (
            b"GET /api/ws HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        status, headers, _ = parts(await talk(port, raw))
        assert status == 500
        assert (b"x-mesh-reason", b"configuration") in headers
        assert "fastapi-mesh[ws]" in caplog.text
        assert upstream.received == []


async def test_where_the_server_has_no_http_answers_the_close_code_says_why() -> None:
    from fastapi_mesh.api_gateway.websocket.closes import of_refusal
    from fastapi_mesh.api_gateway.websocket.refusal import send_refusal
    from fastapi_mesh.core.message import Response

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await send_refusal({"type": "websocket"}, send, Response.of(403, [], b"no"))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert [of_refusal(status) for status in (401, 404, 429, 500, 502, 503)] == [1008, 1008, 1013, 1011, 1011, 1013]
