"""What transformers can do to requests, and what they can't."""

from __future__ import annotations

import gzip
import logging

import pytest
from fastapi import HTTPException

from fastapi_mesh import generate_request_id
from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.transform import GatewayRequest, GatewayResponse
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, serving, talk, values
from tests.api_gateway.gateway_support import request as raw_request
from tests.api_gateway.transform_support import Echo, client_of, new_gateway

pytestmark = pytest.mark.anyio


class RequestTransformer:
    """The description's, word for word."""

    async def transform_request(self, request):
        # Agregar headers personalizados
        request.headers["X-Gateway-Version"] = "1.0"
        request.headers["X-Request-ID"] = generate_request_id()

        # Transformar body si es necesario
        if request.path.startswith("/api/v1/legacy"):
            request.body = await self.transform_legacy_format(request.body)

        return request

    async def transform_legacy_format(self, body):
        return body.upper()


@pytest.mark.spec("S-030", "S-032", "S-034", "A2", "B36", "X-32")
async def test_the_descriptions_request_transformer_works_as_it_is_written() -> None:
    echo = Echo()
    async with client_of(new_gateway(echo, RequestTransformer())) as client:
        answer = await client.post("/api/v1/legacy/x", content=b"hello")
        assert echo.last["body"] == b"HELLO"
        assert echo.header("content-length") == "5"
        assert echo.header("x-gateway-version") == "1.0"
        assert echo.header("x-request-id") == answer.headers["x-request-id"], "the id that logs and traces have"

        await client.post("/api/v1/new", content=b"hello")
        assert echo.last["body"] == b"hello"


@pytest.mark.spec("S-030", "A2")
async def test_method_path_query_headers_and_body_can_be_set() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.method = "PUT"
        request.path = "/api/v2/año 1"
        request.query = "a=1&b=%20"
        request.headers["Authorization"] = "Bearer x"
        request.headers.add("X-Many", "1")
        request.headers.add("X-Many", "2")
        del request.headers["X-Gone"]
        request.body = "bytes or text: ñ"
        return request

    echo = Echo()
    async with client_of(new_gateway(echo, change)) as client:
        headers = {"x-gone": "1", "content-md5": "abc", "digest": "sha-256=x", "x-kept": "k"}
        await client.post("/api/v1/x?c=3", content=b"something longer than the other body", headers=headers)

    assert (echo.last["method"], echo.last["path"]) == ("PUT", "/api/v2/a%C3%B1o%201")
    assert echo.last["query"] == "a=1&b=%20"
    assert echo.last["body"] == "bytes or text: ñ".encode()
    assert echo.header("content-length") == "17"
    assert echo.header("authorization") == "Bearer x"
    assert [v for n, v in echo.last["headers"] if n == "x-many"] == ["1", "2"]  # type: ignore[attr-defined]
    assert [echo.header(name) for name in ("x-gone", "content-md5", "digest", "x-kept")] == [None, None, None, "k"]


@pytest.mark.spec("S-030", "X-21")
async def test_a_changed_path_is_the_clients_so_the_prefix_is_still_stripped() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.path = request.path.replace("/old/", "/new/")
        return request

    echo = Echo()
    gateway = new_gateway(echo, change, route={"strip_prefix": True})
    async with client_of(gateway) as client:
        await client.get("/api/old/a%2Fb")
        assert echo.last["path"] == "/new/a/b", "path is decoded"
        await client.get("/api/other/a%2Fb?x=%41")
        assert (echo.last["path"], echo.last["query"]) == ("/other/a%2Fb", "x=%41"), (
            "what isn't changed stays as it came"
        )


async def test_a_raw_path_keeps_its_encoded_slash() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.raw_path = request.raw_path.replace(b"/old/", b"/new/")
        return request

    echo = Echo()
    async with client_of(new_gateway(echo, change)) as client:
        await client.get("/api/old/a%2Fb")

    assert echo.last["path"] == "/api/new/a%2Fb"


@pytest.mark.spec("A2")
async def test_what_is_known_of_the_client_is_there() -> None:
    seen: list[GatewayRequest] = []

    def look(request: GatewayRequest) -> GatewayRequest:
        seen.append(request)
        return request

    echo = Echo()
    async with client_of(new_gateway(echo, look)) as client:
        answer = await client.get("/api/x?a=1")

    request = seen[0]
    assert (request.method, request.path, request.raw_path, request.query) == ("GET", "/api/x", b"/api/x", "a=1")
    assert (request.client, request.scheme, request.principal) == ("192.0.2.7", "http", None)
    assert request.request_id == answer.headers["x-request-id"]
    assert request.route is not None
    assert request.route.path == "/api/*"
    assert request.body == b""
    assert request.headers["USER-AGENT"] == echo.header("user-agent")


