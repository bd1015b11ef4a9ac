"""How one connection reads answers: every cut, every kind of body, and everything that is not valid HTTP."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.core.events import TrailersDropped
from fastapi_mesh.core.message import Header
from fastapi_mesh.exceptions import MeshError, UpstreamConnectionError, UpstreamProtocolError
from tests.wire.h1_support import Line, drive, read_all, woken


@pytest.fixture
def line() -> Line:
    return Line()


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Y: z\r\n\r\n"
CHUNKED_HEADERS = [(b"Transfer-Encoding", b"chunked"), (b"X-Y", b"z")]

# Name: request method, bytes on the wire, status, headers, body, connection kept.
VALID: dict[str, tuple[bytes, bytes, int, list[Header], bytes, bool]] = {
    "length": (
        b"GET",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n\r\nhello",
        200,
        [(b"Content-Length", b"5"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")],
        b"hello",
        True,
    ),
    "empty": (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, [(b"content-length", b"0")], b"", True),
    "no reason, blanks around values, empty value": (
        b"GET",
        b"HTTP/1.1 200\r\nContent-Length:2\r\nA:   b c  \r\nD:\r\nE:\t\tf\t \r\nG:  \r\n\r\nok",
        200,
        [(b"Content-Length", b"2"), (b"A", b"b c"), (b"D", b""), (b"E", b"f"), (b"G", b"")],
        b"ok",
        True,
    ),
    "body that looks like an answer": (
        b"GET",
        b"HTTP/1.1 200 OK\r\ncontent-length: 38\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        200,
        [(b"content-length", b"38")],
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        True,
    ),
    "body of line ends": (
        b"GET",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\r\n\r\n",
        200,
        [(b"content-length", b"4")],
        b"\r\n\r\n",
        True,
    ),
    "chunked": (b"GET", CHUNKED_HEAD + b"5\r\nhello\r\n0\r\n\r\n", 200, CHUNKED_HEADERS, b"hello", True),
    "chunks of all kinds": (
        b"GET",
        CHUNKED_HEAD + b'1\r\na\r\n0002;x;y=z;q="a b"\r\nbc\r\nA\r\n\r\n01234567\r\n000\r\n\r\n',
        200,
        CHUNKED_HEADERS,
        b"abc\r\n01234567",
        True,
    ),
    "chunked, empty": (b"GET", CHUNKED_HEAD + b"0\r\n\r\n", 200, CHUNKED_HEADERS, b"", True),
    "trailers": (
        b"GET",
        CHUNKED_HEAD + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nset-cookie: no\r\n\r\n",
        200,
        CHUNKED_HEADERS,
        b"ok",
        True,
    ),
    "head": (
        b"HEAD",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n",
        200,
        [(b"Content-Length", b"5000")],
        b"",
        True,
    ),
    "head, chunked": (b"HEAD", CHUNKED_HEAD, 200, CHUNKED_HEADERS, b"", True),
    "head without length": (b"HEAD", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", 200, [(b"A", b"b")], b"", True),
    "head, close": (
        b"HEAD",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        200,
        [(b"Connection", b"close")],
        b"",
        False,
    ),
    "204": (b"DELETE", b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n", 204, [(b"A", b"b")], b"", True),
    "304": (
        b"GET",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\n\r\n",
        304,
        [(b"Content-Length", b"5000")],
        b"",
        True,
    ),
    "interim answers": (
        b"GET",
        b"".join(
            (
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                b"HTTP/1.1 102 Processing\r\n\r\n",
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
        ),
        200,
        [(b"content-length", b"2")],
        b"ok",
        True,
    ),
    "interim, then chunked": (
        b"GET",
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED_HEAD + b"2\r\nok\r\n0\r\n\r\n",
        200,
        CHUNKED_HEADERS,
        b"ok",
        True,
    ),
    "interim, then an answer to HEAD": (
        b"HEAD",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
        200,
        [(b"content-length", b"2")],
        b"",
        True,
    ),
    "1.0": (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, [(b"Content-Length", b"2")], b"ok", False),
    "1.0 keep-alive": (
        b"GET",
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok",
        200,
        [(b"Connection", b"Keep-Alive"), (b"Content-Length", b"2")],
        b"ok",
        True,
    ),
    "close": (
        b"GET",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        200,
        [(b"Connection", b"close"), (b"Content-Length", b"2")],
        b"ok",
        False,
    ),
    "upgrade offered but not asked for": (
        b"GET",
        b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nok",
        200,
        [(b"Upgrade", b"h2c"), (b"Connection", b"upgrade"), (b"Content-Length", b"2")],
        b"ok",
        True,
    ),
    "bytes above 0x7f": (
        b"GET",
        b"HTTP/1.1 200 \xc3\xa4\r\nX: \xff\xc3\xa4\r\nContent-Length: 2\r\n\r\n\0\xff",
        200,
        [(b"X", b"\xff\xc3\xa4"), (b"Content-Length", b"2")],
        b"\0\xff",
        True,
    ),
    "unusual status": (
        b"GET",
        b"HTTP/1.1 999 Denied\r\ncontent-length: 0\r\n\r\n",
        999,
        [(b"content-length", b"0")],
        b"",
        True,
    ),
}


def check_valid(line: Line, name: str, segments: list[bytes]) -> None:
    method, _, status, headers, body, kept = VALID[name]
    exchange = line.ask(method)
    for segment in segments:
        assert not exchange.complete
        line.connection.data_received(segment)

    assert exchange.error is None
    assert (exchange.status, exchange.headers) == (status, headers)
    assert woken(exchange)
    assert exchange.complete
    assert exchange.at_end is (body == b"")
    assert read_all(exchange) == body
    assert exchange.at_end
    assert line.idle is kept
    assert line.transport.closed == ("" if kept else "close")


@pytest.mark.parametrize("name", VALID)
def test_a_valid_answer_in_one_piece_and_byte_by_byte(name: str):
    wire = VALID[name][1]

    check_valid(Line(), name, [wire])
    check_valid(Line(), name, [wire[i : i + 1] for i in range(len(wire))])


@pytest.mark.parametrize("name", VALID)
def test_a_valid_answer_cut_in_two_anywhere(name: str):
    wire = VALID[name][1]

    for cut in range(1, len(wire)):
        check_valid(Line(), name, [wire[:cut], wire[cut:]])


KEPT = [name for name in VALID if VALID[name][5]]


def test_answers_of_every_kind_follow_each_other_on_one_connection(line: Line):
    for name in KEPT + KEPT[::-1]:
        check_valid(line, name, [VALID[name][1]])
        line.pool.released.clear()


@given(
    st.lists(st.tuples(st.sampled_from(KEPT), st.lists(st.integers(1, 200), max_size=5, unique=True)), max_size=6),
)
def test_any_valid_answers_in_any_segments_decode_to_the_same(sequence: list[tuple[str, list[int]]]):
    line = Line()
    for name, cuts in sequence:
        wire = VALID[name][1]
        ends = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
        check_valid(line, name, [wire[a:b] for a, b in itertools.pairwise(ends)])
        line.pool.released.clear()


TOKENS = st.text("abcXYZ-_!09", min_size=1, max_size=12).map(str.encode)
TEXTS = st.text("abc ,;=\"'/äÿ", max_size=20).map(lambda text: text.strip().encode("latin-1"))
RESERVED = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"upgrade"}


@given(
    status=st.integers(200, 999).filter(lambda status: status not in (204, 304)),
    headers=st.lists(st.tuples(TOKENS, TEXTS).filter(lambda header: header[0].lower() not in RESERVED), max_size=8),
    parts=st.lists(st.binary(max_size=40), max_size=5),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 400), max_size=8),
)
def test_a_random_valid_answer_in_random_segments_decodes_to_what_it_was(
    status: int, headers: list[Header], parts: list[bytes], chunked: bool, cuts: list[int]
):
    body = b"".join(parts)
    framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % len(body))
    headers = [*headers, framing]
    wire = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"
    if chunked:
        wire += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
    else:
        wire += body
    line = Line()
    exchange = line.ask()

    ends = [0, *sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]
    for start, end in itertools.pairwise(ends):
        line.connection.data_received(wire[start:end])

    assert exchange.error is None
    assert (exchange.status, exchange.headers, read_all(exchange)) == (status, headers, body)
    assert line.idle


LENGTH_2 = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
INVALID: dict[str, bytes] = {
    "garbage": b"\x16\x03\x01\x02\x00",
    "not http": b"SSH-2.0-OpenSSH\r\n",
    "html": b"<html></html>",
    "0.9": b"hello\r\n",
    "2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "3.0": b"HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "1.2": b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no version": b"HTTP 200 OK\r\n\r\n",
    "rtsp": b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "ice": b"ICE/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "lower-case name": b"http/1.1 200 OK\r\n\r\n",
    "empty line before": b"\r\n" + LENGTH_2 + b"\r\nok",
    "request": b"GET / HTTP/1.1\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "both framings": LENGTH_2 + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both framings, reversed": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "chunked not last": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding repeated": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok",
    "coding with a tab": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "coding in 1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding in 204": b"HTTP/1.1 204 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding in 100": b"HTTP/1.1 100 OK\r\ntransfer-encoding: chunked\r\n\r\n" + LENGTH_2 + b"\r\nok",
    "length in 100": b"HTTP/1.1 100 OK\r\ncontent-length: 1\r\n\r\nx" + LENGTH_2 + b"\r\nok",
    "length in 204": b"HTTP/1.1 204 OK\r\ncontent-length: 1\r\n\r\nx",
    "different lengths": LENGTH_2 + b"content-length: 3\r\n\r\nok",
    "length repeated": LENGTH_2 + b"content-length: 2\r\n\r\nok",
    "length list": b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    "hexadecimal length": b"HTTP/1.1 200 OK\r\ncontent-length: 0x2\r\n\r\nok",
    "empty length": b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nok",
    "spaced length": b"HTTP/1.1 200 OK\r\ncontent-length: 2 2\r\n\r\nok",
    "length in words": b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
    "endless length": b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\nok",
    "obs-fold": LENGTH_2 + b"a: b\r\n c\r\n\r\nok",
    "obs-fold with a tab": LENGTH_2 + b"a: b\r\n\tc\r\n\r\nok",
    "fold at the start": b"HTTP/1.1 200 OK\r\n a: b\r\ncontent-length: 2\r\n\r\nok",
    "bare LF after the status": b"HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\nok",
    "bare LF after a header": b"HTTP/1.1 200 OK\r\ncontent-length: 2\n\r\nok",
    "bare LF at the end": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\nok",
    "bare LF everywhere": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "bare CR": b"HTTP/1.1 200 OK\r\na: b\rcontent-length: 2\r\n\r\nok",
    "NUL in a value": LENGTH_2 + b"a: b\0c\r\n\r\nok",
    "NUL in a name": LENGTH_2 + b"a\0: b\r\n\r\nok",
    "control in a value": LENGTH_2 + b"a: b\x01c\r\n\r\nok",
    "DEL in a value": LENGTH_2 + b"a: b\x7fc\r\n\r\nok",
    "space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
    "tab before the colon": b"HTTP/1.1 200 OK\r\ncontent-length\t: 2\r\n\r\nok",
    "no name": LENGTH_2 + b": b\r\n\r\nok",
    "no colon": LENGTH_2 + b"abc\r\n\r\nok",
    "space in a name": LENGTH_2 + b"a b: c\r\n\r\nok",
    "letter above 0x7f in a name": LENGTH_2 + b"\xe4: c\r\n\r\nok",
    "101 nobody asked for": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "2.0 after 100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
}


def check_refused(line: Line, segments: list[bytes], method: bytes = b"GET") -> None:
    exchange = line.ask(method)
    for segment in segments:
        line.connection.data_received(segment)
        if exchange.error is not None:
            break

    error = exchange.error
    assert isinstance(error, UpstreamProtocolError)
    assert (error.service, error.request_sent) == ("users", True)
    assert not exchange.complete
    assert woken(exchange)
    assert not line.idle
    assert line.transport.closed == "abort"


@pytest.mark.parametrize("name", INVALID)
def test_what_is_not_valid_http_is_refused_and_costs_the_connection(name: str):
    check_refused(Line(), [INVALID[name]])


@pytest.mark.parametrize("name", INVALID)
def test_what_is_not_valid_http_is_refused_wherever_it_is_cut(name: str):
    wire = INVALID[name]

    check_refused(Line(), [wire[i : i + 1] for i in range(len(wire))])
    for cut in range(1, len(wire)):
        check_refused(Line(), [wire[:cut], wire[cut:]])


CHUNKS_INVALID = {
    "hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "blank before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "blank after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "no hexadecimal": b"xyz\r\n",
    "size too large": b"fffffffffffffffff\r\nx",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "nothing after the data": b"5\r\nhello0\r\n\r\n",
    "more data than said": b"5\r\nhelloo\r\n0\r\n\r\n",
    "bare LF after an extension": b"5;a=b\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
    "line end in a quoted extension": b'5;a="x\r\ny"\r\nhello\r\n0\r\n\r\n',
    "bare LF at the end": b"0\r\n\n",
    "bare LF in a trailer": b"0\r\na: b\n\r\n",
    "bad trailer name": b"0\r\na b: c\r\n\r\n",
    "folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "length in a trailer": b"0\r\ncontent-length: 5\r\n\r\n",
}


@pytest.mark.parametrize("name", CHUNKS_INVALID)
def test_a_chunk_that_is_not_valid_fails_the_body_wherever_it_is_cut(name: str):
    chunks = CHUNKS_INVALID[name]

    for cut in range(len(chunks)):
        line = Line()
        exchange = line.ask()
        line.connection.data_received(CHUNKED_HEAD + b"2\r\nok\r\n")
        for segment in (chunks[:cut], chunks[cut:]):
            if segment and exchange.error is None:
                line.connection.data_received(segment)

        assert exchange.status == 200
        assert isinstance(exchange.error, UpstreamProtocolError)
        assert exchange.error.response_started
        assert not exchange.complete
        assert line.transport.closed == "abort"


def test_trailers_are_dropped_counted_and_told_once_per_answer(line: Line):
    trailers = CHUNKED_HEAD + b"0\r\nA: 1\r\nB: 2\r\n\r\n"

    for wire in (trailers, CHUNKED_HEAD + b"0\r\n\r\n", trailers):
        exchange = line.ask()
        line.connection.data_received(wire)
        assert exchange.headers == CHUNKED_HEADERS

    assert line.events == [TrailersDropped("users"), TrailersDropped("users")]
    assert line.counters.trailers_dropped == 2


def test_bytes_that_come_after_the_connection_was_cut_are_ignored(line: Line):
    exchange = line.ask()
    line.connection.data_received(b"garbage")
    error = exchange.error

    line.connection.data_received(VALID["length"][1])
    line.connection.connection_lost(None)

    assert exchange.error is error
    assert exchange.status == 0


@pytest.mark.parametrize("segment", [1, 7, 1000, 1_000_000])
def test_a_head_may_have_so_many_bytes_and_headers(segment: int):
    def outcome(wire: bytes) -> Exception | None:
        line = Line(max_header_bytes=2000, max_headers=20)
        exchange = line.ask()
        for start in range(0, len(wire), segment):
            if exchange.error is None:
                line.connection.data_received(wire[start : start + segment])
        return exchange.error

    def head(count: int, size: int) -> bytes:
        lines = b"".join(b"x-%d: %b\r\n" % (number, b"y" * size) for number in range(count))
        return b"HTTP/1.1 200 OK\r\n" + lines + b"content-length: 2\r\n\r\nok"

    assert outcome(head(19, 50)) is None
    assert outcome(head(1, 1800)) is None
    assert isinstance(outcome(head(20, 50)), UpstreamProtocolError)
    assert isinstance(outcome(head(1, 2100)), UpstreamProtocolError)
    assert isinstance(outcome(b"HTTP/1.1 200 " + b"y" * 2100), UpstreamProtocolError)
    assert isinstance(outcome(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2100), UpstreamProtocolError)


def test_a_large_body_in_the_first_segment_does_not_count_as_head():
    line = Line(max_header_bytes=2000)
    exchange = line.ask()

    line.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000)

    assert read_all(exchange) == b"x" * 9000


@pytest.mark.parametrize("segment", [25, 1000, 10_000_000])
def test_a_storm_of_interim_answers_ends_at_the_limit_of_the_head(segment: int):
    line = Line(max_header_bytes=20_000)
    exchange = line.ask()
    storm = b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000

    sent = 0
    while exchange.error is None and sent < len(storm):
        line.connection.data_received(storm[sent : sent + segment])
        sent += segment

    assert isinstance(exchange.error, UpstreamProtocolError)
    assert sent <= max(segment, 40_000)


@pytest.mark.parametrize("endless", [b"5;" + b"x" * 1000, b"0\r\n" + b"a: b\r\n" * 200])
def test_chunk_extensions_and_trailers_without_end_are_refused(endless: bytes):
    line = Line(max_header_bytes=5000)
    exchange = line.ask()
    line.connection.data_received(CHUNKED_HEAD + b"2\r\nok\r\n" + endless)

    fed = 0
    while exchange.error is None and fed < 100_000:
        line.connection.data_received(endless[-6:] * 10)
        fed += 60

    assert isinstance(exchange.error, UpstreamProtocolError)
    assert fed < 6000


def test_many_small_chunks_are_no_overhead():
    line = Line(max_header_bytes=1000)
    exchange = line.ask()
    line.connection.data_received(CHUNKED_HEAD)

    for _ in range(2000):
        for segment in (b"1;name=value\r", b"\nx\r", b"\n"):
            line.connection.data_received(segment)
    line.connection.data_received(b"0\r\n\r\n")

    assert exchange.error is None
    assert read_all(exchange) == b"x" * 2000


def test_a_body_until_close_ends_with_the_connection(line: Line):
    exchange = line.ask()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nhel")
    line.connection.data_received(b"lo")
    assert woken(exchange)
    assert not exchange.complete

    line.connection.eof_received()
    line.connection.connection_lost(None)

    assert exchange.complete
    assert read_all(exchange) == b"hello"
    assert not line.idle


@pytest.mark.parametrize("exc", [None, ConnectionResetError("reset")])
def test_a_body_until_close_that_is_cut_without_an_end_fails(line: Line, exc: Exception | None):
    exchange = line.ask()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhel")

    line.connection.connection_lost(exc)  # no eof_received: a reset, or TLS without close_notify

    assert isinstance(exchange.error, UpstreamConnectionError)
    assert exchange.error.response_started
    assert not exchange.complete


@pytest.mark.parametrize("name", ["length", "chunked", "trailers", "interim answers"])
def test_an_answer_that_ends_too_early_fails_wherever_that_is(name: str):
    wire = VALID[name][1]

    for cut in range(len(wire)):
        line = Line()
        exchange = line.ask()
        if cut:
            line.connection.data_received(wire[:cut])
        line.connection.eof_received()
        line.connection.connection_lost(None)

        assert isinstance(exchange.error, UpstreamConnectionError)
        assert exchange.error.request_sent
        assert exchange.error.response_started is (exchange.status != 0)
        assert not exchange.complete
        assert woken(exchange)


GARBAGE = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
                b"HTTP/1.0 304 Not Modified\r\n",
                b"content-length: 5\r\n",
                b"transfer-encoding: chunked\r\n",
                b"connection: close\r\n",
                b"keep-alive: timeout=1\r\n",
                b"\r\n",
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"hello",
            ]
        ),
    ),
    max_size=8,
)


@settings(max_examples=300)
@given(GARBAGE, st.sampled_from([b"GET", b"HEAD"]), st.booleans(), st.booleans())
def test_garbage_never_hangs_and_never_raises_anything_but_ours(
    pieces: list[bytes], method: bytes, hold: bool, upgrade: bool
):
    line = Line()
    exchange = line.ask(method, hold=hold, upgrade=upgrade)

    for piece in filter(None, pieces):
        line.connection.data_received(piece)
    line.connection.eof_received()
    line.connection.connection_lost(None)

    assert woken(exchange)
    assert exchange.complete is (exchange.error is None)
    if exchange.error is not None:
        assert isinstance(exchange.error, MeshError)
    assert line.pool.released == []


def test_reading_stops_above_the_high_water_mark_and_goes_on_below_it(line: Line):
    exchange = line.ask()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    part = b"x" * 100_000

    reading = []
    for _ in range(3):
        line.connection.data_received(part)
        reading.append(line.transport.reading)
    assert reading == [True, True, False]

    assert len(drive(exchange.read())) == 300_000
    assert line.transport.reading


def test_a_connection_goes_back_reading_although_its_body_still_waits(line: Line):
    exchange = line.ask()
    line.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n")
    for _ in range(4):
        line.connection.data_received(b"x" * 100_000)

    assert line.idle
    assert line.transport.reading
    assert len(read_all(exchange)) == 400_000
