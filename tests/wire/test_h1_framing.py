"""Request heads as they are written, and the framing of response heads."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.core.message import Header
from fastapi_mesh.exceptions import InvalidRequestError, UpstreamProtocolError
from fastapi_mesh.wire.h1.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    FieldNames,
    idle_timeout,
    is_persistent,
    request_head,
    response_framing,
)
from tests.support.calls import make_context, make_instance, make_request

CONTEXT = make_context(make_instance(8080), timeout=None)
HOST = b"host: 127.0.0.1:8080"


async def _stream() -> AsyncIterator[bytes]:
    yield b"part"


def head_of(
    method: bytes = b"GET",
    target: bytes = b"/",
    headers: list[Header] | None = None,
    body: object = b"",
    base_path: bytes = b"",
) -> bytes:
    request = make_request(CONTEXT, method, target, headers=headers or [], body=body)  # type: ignore[arg-type]
    return request_head(request, base_path, HOST, FieldNames())[0]


def lines_of(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def test_a_request_without_host_gets_the_instances_authority_first():
    assert head_of(headers=[(b"accept", b"*/*")]) == b"GET / HTTP/1.1\r\nhost: 127.0.0.1:8080\r\naccept: */*\r\n\r\n"


@pytest.mark.spec("X-22")
def test_a_given_host_comes_first_as_it_was_given():
    head = head_of(headers=[(b"accept", b"*/*"), (b"Host", b"Shop.example")])

    assert lines_of(head)[1:] == [b"Host: Shop.example", b"accept: */*"]


@pytest.mark.spec("X-22")
def test_order_case_and_duplicates_of_headers_are_kept():
    headers = [(b"X-B", b"2"), (b"cookie", b"a=1"), (b"x-b", b"1"), (b"cookie", b"b=2"), (b"x-utf", "ä".encode())]

    assert lines_of(head_of(headers=headers))[2:] == [name + b": " + value for name, value in headers]


@pytest.mark.spec("X-22")
@pytest.mark.parametrize("target", [b"/a%2Fb?x=%20&y=[1]", b"/\xc3\xa4", b"//double", b"/a;b?c?d", b"/?", b"/'\"<>"])
def test_the_target_goes_out_byte_for_byte(target: bytes):
    assert head_of(target=target).startswith(b"GET " + target + b" HTTP/1.1\r\n")


def test_the_base_path_of_the_instance_is_put_before_the_target():
    assert head_of(target=b"/users?id=1", base_path=b"/api/v1").startswith(b"GET /api/v1/users?id=1 HTTP/1.1\r\n")
    assert head_of(b"OPTIONS", b"*", base_path=b"/api").startswith(b"OPTIONS * HTTP/1.1\r\n")


@pytest.mark.spec("X-22")
def test_hop_by_hop_headers_are_dropped():
    dropped = [b"Connection", b"keep-alive", b"Proxy-Connection", b"TE", b"Trailer", b"trailers", b"Transfer-Encoding"]

    head = head_of(headers=[(name, b"x") for name in dropped])

    assert head == b"GET / HTTP/1.1\r\n" + HOST + b"\r\n\r\n"


def test_an_upgrade_request_keeps_upgrade_and_says_so_in_connection():
    headers = [(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-key", b"x")]
    request = make_request(CONTEXT, headers=headers)

    head, _, _, upgrade = request_head(request, b"", HOST, FieldNames())

    assert upgrade
    assert lines_of(head)[2:] == [b"sec-websocket-key: x", b"upgrade: websocket", b"connection: upgrade"]


@pytest.mark.parametrize(
    ("method", "body", "line"),
    [
        (b"GET", b"", None),
        (b"DELETE", b"", None),
        (b"POST", b"", b"content-length: 0"),
        (b"PUT", b"", b"content-length: 0"),
        (b"PATCH", b"", b"content-length: 0"),
        (b"POST", b"12345", b"content-length: 5"),
        (b"GET", b"12", b"content-length: 2"),
    ],
)
def test_a_body_in_memory_has_the_length_it_has(method: bytes, body: bytes, line: bytes | None):
    lines = lines_of(head_of(method, body=body, headers=[(b"content-length", b"99"), (b"transfer-encoding", b"x")]))

    assert lines[2:] == ([] if line is None else [line])


def test_a_stream_is_chunked_or_of_the_length_that_the_request_states():
    chunked = request_head(make_request(CONTEXT, b"POST", body=_stream()), b"", HOST, FieldNames())
    stated = make_request(CONTEXT, b"POST", headers=[(b"Content-Length", b"4")], body=_stream())
    fixed = request_head(stated, b"", HOST, FieldNames())

    assert (lines_of(chunked[0])[-1], chunked[1]) == (b"transfer-encoding: chunked", CHUNKED)
    assert (lines_of(fixed[0])[-1], fixed[1]) == (b"content-length: 4", 4)


def test_expect_is_for_streams_only_and_dropped_without_content():
    headers = [(b"expect", b"100-Continue")]

    streamed = request_head(make_request(CONTEXT, b"PUT", headers=headers, body=_stream()), b"", HOST, FieldNames())
    in_memory = request_head(make_request(CONTEXT, b"PUT", headers=headers, body=b"x"), b"", HOST, FieldNames())
    empty = request_head(make_request(CONTEXT, b"PUT", headers=headers), b"", HOST, FieldNames())

    assert (b"expect:" in streamed[0], streamed[2]) == (True, True)
    assert (b"expect:" in in_memory[0], in_memory[2]) == (True, False)
    assert (b"expect:" in empty[0], empty[2]) == (False, False)


CONTROLS = [bytes([code]) for code in (*range(33), 127)]


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_a_blank_or_control_character_in_the_target_is_refused(control: bytes):
    for target in (control, b"/" + control, b"/a" + control + b"b", b"/a?b" + control):
        with pytest.raises(InvalidRequestError):
            head_of(target=target)


@pytest.mark.parametrize("control", [b"\r", b"\n", b"\0", b"\r\n", b"\r\n\r\n"], ids=repr)
def test_a_line_end_or_nul_in_a_value_is_refused(control: bytes):
    for value in (control, b"a" + control, control + b"a", b"a" + control + b"b: c"):
        for name in (b"x-a", b"host", b"upgrade", b"expect"):
            with pytest.raises(InvalidRequestError):
                head_of(b"POST", headers=[(name, value)], body=b"x")
        with pytest.raises(InvalidRequestError):
            head_of(b"POST", headers=[(b"content-length", b"4" + value)], body=_stream())


def test_a_header_cannot_bring_another_one_along():
    for value in (b"x\r\nevil: 1", b"x\nevil: 1", b"x\revil: 1", b"x\r\n\r\nGET /evil HTTP/1.1"):
        with pytest.raises(InvalidRequestError):
            head_of(headers=[(b"x-a", value)])


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"a b",
        b"a:",
        b":a",
        b"a\r\nb",
        b"a\n",
        b"a\0",
        b"\xe4",
        b"a(b)",
        b"a,b",
        b'"a"',
        b"a/b",
        b"a\tb",
        b" a",
        b"{a}",
    ],
)
def test_a_header_name_that_is_no_token_is_refused(name: bytes):
    with pytest.raises(InvalidRequestError):
        head_of(headers=[(name, b"x")])


@pytest.mark.parametrize(
    "target", [b"", b"x", b"http://a/b", b"/a b", b"/a#b", b"*", b"a/b", b"/ HTTP/1.1\r\nx: y\r\n"]
)
def test_a_target_that_is_no_path_is_refused(target: bytes):
    with pytest.raises(InvalidRequestError):
        head_of(target=target)


@pytest.mark.parametrize("method", [b"", b"GE T", b"GET\r\n", b"G\0T", b"CONNECT", b"G(T)", b"GET /evil HTTP/1.1\r\n"])
def test_a_method_that_is_no_token_and_connect_are_refused(method: bytes):
    with pytest.raises(InvalidRequestError):
        head_of(method)


def test_a_method_of_ones_own_is_sent():
    assert head_of(b"PURGE").startswith(b"PURGE / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"4"), (b"content-length", b"5")],
        [(b"content-length", b"4"), (b"Content-Length", b"4")],
        [(b"content-length", b"4, 4")],
        [(b"content-length", b"+4")],
        [(b"content-length", b"0x4")],
        [(b"content-length", b"")],
        [(b"content-length", b" 4")],
        [(b"content-length", b"1" * 19)],
        [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_an_ambiguous_length_of_a_stream_is_refused(headers: list[Header]):
    with pytest.raises(InvalidRequestError):
        head_of(b"POST", headers=headers, body=_stream())


def test_two_hosts_are_refused():
    with pytest.raises(InvalidRequestError):
        head_of(headers=[(b"host", b"a"), (b"Host", b"a")])


def test_the_memory_for_names_is_bounded():
    names = FieldNames()
    for number in range(5000):
        assert names[b"x-%d" % number] == 0

    assert len(names) == 1024


VALUES = st.binary(max_size=20)
HEADERS = st.lists(st.tuples(st.one_of(st.binary(max_size=8), st.sampled_from([b"host", b"Expect", b"te"])), VALUES))


@given(
    method=st.one_of(st.sampled_from([b"GET", b"POST", b"OPTIONS"]), st.binary(max_size=5)),
    target=st.one_of(st.binary(max_size=20), st.binary(max_size=20).map(b"/".__add__)),
    headers=HEADERS,
    body=st.binary(max_size=5),
)
def test_whatever_is_written_reads_back_as_the_same_request(
    method: bytes, target: bytes, headers: list[Header], body: bytes
):
    request = make_request(CONTEXT, method, target, headers=headers, body=body)
    try:
        head = request_head(request, b"", HOST, FieldNames())[0]
    except InvalidRequestError:
        return

    line, *lines = lines_of(head)
    assert line == method + b" " + target + b" HTTP/1.1"
    assert head.count(b"\n") == head.count(b"\r") == len(lines) + 2
    allowed = [name + b": " + value for name, value in headers]
    extra = [HOST, b"content-length: %d" % len(body)]
    assert all(each in allowed or each in extra for each in lines)


LENGTH = [(b"Content-Length", b"12")]
CHUNKS = [(b"TRANSFER-ENCODING", b"Chunked")]


@pytest.mark.parametrize(
    ("status", "headers", "to_head", "length"),
    [
        (200, LENGTH, False, 12),
        (404, LENGTH, False, 12),
        (200, CHUNKS, False, CHUNKED),
        (200, [], False, UNTIL_CLOSE),
        (200, LENGTH, True, 0),
        (200, CHUNKS, True, 0),
        (200, [], True, 0),
        (204, [], False, 0),
        (204, [(b"content-length", b"0")], False, 0),
        (304, LENGTH, False, 0),
        (304, CHUNKS, False, 0),
        (304, [], False, 0),
        (100, [], False, 0),
        (103, [(b"link", b"</a>")], False, 0),
        (200, [(b"content-length", b"000000000000000012")], False, 12),
    ],
)
def test_the_length_of_a_response(status: int, headers: list[Header], to_head: bool, length: int):
    assert response_framing(status, headers, to_head) == (length, None)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, LENGTH + CHUNKS),
        (200, CHUNKS + LENGTH),
        (200, LENGTH + LENGTH),
        (200, [(b"content-length", b"1"), (b"content-length", b"2")]),
        (200, [(b"content-length", b"1, 1")]),
        (200, [(b"content-length", b"+1")]),
        (200, [(b"content-length", b"-1")]),
        (200, [(b"content-length", b"1_0")]),
        (200, [(b"content-length", b"0x1")]),
        (200, [(b"content-length", b"")]),
        (200, [(b"content-length", b"9" * 19)]),
        (200, [(b"content-length", "²".encode())]),
        (200, CHUNKS + CHUNKS),
        (200, [(b"transfer-encoding", b"gzip, chunked")]),
        (200, [(b"transfer-encoding", b"chunked, gzip")]),
        (200, [(b"transfer-encoding", b"chunked, chunked")]),
        (200, [(b"transfer-encoding", b"identity")]),
        (200, [(b"transfer-encoding", b"xchunked")]),
        (200, [(b"transfer-encoding", b"chunked\t")]),
        (200, [(b"transfer-encoding", b"")]),
        (204, CHUNKS),
        (204, LENGTH),
        (100, CHUNKS),
        (100, LENGTH),
        (101, CHUNKS),
        (304, LENGTH + CHUNKS),
    ],
)
def test_ambiguous_framing_of_a_response_is_refused(status: int, headers: list[Header]):
    with pytest.raises(UpstreamProtocolError):
        response_framing(status, headers, False)


@pytest.mark.parametrize(
    ("headers", "version", "persistent"),
    [
        ([], "1.1", True),
        ([], "1.0", False),
        ([(b"Connection", b"Close")], "1.1", False),
        ([(b"connection", b"keep-alive, close")], "1.1", False),
        ([(b"connection", b"x"), (b"connection", b"close")], "1.1", False),
        ([(b"connection", b"xclose")], "1.1", True),
        ([(b"connection", b"Keep-Alive")], "1.0", True),
        ([(b"connection", b"keep-alive , x")], "1.0", True),
    ],
)
def test_whether_a_connection_goes_on(headers: list[Header], version: str, persistent: bool):
    assert is_persistent(headers, version) is persistent


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5.0),
        (b"max=100, Timeout=72", 72.0),
        (b"timeout=0", 0.0),
        (b"timeout=-1", None),
        (b"timeout=", None),
        (b"max=5", None),
        (b"timeout=1e9", None),
        (b"", None),
    ],
)
def test_how_long_an_instance_keeps_an_idle_connection(value: bytes, seconds: float | None):
    assert idle_timeout(value) == seconds
    assert response_framing(200, [(b"Keep-Alive", value), *LENGTH], False) == (12, value)