@pytest.mark.spec("S-034", "X-32")
async def test_transformers_run_in_the_order_in_which_they_were_added_and_back_in_reverse() -> None:
    said: list[str] = []

    def both(name: str):
        class Named:
            def transform_request(self, request):
                said.append(f"request {name}")
                return request

            async def transform_response(self, response):
                said.append(f"response {name}")
                return response

        return Named()

    gateway = new_gateway(Echo())
    for name in ("a", "b"):
        gateway.add_transformers(request_transformer=(it := both(name)), response_transformer=it)
    async with client_of(gateway) as client:
        await client.get("/api/x")

    assert said == ["request a", "request b", "response b", "response a"]


@pytest.mark.spec("S-034")
async def test_transformers_are_for_all_routes_or_for_those_that_are_named() -> None:
    def mark(request: GatewayRequest) -> GatewayRequest:
        request.headers["X-Legacy"] = "1"
        return request

    echo = Echo()
    gateway = APIGateway(services={"up": echo})
    gateway.add_transformers(mark, routes=["/legacy/*"])
    gateway.configure_routes([{"path": "/legacy/*", "service": "up"}, {"path": "/new/*", "service": "up"}])
    async with client_of(gateway) as client:
        await client.get("/legacy/x")
        assert echo.header("x-legacy") == "1"
        await client.get("/new/x")
        assert echo.header("x-legacy") is None


async def test_a_path_that_is_no_routes_is_told_when_the_gateway_opens() -> None:
    gateway = new_gateway(Echo())
    gateway.add_transformers(lambda request: request, routes=["/nowhere/*"])

    with pytest.raises(ConfigurationError, match=r"there is no route '/nowhere/\*'"):
        await gateway.open_in({})


async def test_transformers_can_be_added_while_the_gateway_runs() -> None:
    echo = Echo()
    gateway = new_gateway(echo)
    async with client_of(gateway) as client:
        await client.get("/api/x")
        gateway.add_transformers(RequestTransformer())
        await client.get("/api/x")

    assert echo.header("x-gateway-version") == "1.0"
    assert "x-gateway-version" not in dict(echo.requests[0]["headers"])  # type: ignore[call-overload]


@pytest.mark.spec("A2")
async def test_a_transformer_can_answer_itself_and_then_only_those_outside_of_it_see_the_answer() -> None:
    def mark(name: str):
        def transform(response: GatewayResponse) -> GatewayResponse:
            response.headers.add("X-Seen", name)
            return response

        return transform

    def answer(request: GatewayRequest) -> GatewayResponse:
        return GatewayResponse(418, {"X-Own": "yes", "ETag": '"x"'}, "short and stout")

    echo = Echo()
    gateway = new_gateway(echo, None, mark("outer"))
    gateway.add_transformers(answer, mark("own"))
    gateway.add_transformers(None, mark("inner"))
    async with client_of(gateway) as client:
        got = await client.post("/api/x", content=b"x" * 100_000)

    assert (got.status_code, got.text, got.headers["x-own"]) == (418, "short and stout", "yes")
    assert got.headers["content-length"] == "15"
    assert got.headers.get_list("x-seen") == ["outer"]
    assert echo.requests == []


class Refused(GatewayRefusalError):
    status = 402
    reason = "pay-first"


@pytest.mark.parametrize(
    ("error", "status", "reason", "detail"),
    [
        (HTTPException(404, "no such thing"), 404, "transform-refused", "no such thing"),
        (HTTPException(401, "who?", {"WWW-Authenticate": "Basic"}), 401, "transform-refused", "who?"),
        (Refused("pay"), 402, "pay-first", "pay"),
        (KeyError("boom"), 500, "transform-failed", "A transformer of this gateway failed; its log says more."),
    ],
)
async def test_what_a_transformer_raises_is_the_answer(
    error: Exception, status: int, reason: str, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: GatewayRequest) -> GatewayRequest:
        raise error

    echo = Echo()
    async with client_of(new_gateway(echo, fail)) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (status, reason)
    assert answer.json()["detail"] == detail
    assert answer.headers.get("www-authenticate") == ("Basic" if status == 401 else None)
    assert echo.requests == []
    assert ("boom" in caplog.text) == (status == 500)
    if status == 500:
        assert "fail" in caplog.text, "the log names the transformer"


