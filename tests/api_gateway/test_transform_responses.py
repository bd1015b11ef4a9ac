"""What transformers can do to answers, and what they can't; and that bodies stream where nobody reads them."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from datetime import timedelta

import brotli
import pytest
from fastapi import HTTPException

from fastapi_mesh.api_gateway.transform import GatewayRequest, GatewayResponse, ResponseTime, XMLToJSON
from fastapi_mesh.api_gateway.transform.timing import Elapsed
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, parts, request, serving, talk, values
from tests.api_gateway.transform_support import Echo, client_of, new_gateway

pytestmark = pytest.mark.anyio

XML = b"<user><name>Ana</name></user>"


class ResponseTransformer:
    """The description's, word for word."""

    async def transform_response(self, response):
        # Agregar headers de respuesta
        response.headers["X-Gateway-Response-Time"] = str(response.elapsed)

        # Transformar formato de respuesta
        if response.headers.get("Content-Type") == "application/xml":
            response.body = await self.xml_to_json(response.body)
            response.headers["Content-Type"] = "application/json"

        return response

    async def xml_to_json(self, body):
        import xmltodict

        return json.dumps(xmltodict.parse(body))


@pytest.mark.spec("S-031", "S-032", "S-033", "S-034", "A2", "B17", "X-32")
async def test_the_descriptions_response_transformer_works_as_it_is_written() -> None:
    echo = Echo(XML, {"content-type": "application/xml", "etag": '"v1"', "content-digest": "sha-256=:x:"})
    async with client_of(new_gateway(echo, None, ResponseTransformer())) as client:
        answer = await client.get("/api/users/1")

    assert answer.json() == {"user": {"name": "Ana"}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert 0 <= float(answer.headers["x-gateway-response-time"]) < 5, "seconds"
    assert "etag" not in answer.headers
    assert "content-digest" not in answer.headers


@pytest.mark.spec("S-033", "X-32")
async def test_other_answers_pass_the_descriptions_transformer_as_they_came() -> None:
    packed = gzip.compress(b"text")
    echo = Echo(packed, {"content-type": "text/plain", "content-encoding": "gzip", "etag": '"v1"'})
    gateway = new_gateway(echo, None, ResponseTransformer())
    async with client_of(gateway) as client, client.stream("GET", "/api/x") as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])

    assert raw == packed
    assert (answer.headers["etag"], answer.headers["content-encoding"]) == ('"v1"', "gzip")


@pytest.mark.spec("B17")
def test_elapsed_is_written_in_seconds_with_as_many_places_as_asked_for() -> None:
    elapsed = Elapsed(milliseconds=1250)

    assert (str(elapsed), f"{elapsed}", f"{elapsed:.3f}") == ("1.250000", "1.250000", "1.250")


@pytest.mark.spec("B17")
async def test_elapsed_is_a_timedelta_and_a_transformer_of_ours_tells_it() -> None:
    seen: list[timedelta] = []

    def look(response: GatewayResponse) -> GatewayResponse:
        seen.append(response.elapsed)
        return response

    gateway = new_gateway(Echo(), None, look)
    gateway.add_transformers(response_transformer=ResponseTime(server_timing=True))
    async with client_of(gateway) as client:
        answer = await client.get("/api/x")

    assert isinstance(seen[0], timedelta)
    assert float(answer.headers["x-gateway-response-time"]) == pytest.approx(seen[0].total_seconds(), abs=1e-6)
    assert answer.headers["server-timing"].startswith("gateway;dur=")


@pytest.mark.spec("S-031", "A2")
async def test_status_headers_and_body_can_be_set_and_the_request_is_there() -> None:
    def change(response: GatewayResponse) -> GatewayResponse:
        assert response.request.headers["X-A"] == "1"
        assert (response.status, response.status_code) == (200, 200)
        response.status = 201
        response.headers["X-Path"] = response.request.path
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        response.headers["X-Request-ID"] = "mine"
        response.body = "new"
        return response

    async with client_of(new_gateway(Echo(), None, change)) as client:
        answer = await client.get("/api/x", headers={"x-a": "1"})

    assert (answer.status_code, answer.text, answer.headers["x-path"]) == (201, "new", "/api/x")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert len(answer.headers.get_list("x-request-id")) == 1, "the gateway writes that one"


async def test_an_answer_can_be_replaced_by_another() -> None:
    def replace(response: GatewayResponse) -> GatewayResponse:
        return GatewayResponse(503, {"Retry-After": "5"}, b"later")

    async with client_of(new_gateway(Echo(b"x" * 100_000), None, replace)) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (503, b"later", "5")
    assert "content-type" not in answer.headers


