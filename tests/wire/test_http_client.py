"""Tests of the httpx2 client that users of the mesh get, over a scripted stack."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from fastapi import FastAPI, WebSocket

from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.http import HTTPStatusError, MeshTransport, new_client
from tests.wire.asgi_support import asgi_wire, new_context

pytestmark = pytest.mark.anyio


class Stack:
    """Answers what it is told to, and keeps the requests and the contexts it saw."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.bodies = []
        self.asked = []
        self.policies = []
        self.record = object()

    def new_context(self, service: str, template: str) -> CallContext:
        self.asked.append((service, template))
        context = new_context(Instance(service, "1", "127.0.0.1", 80))
        context.template = template
        self.policies.append(context.policy)
        return context

    async def send(self, request) -> Response:
        self.requests.append(request)
        body = request.body
        self.bodies.append(body if isinstance(body, bytes) else [part async for part in body])
        request.context.attempt = 2
        request.context.record = self.record
        answer = self.answers.pop(0) if self.answers else Response.of(200, [], b"")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, service="Order-Service", **options) -> httpx2.AsyncClient:
        transport = MeshTransport(self.send, self.new_context, service=service)
        return new_client(transport, f"http://{service}", **options)


def json_answer(status, content, *headers):
    return Response.of(status, [(b"Content-Type", b"application/json"), *headers], content)


async def test_a_json_post_becomes_a_request_of_raw_bytes():
    stack = Stack(json_answer(201, b'{"id": 7}'))
    async with stack.client() as client:
        answer = await client.post("/a%2Fb", params={"q": "x y"}, json={"name": "Ann"}, headers={"X-A": "1"})

    assert (answer.status_code, answer.json()) == (201, {"id": 7})
    [request] = stack.requests
    assert (request.method, request.service, request.target) == (b"POST", "Order-Service", b"/a%2Fb?q=x+y")
    assert request.body == b'{"name":"Ann"}'
    headers = dict(request.headers)
    assert headers[b"X-A"] == b"1"
    assert headers[b"Content-Type"] == b"application/json"
    assert headers[b"Content-Length"] == b"14"
    assert {name.lower() for name, _ in request.headers} & {b"host", b"connection", b"transfer-encoding"} == set()


async def test_duplicate_headers_are_kept_both_ways_and_in_order():
    cookies = [(b"Set-Cookie", b"a=1"), (b"X-B", b"1"), (b"Set-Cookie", b"b=2"), (b"x-b", b"2")]
    stack = Stack(Response.of(200, cookies, b""))
    async with stack.client() as client:
        answer = await client.get("/", headers=[("X-A", "1"), ("X-C", "0"), ("X-A", "2")])

    sent = [field for field in stack.requests[0].headers if field[0] in (b"X-A", b"X-C")]
    assert sent == [(b"X-A", b"1"), (b"X-C", b"0"), (b"X-A", b"2")]
    assert answer.headers.raw == cookies


async def test_a_host_that_the_user_sets_is_kept():
    stack = Stack()
    async with stack.client() as client:
        await client.get("/", headers={"Host": "shop.example"})
    assert [value for name, value in stack.requests[0].headers if name.lower() == b"host"] == [b"shop.example"]


@pytest.mark.parametrize(
    ("url", "service"),
    [("/x", "Order-Service"), ("http://ORDER-service/x", "Order-Service"), ("https://users:8443/x", "users")],
)
async def test_the_host_of_the_url_is_the_service(url, service):
    stack = Stack()
    async with stack.client() as client:
        await client.get(url)
    assert stack.asked == [(service, "")]
    assert (stack.requests[0].service, stack.requests[0].target) == (service, b"/x")


async def test_without_a_service_of_its_own_every_url_names_one():
    stack = Stack()
    transport = MeshTransport(stack.send, stack.new_context)
    async with httpx2.AsyncClient(transport=transport) as client:
        await client.get("http://users/1")
        await client.get("http://orders/2")
    assert [service for service, _ in stack.asked] == ["users", "orders"]


async def test_a_template_is_passed_only_where_the_user_gives_one():
    stack = Stack()
    async with stack.client() as client:
        await client.get("/users/7", extensions={"template": "/users/{id}"})
        await client.get("/users/7")
    assert [template for _, template in stack.asked] == ["/users/{id}", ""]


async def test_a_generator_is_streamed_and_bytes_are_not():
    async def parts():
        yield b"one"
        yield b"two"

    stack = Stack()
    async with stack.client() as client:
        await client.post("/", content=parts())
        await client.post("/", content=parts(), headers={"Content-Length": "6"})
        await client.post("/", content=b"here")
        await client.get("/")
    assert stack.bodies == [[b"one", b"two"], [b"one", b"two"], b"here", b""]
    assert (b"Content-Length", b"6") in stack.requests[1].headers


async def test_a_small_form_with_a_file_can_be_sent_again_and_a_big_one_is_streamed():
    stack = Stack()
    async with stack.client() as client:
        await client.post("/", files={"file": b"x" * 1000})
        await client.post("/", files={"file": b"x" * 100_000})
    assert isinstance(stack.bodies[0], bytes)
    assert b"x" * 1000 in stack.bodies[0]
    assert isinstance(stack.bodies[1], list)
    assert sum(map(len, stack.bodies[1])) > 100_000