@pytest.mark.spec("A2")
@pytest.mark.parametrize("returned", [None, "text", {}, GatewayRequest()])
async def test_a_transformer_that_returns_something_else_is_named(
    returned: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful:
        def transform_request(self, request):
            return returned

    async with client_of(new_gateway(Echo(), Forgetful())) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (500, "transform-failed")
    assert "Forgetful must return the request that it was given" in caplog.text
    assert ("is its `return` missing?" in caplog.text) == (returned is None)


@pytest.mark.spec("A2", "X-22")
@pytest.mark.parametrize(
    "smuggle",
    [
        lambda r: r.headers.__setitem__("X-A", "1\r\nX-B: 2"),
        lambda r: r.headers.__setitem__("X-A", "1\n2"),
        lambda r: r.headers.__setitem__("X-A", "1\0"),
        lambda r: r.headers.__setitem__("X-A\r\nX-B", "1"),
        lambda r: r.headers.__setitem__("X A", "1"),
        lambda r: r.headers.__setitem__("", "1"),
        lambda r: r.headers.__setitem__("X-A", "€"),
        lambda r: r.headers.__setitem__("X-A", 5),
        lambda r: r.headers.__setitem__("Transfer-Encoding", "chunked"),
        lambda r: r.headers.__setitem__("Transfer_Encoding", "chunked"),
        lambda r: r.headers.__setitem__("Content_Length", "0"),
        lambda r: r.headers.__setitem__("Connection", "close"),
        lambda r: r.headers.__setitem__("Keep-Alive", "1"),
        lambda r: r.headers.__setitem__("Upgrade", "h2c"),
        lambda r: r.headers.__setitem__("Content-Length", "0"),
        lambda r: r.headers.__delitem__("Content-Length"),
        lambda r: r.headers.__delitem__("Host"),
        lambda r: r.headers.add("Host", "other"),
        lambda r: r.headers.__setitem__("Host", "a b"),
        lambda r: r.headers.__setitem__("Host", "a,b"),
        lambda r: r.headers.__setitem__("Host", ""),
        lambda r: setattr(r, "method", "GET /x HTTP/1.1\r\n"),
        lambda r: setattr(r, "method", ""),
        lambda r: setattr(r, "method", "CONNECT"),
        lambda r: setattr(r, "path", "relative"),
        lambda r: setattr(r, "path", "/a/../b"),
        lambda r: setattr(r, "path", "/a/\0"),
        lambda r: setattr(r, "path", "/a\\..\\b"),
        lambda r: setattr(r, "raw_path", b"/a b"),
        lambda r: setattr(r, "raw_path", b"/a?b=1"),
        lambda r: setattr(r, "raw_path", b"/a\r\n"),
        lambda r: setattr(r, "raw_path", b"/%2e%2e/b"),
        lambda r: setattr(r, "query", "a b"),
        lambda r: setattr(r, "query", "a#b"),
        lambda r: setattr(r, "query", "ñ"),
        lambda r: setattr(r, "body", {"a": 1}),
        lambda r: setattr(r, "body", 5),
    ],
)
async def test_nothing_can_be_smuggled(smuggle, caplog: pytest.LogCaptureFixture) -> None:
    def transform(request: GatewayRequest) -> GatewayRequest:
        smuggle(request)
        return request

    echo = Echo()
    async with client_of(new_gateway(echo, transform)) as client:
        answer = await client.post("/api/x", content=b"abc")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (500, "transform-failed")
    assert echo.requests == []
    assert "transform" in caplog.text


@pytest.mark.spec("X-22")
async def test_a_client_gets_no_dot_segments_into_a_rewritten_path() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.path = request.path.replace("/api/", "/internal/")
        return request

    echo = Echo()
    async with client_of(new_gateway(echo, change)) as client:
        answer = await client.get("/api/x/..%2f..%2fadmin")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (400, "ambiguous-path")
    assert echo.requests == []


async def test_the_host_can_be_another_one_and_a_question_mark_in_a_path_stays_in_it() -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.headers["Host"] = "inner.example:8080"
        request.path = "/api/what?"
        return request

    async with RawUpstream() as upstream, serving(gateway_to_changed(upstream.url, change)) as port:
        await talk(port, raw_request("GET /api/x?a=1"))

    assert upstream.received[0].startswith(b"GET /api/what%3F?a=1 HTTP/1.1\r\n")
    assert values(upstream.received[0], b"host") == [b"inner.example:8080"]


def gateway_to_changed(url: str, transformer: object) -> APIGateway:
    gateway = gateway_to(url)
    gateway.add_transformers(transformer)
    return gateway


# Bodies.


@pytest.mark.spec("S-030", "A2")
@pytest.mark.parametrize("headers", [["Content-Length: 5"], ["Transfer-Encoding: chunked"]])
async def test_a_changed_body_has_its_own_length_whatever_came(headers: list[str]) -> None:
    def change(request: GatewayRequest) -> GatewayRequest:
        request.body = request.body + b" and more"
        return request

    body = b"hello" if headers[0].startswith("C") else b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    async with RawUpstream() as upstream, serving(gateway_to_changed(upstream.url, change)) as port:
        raw = await talk(port, raw_request("POST /api/x", *headers, "Expect: 100-continue", body=body))

    assert parts(raw.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))[0] == 200
    head, _, sent = upstream.received[0].partition(b"\r\n\r\n")
    assert sent == b"hello and more"
    assert values(head, b"content-length") == [b"14"]
    assert values(head, b"transfer-encoding") == values(head, b"expect") == []


