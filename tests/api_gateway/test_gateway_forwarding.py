"""Forwarding is byte-exact: what the upstream's socket got, through each server that may stand in front."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.api_gateway.gateway_support import (
    OK,
    SERVERS,
    RawUpstream,
    gateway_to,
    parts,
    request,
    serving,
    talk,
    values,
)

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22")]


@pytest.fixture(params=SERVERS)
def http(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_a_request_arrives_exactly_as_it_should(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(
            port,
            request(
                "GET /api/a%2Fb/%7Eu/x;y=1?q=%20x&r=a+b&&s",
                "X-B: 1",
                "Accept: */*",
                "X-A: caf\xe9",
                "X-B: 2",
                "Cookie: a=1",
                "Cookie: b=2",
                "Accept-Encoding: gzip, br",
            ),
        )

    [received] = upstream.received
    id_line = b"x-request-id: " + values(received, b"x-request-id")[0]
    timeout_line = b"x-mesh-timeout-ms: " + values(received, b"x-mesh-timeout-ms")[0]
    assert received.split(b"\r\n") == [
        b"GET /api/a%2Fb/%7Eu/x;y=1?q=%20x&r=a+b&&s HTTP/1.1",
        b"host: gw",
        b"x-b: 1",
        b"accept: */*",
        b"x-a: caf\xe9",
        b"x-b: 2",
        b"cookie: a=1",
        b"cookie: b=2",
        b"accept-encoding: gzip, br",
        b"x-forwarded-for: 127.0.0.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: gw",
        b'forwarded: for=127.0.0.1;host="gw";proto=http',
        b"via: 1.1 fastapi-mesh",
        id_line,
        timeout_line,
        b"x-mesh-timeout-covers: head",
        b"",
        b"",
    ]


async def test_the_answer_comes_back_exactly_as_it_should(http: str) -> None:
    answer = (
        b"HTTP/1.1 404 Whatever\r\nSet-Cookie: a=1; Path=/\r\nX-Two: 2\r\nContent-Length: 5\r\n"
        b"Content-Encoding: gzip\r\nSet-Cookie: b=2\r\nConnection: X-Internal\r\nX-Internal: no\r\n"
        b"Keep-Alive: timeout=9\r\n\r\n"
        b"\x1f\x8b\x00\xff\n"
    )
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        status, headers, body = parts(await talk(port, request("GET /api/x")))

    own = (b"date", b"server", b"x-request-id", b"x-mesh-attempts", b"connection")
    assert status == 404
    assert [header for header in headers if header[0] not in own] == [
        (b"set-cookie", b"a=1; Path=/"),
        (b"x-two", b"2"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"b=2"),
        (b"via", b"1.1 fastapi-mesh"),
    ]
    assert body == b"\x1f\x8b\x00\xff\n"
    assert len({name for name, _ in headers}) == len(headers) - 1, "nothing twice but set-cookie"


async def test_of_two_gateways_in_a_row_the_outer_one_says_how_often_it_tried(http: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Mesh-Attempts: 7\r\nContent-Length: 0\r\nConnection: x-mesh-attempts\r\n\r\n"
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        _, headers, _ = parts(await talk(port, request("GET /api/x")))

    assert [value for name, value in headers if name == b"x-mesh-attempts"] == [b"1"]


async def test_a_dot_segment_goes_on_where_it_can_do_no_harm(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("GET /api/a%2Fb/../c//d?x"))

    assert upstream.received[0].startswith(b"GET /api/a%2Fb/../c//d?x HTTP/1.1\r\n")


async def test_a_path_that_escapes_its_route_never_reaches_a_service(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        for path in ("/api/../admin", "/api/%2e%2e/admin", "/api/..%2fadmin", "/api/..\\admin", "/api/x%00y"):
            status, headers, body = parts(await talk(port, request(f"GET {path}")))
            assert (status, dict(headers)[b"x-mesh-reason"]) == (400, b"ambiguous-path"), path
            assert json.loads(body)["reason"] == "ambiguous-path"

    assert upstream.received == []


async def test_an_absolute_form_target_becomes_an_origin_form(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("GET http://gw/api/p%2Fq?x=%20y"))

    assert upstream.received[0].startswith(b"GET /api/p%2Fq?x=%20y HTTP/1.1\r\nhost: gw\r\n")


async def test_options_for_the_whole_server_is_answered_by_the_gateway(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        status, _, body = parts(await talk(port, request("OPTIONS *")))

    assert (status, body, upstream.received) == (204, b"", [])


async def test_a_short_body_arrives_with_its_length(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("POST /api/x", "Content-Type: x/y", "Content-Length: 5", body=b"a\r\n\x00b"))

    [received] = upstream.received
    assert received.endswith(b"\r\n\r\na\r\n\x00b")
    assert values(received, b"content-length") == [b"5"]
    assert values(received, b"transfer-encoding") == []


async def test_a_post_without_a_body_says_that_its_length_is_zero(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("POST /api/x", "Content-Length: 0"))
        await talk(port, request("DELETE /api/x"))

    assert values(upstream.received[0], b"content-length") == [b"0"]
    assert values(upstream.received[1], b"content-length") == []


async def test_a_long_body_keeps_its_length_and_is_not_chunked(http: str) -> None:
    body = bytes(range(256)) * 1024
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("PUT /api/x", f"Content-Length: {len(body)}", body=body))

    [received] = upstream.received
    assert received.endswith(b"\r\n\r\n" + body)
    assert values(received, b"content-length") == [str(len(body)).encode()]
    assert values(received, b"transfer-encoding") == []


async def test_a_chunked_body_goes_on_chunked_and_its_trailers_do_not(http: str) -> None:
    payload = request("POST /api/x", "Transfer-Encoding: chunked", "Trailer: X-Sum")
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, payload + b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-Sum: 1\r\n\r\n")

    head, _, body = upstream.received[0].partition(b"\r\n\r\n")
    data = b""
    while size := int(body.split(b"\r\n", 1)[0], 16):
        start = body.index(b"\r\n") + 2
        data, body = data + body[start : start + size], body[start + size + 2 :]
    assert data == b"abcdefg"
    assert body == b"0\r\n\r\n"
    assert b"transfer-encoding: chunked" in head.split(b"\r\n")
    assert b"trailer" not in head.lower()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_content_ends_with_its_head(http: str, status: str) -> None:
    answer = (
        f'HTTP/1.1 {status}\r\nETag: "x"\r\n{"Content-Length: 42" if status[0] == "3" else "X: y"}\r\n\r\n'.encode()
    )
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        code, headers, body = parts(await talk(port, request("GET /api/x")))

    assert (code, body) == (int(status[:3]), b"")
    assert (b"etag", b'"x"') in headers
    assert b"transfer-encoding" not in dict(headers)


async def test_head_has_the_length_of_get_and_no_body(http: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4242\r\n\r\n"
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        status, headers, body = parts(await talk(port, request("HEAD /api/x")))

    assert (status, dict(headers)[b"content-length"], body) == (200, b"4242", b"")
    assert upstream.received[0].startswith(b"HEAD /api/x HTTP/1.1\r\n")


async def test_interim_answers_are_consumed(http: str) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        status, headers, body = parts(await talk(port, request("GET /api/x")))

    assert (status, body) == (200, b"ok")
    assert b"link" not in dict(headers)


async def test_hop_by_hop_fields_of_a_request_end_at_the_gateway(http: str) -> None:
    hops = ["TE: trailers", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive"]
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, request("GET /api/x", "Connection: X-Secret", "X-Secret: 1", *hops, "X-Kept: 1"))

    names = [line.split(b":")[0] for line in upstream.received[0].split(b"\r\n")[1:]]
    gone = {b"connection", b"x-secret", b"te", b"keep-alive", b"proxy-connection"}
    assert not gone & set(names)
    assert b"x-kept" in names


async def test_an_upgrade_is_not_passed_on(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        payload = request("GET /api/x", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: x")
        await talk(port, payload)

    assert b"upgrade" not in upstream.received[0].lower()
    assert b"http2-settings" not in upstream.received[0].lower()


SMUGGLING = {
    "both lengths": ("POST", ["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\nGET /api/smuggled"),
    "both lengths, turned": (
        "POST",
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        b"0\r\n\r\nGET /api/smuggled",
    ),
    "two lengths": ("POST", ["Content-Length: 0", "Content-Length: 25"], b"GET /api/smuggled HTTP/1.1"),
    "signed length": ("POST", ["Content-Length: +5"], b"12345"),
    "no number": ("POST", ["Content-Length: 5x"], b"12345"),
    "list of codings": ("POST", ["Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
    "unknown coding": ("POST", ["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
    "coding twice": ("POST", ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], b"0\r\n\r\n"),
    "underscore": ("POST", ["Transfer_Encoding: chunked", "Content-Length: 5"], b"0\r\n\r\n"),
    "underscore length": ("GET", ["Content_Length: 5"], b""),
    "space before colon": ("POST", ["Transfer-Encoding : chunked", "Content-Length: 5"], b"0\r\n\r\n"),
    "tab before colon": ("POST", ["Transfer-Encoding\t: chunked", "Content-Length: 5"], b"0\r\n\r\n"),
    "vertical tab": ("POST", ["Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n"),
    "two hosts": ("GET", ["Host: other"], b""),
    "host list": ("GET", ["X: y"], b""),
    "control byte": ("GET", ["X: a\x01b"], b""),
}


async def test_an_ambiguous_request_is_refused_and_nothing_reaches_a_service(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        for case, (method, headers, body) in SMUGGLING.items():
            host = "gw, other" if case == "host list" else "gw"
            raw = await talk(port, request(f"{method} /api/x", *headers, body=body, host=host))
            assert raw.count(b"HTTP/1.1 ") == 1, case
            assert parts(raw)[0] == 400, case

    assert upstream.received == []


async def test_a_host_that_is_none_is_refused(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        for host in (None, "", "user@gw", "gw/x", "gw:x", "gw evil"):
            raw = await talk(port, request("GET /api/x", host=host))
            assert parts(raw)[0] == 400, host

    assert upstream.received == []


async def test_a_refused_request_ends_its_connection_so_that_no_rest_of_it_is_taken_for_another(http: str) -> None:
    smuggled = b"POST /api/x HTTP/1.1\r\nHost: gw\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        raw = await talk(port, smuggled + request("GET /api/next"))

    assert parts(raw)[0] == 400
    assert raw.count(b"HTTP/1.1 ") == 1
    assert upstream.received == []


async def test_pipelined_requests_are_answered_in_order(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        first = b"GET /api/1 HTTP/1.1\r\nHost: gw\r\n\r\n"
        raw = await talk(port, first + request("GET /api/2"))

    assert raw.count(b"HTTP/1.1 200") == 2
    assert [received.split()[1] for received in upstream.received] == [b"/api/1", b"/api/2"]


@pytest.mark.parametrize("http", ["h11"])
async def test_a_folded_header_goes_on_as_one_line(http: str) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url), http) as port:
        await talk(port, b"GET /api/x HTTP/1.1\r\nHost: gw\r\nX: a\r\n b\r\nConnection: close\r\n\r\n")

    assert values(upstream.received[0], b"x") == [b"a b"]


async def test_cookies_of_one_client_never_reach_another(http: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nset-cookie: session=secret\r\ncontent-length: 2\r\n\r\nok"
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url), http) as port:
        for _ in range(2):
            await talk(port, request("GET /api/x"))

    assert all(b"cookie" not in received.lower() for received in upstream.received)


async def test_an_answer_that_no_server_could_send_is_502(http: str) -> None:
    odd = RawUpstream(b"HTTP/1.1 600 Odd\r\ncontent-length: 2\r\n\r\nok")
    async with odd as upstream, serving(gateway_to(upstream.url, max_retries=0), http) as port:
        status, headers, body = parts(await talk(port, request("GET /api/x")))

    assert (status, dict(headers)[b"x-mesh-reason"]) == (502, b"invalid-response")
    assert upstream.url.removeprefix("http://").encode() not in body


@pytest.mark.parametrize("expects", ["100-continue", "100-Continue"])
async def test_a_client_that_expects_100_gets_it_when_the_service_asks_for_the_body(http: str, expects: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        upstream.received.append(await reader.readexactly(5))
        writer.write(OK)
        await writer.drain()

    async with RawUpstream(answer, reads_body=False) as upstream, serving(gateway_to(upstream.url), http) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST /api/x", "Content-Length: 5", f"Expect: {expects}"))
        async with asyncio.timeout(10):
            interim = await reader.readuntil(b"\r\n\r\n")
            asked = len(upstream.received)
            writer.write(b"hello")
            raw = await reader.read()
        writer.close()

    assert interim.startswith(b"HTTP/1.1 100 ")
    assert asked == 1, "the service has the head before the client is asked for the body"
    assert values(upstream.received[0], b"expect") == [expects.encode()]
    assert upstream.received[1] == b"hello"
    assert parts(raw)[0] == 200


async def test_a_service_that_refuses_an_expecting_client_never_sees_the_body(http: str) -> None:
    answer = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n"
    async with RawUpstream(answer, reads_body=False) as upstream, serving(gateway_to(upstream.url), http) as port:
        raw = await talk(port, request("POST /api/x", "Content-Length: 5", "Expect: 100-continue"), until_close=False)

    assert parts(raw)[0] == 417


@pytest.mark.parametrize("path", ["/api/x", "/api/%2e%2e/y", "/api/only-get", "/nowhere", "/health"])
async def test_a_client_that_was_not_asked_for_its_body_has_its_connection_closed(http: str, path: str) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
    routes: list[dict[str, object]] = [
        {"path": "/api/*", "service": "up"},
        {"path": "/api/only-get", "service": "up", "methods": ["GET"]},
    ]
    expecting = request(f"POST {path}", "Content-Length: 60", "Expect: 100-continue").replace(
        b"Connection: close\r\n", b""
    )
    async with (
        RawUpstream(answer, reads_body=False) as upstream,
        serving(gateway_to(upstream.url, routes), http) as port,
    ):
        raw = await talk(port, expecting)

    assert 400 <= parts(raw)[0] < 500, "its next request would be taken for the body that it held back"
    assert values(raw, b"connection") == [b"close"]