async def test_a_synchronous_iterator_is_refused():
    stack = Stack()
    transport = MeshTransport(stack.send, stack.new_context)
    with pytest.raises(InvalidRequestError, match="synchronous"):
        await transport.handle_async_request(httpx2.Request("POST", "http://orders/", content=iter([b"x"])))
    assert stack.requests == []


async def test_the_body_arrives_as_it_comes_and_closing_reaches_the_mesh():
    class Endless:
        at_end = False
        closed = False

        async def read(self):
            return b"data: x\n\n"

        async def aclose(self):
            self.closed = True

    source, outcomes = Endless(), []
    answer = Response(200, [], source)
    answer.on_close(lambda argument, outcome, error: outcomes.append(outcome), None)
    async with Stack(answer).client() as client, client.stream("GET", "/") as stream:
        chunks = stream.aiter_raw()
        assert await anext(chunks) == b"data: x\n\n"
        await chunks.aclose()
    assert source.closed is True
    assert outcomes == [Outcome.ABANDONED]


async def test_a_failing_body_raises_the_mesh_s_error():
    class Dying:
        at_end = False

        async def read(self):
            raise UpstreamConnectionError("died", service="orders")

        async def aclose(self):
            pass

    async with Stack(Response(200, [], Dying())).client() as client:
        with pytest.raises(UpstreamConnectionError, match="died"):
            await client.get("/")


@pytest.mark.parametrize(
    "error", [CircuitBreakerOpenError("open"), UpstreamTimeoutError("slow"), UpstreamConnectionError("refused")]
)
async def test_errors_of_the_mesh_pass_as_they_are(error):
    async with Stack(error).client() as client:
        with pytest.raises(type(error)) as caught:
            await client.get("/")
    assert caught.value is error
    assert not isinstance(error, httpx2.HTTPError)


async def test_a_response_says_what_the_mesh_did_and_so_does_the_error_made_of_it():
    stack = Stack(json_answer(503, b"{}"))
    async with stack.client() as client:
        answer = await client.get("/")
    with pytest.raises(HTTPStatusError) as caught:
        answer.raise_for_status()
    mark = caught.value.response.extensions["fastapi_mesh"]
    assert mark == {"record": stack.record, "attempts": 2, "service": "Order-Service"}


async def test_one_user_s_cookies_are_never_sent_for_another():
    stack = Stack(Response.of(200, [(b"Set-Cookie", b"session=secret; Path=/")], b""))
    async with stack.client() as client:
        answer = await client.get("/login")
        assert answer.headers["set-cookie"] == "session=secret; Path=/"
        await client.get("/other")
    assert [name for name, _ in stack.requests[1].headers if name.lower() == b"cookie"] == []


async def test_redirects_are_the_caller_s_business():
    stack = Stack(Response.of(307, [(b"Location", b"http://elsewhere/")], b""))
    async with stack.client() as client:
        answer = await client.get("/")
    assert answer.status_code == 307
    assert len(stack.requests) == 1


async def test_the_environment_s_proxy_is_ignored(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    stack = Stack()
    async with stack.client() as client:
        assert (await client.get("/")).status_code == 200


async def test_without_a_timeout_of_the_call_the_policy_is_untouched():
    stack = Stack()
    async with stack.client() as client:
        await client.get("/")
        await client.get("/", timeout=None)
    assert all(request.context.policy is own for request, own in zip(stack.requests, stack.policies, strict=True))


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (2.0, {"connect_timeout": 2.0, "attempt_timeout": 2.0, "idle_timeout": 2.0, "timeout": 30.0}),
        (90.0, {"connect_timeout": 90.0, "attempt_timeout": 90.0, "idle_timeout": 90.0, "timeout": 90.0}),
        (httpx2.Timeout(None, connect=1.0), {"connect_timeout": 1.0, "attempt_timeout": 25.0, "timeout": 30.0}),
        (None, {"connect_timeout": 5.0, "attempt_timeout": 25.0, "idle_timeout": 60.0, "timeout": 30.0}),
    ],
)
async def test_the_timeout_of_a_call_bounds_its_attempts(timeout, expected):
    stack = Stack()
    async with stack.client() as client:
        await client.get("/", timeout=timeout)
    policy = stack.requests[0].context.policy
    assert {name: getattr(policy, name) for name in expected} == expected


async def test_compressed_content_is_decoded_for_the_user():
    import gzip

    content = gzip.compress(b'{"a": 1}')
    async with Stack(json_answer(200, content, (b"Content-Encoding", b"gzip"))).client() as client:
        assert (await client.get("/")).json() == {"a": 1}


@pytest.mark.spec("X-11")
async def test_the_client_reaches_an_application_of_this_process_websockets_included():
    app = FastAPI()

    @app.get("/items/{name}")
    async def read(name: str):
        return {"name": name}

    @app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept(subprotocol="chat")
        await websocket.send_text(await websocket.receive_text() + "!")
        await websocket.close(4001)

    instance = Instance("orders", "orders-1", "orders", 0, scheme="asgi", app=app)
    async with asgi_wire() as wire:
        transport = MeshTransport(wire, lambda service, template: new_context(instance), service="orders")
        async with new_client(transport, "http://orders") as client:
            assert (await client.get("/items/7")).json() == {"name": "7"}
            async with client.websocket("/ws", subprotocols=["chat"]) as websocket:
                await websocket.send_text("hi")
                assert await websocket.receive_text() == "hi!"
                with pytest.raises(Exception, match="4001"):
                    await websocket.receive_text()
                assert websocket.subprotocol == "chat"
        await asyncio.sleep(0)