@pytest.mark.spec("A2")
@pytest.mark.parametrize(
    ("pack", "coding"),
    [
        (gzip.compress, "gzip"),
        (zlib.compress, "deflate"),
        (lambda data: zlib.compress(data)[2:-4], "deflate"),
        (brotli.compress, "br"),
        (lambda data: gzip.compress(brotli.compress(data)), "br, gzip"),
        (lambda data: data, "identity"),
    ],
)
async def test_a_coded_answer_is_decoded_before_it_is_changed(pack, coding: str) -> None:
    echo = Echo(pack(XML * 1), {"content-type": "application/xml", "content-encoding": coding})
    async with client_of(new_gateway(echo, None, ResponseTransformer())) as client:
        answer = await client.get("/api/x")

    assert answer.json() == {"user": {"name": "Ana"}}
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(XML, mtime=0)[:-3], "gzip"),
        (brotli.compress(XML)[:-3], "br"),
        (b"\xff\xff", "br"),
        (b"x", "zstd"),
    ],
    ids=["no gzip", "gzip cut off", "br cut off", "no br", "unknown"],
)
async def test_an_answer_that_can_not_be_decoded_is_502_where_it_is_read(body: bytes, coding: str) -> None:
    echo = Echo(body, {"content-type": "application/xml", "content-encoding": coding})
    async with client_of(new_gateway(echo, None, ResponseTransformer())) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (502, "transform-unreadable")


@pytest.mark.parametrize("pack", [gzip.compress, brotli.compress, zlib.compress])
async def test_a_bomb_is_stopped_at_the_limit(pack) -> None:
    coding = {gzip.compress: "gzip", brotli.compress: "br", zlib.compress: "deflate"}[pack]
    echo = Echo(pack(b"\0" * 20_000_000), {"content-type": "application/xml", "content-encoding": coding})
    async with client_of(new_gateway(echo, None, ResponseTransformer())) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (502, "transform-body-limit")


async def test_a_service_is_asked_for_what_can_be_read_whole() -> None:
    echo = Echo()
    async with client_of(new_gateway(echo, None, ResponseTransformer())) as client:
        headers = {"accept-encoding": "zstd, gzip;q=0.5, br, *;q=0.1", "range": "bytes=0-1", "if-range": '"x"'}
        await client.get("/api/x", headers=headers)

    assert echo.header("accept-encoding") == "gzip;q=0.5, br"
    assert echo.header("range") is echo.header("if-range") is None


@pytest.mark.spec("S-033")
async def test_a_head_request_gets_the_headers_of_the_transformed_answer() -> None:
    echo = Echo(XML, {"content-type": "application/xml"})
    async with RawUpstream(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: 29\r\n\r\n" + XML
    ) as upstream:
        gateway = gateway_to(upstream.url)
        gateway.add_transformers(None, ResponseTransformer())
        async with serving(gateway) as port:
            head = await talk(port, request("HEAD /api/x"))
            get = await talk(port, request("GET /api/x"))

    assert parts(head)[2] == b""
    assert values(head, b"content-length") == values(get, b"content-length") == [b"%d" % len(parts(get)[2])]
    assert values(head, b"content-type") == [b"application/json"]
    assert [line.split()[0] for line in upstream.received] == [b"GET", b"GET"]
    assert echo.requests == []


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_content_has_an_empty_body_and_no_length(status: int) -> None:
    def change(response: GatewayResponse) -> GatewayResponse:
        response.headers["X-Body"] = repr(response.body)
        return response

    async with RawUpstream(b'HTTP/1.1 %d X\r\netag: "a"\r\n\r\n' % status) as upstream:
        gateway = gateway_to(upstream.url)
        gateway.add_transformers(None, change)
        async with serving(gateway) as port:
            raw = await talk(port, request("GET /api/x"))

    assert parts(raw)[0] == status
    assert values(raw, b"x-body") == [b"b''"]
    assert values(raw, b"etag") == [b'"a"']
    assert values(raw, b"content-length") == []


async def test_a_status_without_content_ends_the_body() -> None:
    def drop(response: GatewayResponse) -> GatewayResponse:
        response.status = 204
        return response

    async with client_of(new_gateway(Echo(b"x" * 300_000), None, drop)) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers


@pytest.mark.spec("A2")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.headers.__setitem__("X-A", "1\r\nSet-Cookie: x=1"),
        lambda r: r.headers.__setitem__("Connection", "close"),
        lambda r: r.headers.__setitem__("Content-Length", "1"),
        lambda r: r.headers.__setitem__("Transfer-Encoding", "chunked"),
        lambda r: setattr(r, "status", 101),
        lambda r: setattr(r, "status", 99),
        lambda r: setattr(r, "status", 600),
        lambda r: setattr(r, "status", "200"),
        lambda r: setattr(r, "status", True),
        lambda r: setattr(r, "body", {"a": 1}),
        lambda r: 1 / 0,
    ],
)
async def test_an_answer_that_can_not_be_sent_is_a_failure_of_the_gateway(spoil, caplog) -> None:
    def change(response: GatewayResponse) -> GatewayResponse:
        spoil(response)
        return response

    closed = asyncio.Event()

    async def endless(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        await reader.read()
        closed.set()

    async with RawUpstream(endless) as upstream:
        gateway = gateway_to(upstream.url)
        gateway.add_transformers(None, change)
        async with serving(gateway) as port:
            raw = await talk(port, request("GET /api/x"))
            async with asyncio.timeout(20):
                await closed.wait()

    assert parts(raw)[0] == 500
    assert values(raw, b"x-mesh-reason") == [b"transform-failed"]
    assert "transformer" in caplog.text


@pytest.mark.parametrize("returned", [None, "text", GatewayRequest()])
async def test_an_answer_transformer_that_returns_something_else_is_named(returned: object, caplog) -> None:
    async with client_of(new_gateway(Echo(), None, lambda response: returned)) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (500, "transform-failed")
    assert "must return a GatewayResponse" in caplog.text


async def test_an_answer_transformer_can_refuse() -> None:
    def refuse(response: GatewayResponse) -> GatewayResponse:
        raise HTTPException(451, "not here")

    async with client_of(new_gateway(Echo(), None, refuse)) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.json()["detail"]) == (451, "not here")