@pytest.mark.spec("A2")
async def test_a_coded_body_is_shown_decoded_and_sent_as_it_came_unless_it_is_changed() -> None:
    seen: list[bytes] = []

    def look(request: GatewayRequest) -> GatewayRequest:
        seen.append(request.body)
        if request.query:
            request.body = seen[-1] + b"!"
        return request

    echo = Echo()
    packed = gzip.compress(b"plain")
    async with client_of(new_gateway(echo, look)) as client:
        await client.post("/api/x", content=packed, headers={"content-encoding": "gzip"})
        assert (echo.last["body"], echo.header("content-encoding")) == (packed, "gzip")
        await client.post("/api/x?change", content=packed, headers={"content-encoding": "gzip"})
        assert (echo.last["body"], echo.header("content-encoding")) == (b"plain!", None)
        unknown = await client.post("/api/x", content=b"?", headers={"content-encoding": "compress"})
        broken = await client.post("/api/x", content=packed[:-4], headers={"content-encoding": "gzip"})

    assert seen == [b"plain", b"plain"]
    assert [(a.status_code, a.headers["x-mesh-reason"]) for a in (unknown, broken)] == [
        (415, "transform-unreadable")
    ] * 2


@pytest.mark.spec("A2")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_the_limit_is_413_where_it_is_read_and_passes_where_it_is_not(chunked: bool) -> None:
    def look(request: GatewayRequest) -> GatewayRequest:
        if request.path.endswith("/read"):
            request.headers["X-Length"] = str(len(request.body))
        return request

    async def in_chunks():
        for _ in range(11):
            yield b"x" * 100

    def content():
        return in_chunks() if chunked else b"x" * 1100

    echo = Echo()
    gateway = new_gateway(echo, look, transform={"max_body": 1000})
    async with client_of(gateway) as client:
        refused = await client.post("/api/read", content=content())
        passed = await client.post("/api/other", content=content())
        gateway.change_route("/api/*", transform={"max_body": 2000})
        read = await client.post("/api/read", content=content())

    assert (refused.status_code, refused.headers["x-mesh-reason"]) == (413, "transform-body-limit")
    assert (passed.status_code, read.status_code) == (200, 200)
    assert [each["body"] for each in echo.requests] == [b"x" * 1100] * 2
    assert echo.header("x-length") == "1100"


@pytest.mark.spec("A2")
async def test_a_decompression_bomb_is_a_body_above_the_limit() -> None:
    async with client_of(new_gateway(Echo(), RequestTransformer())) as client:
        bomb = gzip.compress(b"\0" * 50_000_000)
        answer = await client.post("/api/v1/legacy", content=bomb, headers={"content-encoding": "gzip"})

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (413, "transform-body-limit")


async def test_a_body_can_be_read_when_it_is_wanted() -> None:
    class Sometimes:
        buffer_body = False

        async def transform_request(self, request):
            if request.headers.get("X-Read"):
                request.headers["X-Length"] = str(len(await request.read()))
            return request

    echo = Echo()
    async with client_of(new_gateway(echo, Sometimes())) as client:
        await client.post("/api/x", content=b"hello", headers={"x-read": "1"})

    assert (echo.header("x-length"), echo.last["body"]) == ("5", b"hello")


async def test_reading_a_body_that_nobody_expected_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    class Hidden:
        def transform_request(self, request):
            request.headers["X"] = str(len(getattr(request, "bo" + "dy")))
            return request

    async with client_of(new_gateway(Echo(), Hidden())) as client:
        answer = await client.post("/api/x", content=b"hello")

    assert answer.status_code == 500
    assert "set `buffer_body = True` on it, or use `await request.read()`" in caplog.text


# What is given.


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"request_transformer": RequestTransformer}, "is a class; give an object: RequestTransformer()"),
        ({"request_transformer": object()}, "has no transform_request and is no function"),
        ({"response_transformer": RequestTransformer()}, "has no transform_response and is no function"),
        ({"request_transformer": lambda: None}, "can't be called with one request"),
        ({"response_transformer": lambda a, b: None}, "can't be called with one response"),
        ({}, "neither a request_transformer nor a response_transformer"),
    ],
)
def test_what_can_not_be_called_is_refused_at_once(given: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        APIGateway().add_transformers(**given)  # type: ignore[arg-type]
    assert text in str(refused.value)
    logging.getLogger("fastapi_mesh").debug("kept quiet")
