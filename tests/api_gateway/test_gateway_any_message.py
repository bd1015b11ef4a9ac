"""Whatever a client sends arrives as it was sent, less the documented hop-by-hop fields; and so do answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.api_gateway.gateway_support import RawUpstream, gateway_to, serving

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22", "X-23", "S-002")]

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
HOPS = frozenset(
    {
        *("connection", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""What docs/how-to/forwarding.md names as hop-by-hop."""
RESERVED = HOPS | {
    *("host", "content-length", "expect", "via", "forwarded", "date", "server", "x-request-id"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto"),
}
"""Fields that frame a message, or that a gateway writes itself; the other tests are about them."""

names = st.one_of(
    st.sampled_from(
        ["Cookie", "Set-Cookie", "Accept", "Range", "If-None-Match", "X-A", "x-a", "ETag", "Authorization"]
    ),
    st.text(TOKEN, min_size=1, max_size=24),
).filter(lambda name: name.lower() not in RESERVED and not _is_odd(name))
values = st.one_of(
    st.sampled_from(["", "a, b", 'W/"x"', "a=1; Path=/; HttpOnly", "caf\xe9", "gzip;q=1.0, *;q=0", "a\tb", "  "]),
    st.text(st.characters(max_codepoint=255, blacklist_categories=["Cc"]), max_size=60),
).map(str.strip)
fields = st.lists(st.tuples(names, values), max_size=12)
HOP_LINES = (
    ("TE", "trailers"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "close"),
    ("Connection", "X-Gone"),
    ("X-Gone", "1"),
)
hops = st.lists(st.sampled_from(HOP_LINES), unique=True)


class Long(bytes):
    """A part of a body that is too long to be shown."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


bodies = st.one_of(st.none(), st.lists(st.binary(max_size=300), max_size=5), st.just([Long(b"x" * 70_000), b"y"]))
segments = st.text(TOKEN.replace("#", "") + "@:=,()", min_size=1, max_size=12).filter(lambda part: set(part) - {"."})
escaped = st.sampled_from(["%20", "%C3%A9", "%41", "%7E", "x%2By"])
targets = st.tuples(
    st.lists(st.one_of(segments, escaped), min_size=1, max_size=4).map("/".join),
    st.one_of(st.just(""), st.text(TOKEN.replace("#", "") + "&=%/?:@", min_size=1, max_size=30).map("?".__add__)),
).map(lambda parts: "/api/" + "".join(parts).replace("%", "%25"))


def _is_odd(name: str) -> bool:
    """A name that is refused (X-22: look-alikes), or is an own field of the mesh."""
    lowered = name.lower().replace("_", "-")
    return ("_" in name and lowered in RESERVED) or lowered.startswith("x-mesh-")


@dataclass(frozen=True)
class Sample:
    """One request and the answer to it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    hops: list[tuple[str, str]]
    body: list[bytes] | None
    chunked: bool
    status: int
    answer_headers: list[tuple[str, str]]
    answer: list[bytes] | None
    answer_chunked: bool

    def lines(self, fields: list[tuple[str, str]]) -> list[bytes]:
        return [f"{name}: {value}".encode("latin-1") for name, value in fields]

    def request(self) -> bytes:
        head = [f"{self.method} {self.target} HTTP/1.1".encode(), b"Host: gw", *self.lines(self.hops + self.headers)]
        return _message([*head, b"Connection: close"], self.body, chunked=self.chunked)

    def response(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} Any".encode(), *self.lines(self.answer_headers)]
        if self.status in (204, 304) or self.method == "HEAD":
            return b"\r\n".join([*head, b"", b""])
        return _message(head, self.answer or [], chunked=self.answer_chunked)


def _message(head: list[bytes], body: list[bytes] | None, *, chunked: bool) -> bytes:
    if body is None:
        return b"\r\n".join([*head, b"", b""])
    if chunked:
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in body if part)
        return b"\r\n".join([*head, b"Transfer-Encoding: chunked", b"", data + b"0\r\n\r\n"])
    return b"\r\n".join([*head, b"Content-Length: %d" % sum(map(len, body)), b"", b"".join(body)])


samples = st.builds(
    Sample,
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    target=targets,
    headers=fields,
    hops=hops,
    body=bodies,
    chunked=st.booleans(),
    status=st.sampled_from([200, 201, 204, 206, 301, 304, 400, 404, 418, 501, 599]),  # none that opens a circuit
    answer_headers=fields,
    answer=bodies,
    answer_chunked=st.booleans(),
)


def _read(raw: bytes, *, is_head: bool = False) -> tuple[bytes, list[tuple[str, str]], bytes]:
    """First line, header fields and decoded body."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [
        (name.decode(), value.decode("latin-1").strip(" \t"))
        for name, _, value in (line.partition(b":") for line in lines)
    ]
    if not is_head and ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in headers]:
        data = b""
        while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
            start = rest.index(b"\r\n") + 2
            data, rest = data + rest[start : start + size], rest[start + size + 2 :]
        return first, headers, data
    return first, headers, rest


def _expected(headers: list[tuple[str, str]], gone: set[str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers if name.lower() not in gone]


async def _check(sample: Sample, upstream: RawUpstream, port: int) -> None:
    upstream.received.clear()
    upstream.answer = sample.response()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sample.request())
    async with asyncio.timeout(10):
        raw = await reader.read()
    writer.close()
    gone = {"x-gone"} if ("Connection", "X-Gone") in sample.hops else set()
    left = [each for each in sample.hops if each[0] == "X-Gone" and not gone]

    first, headers, body = _read(upstream.received[0])
    assert len(upstream.received) == 1
    assert first == f"{sample.method} {sample.target} HTTP/1.1".encode()
    added = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "via", "x-request-id", "host"}
    framing = {"content-length", "transfer-encoding", "x-mesh-timeout-ms", "x-mesh-timeout-covers", "x-mesh-attempt"}
    assert _expected(headers, added | framing) == _expected(left + sample.headers, gone)
    assert body == b"".join(sample.body or [])
    assert HOPS & {name.lower() for name, _ in headers} <= {"transfer-encoding"}

    first, headers, body = _read(raw, is_head=sample.method == "HEAD")
    assert int(first.split()[1]) == sample.status, raw[:500]
    own = {
        "date",
        "server",
        "via",
        "x-request-id",
        "x-mesh-attempts",
        "connection",
        "content-length",
        "transfer-encoding",
    }
    assert _expected(headers, own) == _expected(sample.answer_headers, set())
    content = b"" if sample.method == "HEAD" or sample.status in (204, 304) else b"".join(sample.answer or [])
    assert body == content


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_any_message_arrives_as_it_was_sent(http: str) -> None:
    await _check_many(http, 75)


@pytest.mark.soak
@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_thousands_of_messages_arrive_as_they_were_sent(http: str) -> None:
    await _check_many(http, 1000)


async def _check_many(http: str, count: int) -> None:
    """Draws in a thread, as hypothesis is synchronous; the servers stay the same for all examples."""
    loop = asyncio.get_running_loop()
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url, max_retries=0), http) as port:

        @settings(
            max_examples=count,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(samples)
        def check(sample: Sample) -> None:
            asyncio.run_coroutine_threadsafe(_check(sample, upstream, port), loop).result(20)

        await asyncio.to_thread(check)