# Streams.


class HeadersOnly:
    """Touches no body, and says nothing of bodies."""

    async def transform_request(self, request):
        request.headers["X-Seen"] = "1"
        return request

    async def transform_response(self, response):
        response.headers["X-Seen"] = "1"
        return response


@pytest.mark.spec("X-32", "X-23")
@pytest.mark.parametrize("transformer", [HeadersOnly(), ResponseTransformer()])
async def test_100_mib_stream_through_a_transformer_that_does_not_read_them(transformer: object) -> None:
    """Also through one that might: it would have been refused, had it read what is too long."""
    size, part = 100 * 1024 * 1024, b"x" * 65536
    sent = 0

    async def send(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // len(part)):
            writer.write(part)
            await writer.drain()
            sent += len(part)
        return True

    received = 0
    async with RawUpstream(send) as upstream:
        gateway = gateway_to(upstream.url)
        has_request = hasattr(transformer, "transform_request")
        gateway.add_transformers(transformer if has_request else None, transformer)
        async with serving(gateway) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET /api/x"))
            await reader.readuntil(b"\r\n\r\n")
            ahead = sent
            while data := await reader.read(1 << 20):
                received += len(data)
            writer.close()
            await writer.wait_closed()

    assert received == size
    assert ahead < 16 * 1024 * 1024, "the head came while the body was still at the service"


@pytest.mark.spec("X-32", "X-23")
@pytest.mark.parametrize("transformer", [HeadersOnly(), ResponseTransformer()])
async def test_events_arrive_one_by_one(transformer: object) -> None:
    go_on = asyncio.Event()

    async def send(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return True

    async with RawUpstream(send) as upstream:
        gateway = gateway_to(upstream.url)
        gateway.add_transformers(None, transformer)
        async with serving(gateway) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET /api/x"))
            async with asyncio.timeout(20):
                await reader.readuntil(b"data: 1\n\n")
                go_on.set()
                await reader.readuntil(b"data: 2\n\n")
            writer.close()
            await writer.wait_closed()


async def test_an_event_stream_that_is_read_is_refused() -> None:
    class Eager:
        buffer_body = True

        def transform_response(self, response):
            response.headers["X"] = str(len(response.body))
            return response

    echo = Echo(b"data: 1\n\n", {"content-type": "text/event-stream"})
    async with client_of(new_gateway(echo, None, Eager())) as client:
        answer = await client.get("/api/x")

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (502, "transform-unreadable")


@pytest.mark.spec("A2")
async def test_an_answer_of_unknown_length_above_the_limit_passes_where_it_is_not_read() -> None:
    body = b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(50)) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"

    async def answer(reader, writer):
        kind = b"application/xml" if b"/xml" in upstream.received[-1] else b"text/plain"
        writer.write(head % kind + body)
        await writer.drain()
        return True

    async with RawUpstream(answer) as upstream:
        gateway = gateway_to(upstream.url, transform={"max_body": 10_000})
        gateway.add_transformers(None, ResponseTransformer())
        async with serving(gateway) as port:
            passed = await talk(port, request("GET /api/text"))
            refused = await talk(port, request("GET /api/xml"))

    assert passed.count(b"x" * 100) == 500
    assert (parts(refused)[0], values(refused, b"x-mesh-reason")) == (502, [b"transform-body-limit"])


@pytest.mark.spec("A2")
async def test_a_service_that_dies_while_its_answer_is_read_is_a_502_and_not_half_an_answer() -> None:
    async def die(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: 1000\r\n\r\n<half")
        await writer.drain()

    async with RawUpstream(die) as upstream:
        gateway = gateway_to(upstream.url, max_retries=0)
        gateway.add_transformers(None, XMLToJSON())
        async with serving(gateway) as port:
            raw = await talk(port, request("POST /api/x", "Content-Length: 0"))

    assert (parts(raw)[0], values(raw, b"x-mesh-reason")) == (502, [b"connection-failed"])


async def test_a_client_that_leaves_while_a_transformer_works_leaves_nothing_behind() -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    class Slow:
        async def transform_response(self, response):
            entered.set()
            try:
                await asyncio.sleep(30)
            finally:
                left.set()

    async with RawUpstream() as upstream:
        gateway = gateway_to(upstream.url)
        gateway.add_transformers(None, Slow())
        async with serving(gateway) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET /api/x"))
            async with asyncio.timeout(20):
                await entered.wait()
                writer.close()
                await writer.wait_closed()
                await left.wait()
            assert gateway.statistics()["disconnected"] == 1
