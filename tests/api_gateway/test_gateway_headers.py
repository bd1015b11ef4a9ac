"""The header rules, in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.headers import (
    CHUNKED,
    HOP_BY_HOP,
    NO_BODY,
    Head,
    RequestNames,
    ResponseNames,
    read_response,
)
from fastapi_mesh.api_gateway.headers import read_request as read
from fastapi_mesh.exceptions import InvalidRequestError

HOST = (b"host", b"gateway.example")
NAMES_MEMORY = RequestNames()
pytestmark = pytest.mark.spec("X-22")


def read_request(headers: list[tuple[bytes, bytes]], version: str, authority: bytes | None = None) -> Head:
    """With a memory of names, as on the data path; what it has learnt must change nothing."""
    try:
        first = read(headers, version, RequestNames(), authority)
    except InvalidRequestError:
        with pytest.raises(InvalidRequestError):
            read(headers, version, NAMES_MEMORY, authority)
        raise
    again = read(headers, version, NAMES_MEMORY, authority)
    assert (first.headers, first.length, first.host) == (again.headers, again.length, again.host)
    return first


def test_order_and_duplicates_are_kept() -> None:
    headers = [(b"x-b", b"1"), HOST, (b"x-a", b"2"), (b"x-b", b"3"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]

    assert read_request(headers, "1.1").headers == headers


def test_hop_by_hop_fields_and_those_that_connection_lists_are_removed() -> None:
    headers = [
        (b"x-secret", b"early"),
        HOST,
        (b"connection", b"keep-alive, X-Secret"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"trailer", b"x-sum"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AAMAAABkAAQ"),
        (b"proxy-connection", b"keep-alive"),
        (b"x-secret", b"late"),
        (b"x-kept", b"yes"),
    ]

    assert read_request(headers, "1.1").headers == [HOST, (b"x-kept", b"yes")]


def test_credentials_for_a_proxy_go_on_as_a_gateway_is_none() -> None:
    headers = [HOST, (b"proxy-authorization", b"Basic eDp5")]

    assert read_request(headers, "1.1").headers == headers


@pytest.mark.parametrize("version", ["0.9", "1.10", "", "4"])
def test_a_version_that_is_no_http_with_headers_is_refused(version: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_request([HOST], version)


@pytest.mark.parametrize("headers", [[(b"x", b"y")] * 1000, [(b"x", b"y" * 262_144)]])
def test_a_head_that_is_too_large_for_anybody_is_431(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_request([HOST, *headers], "1.1")

    assert (refused.value.status, refused.value.reason) == (431, "request-header-fields-too-large")
    assert len(read_request([HOST, *headers[1:]], "1.1").headers) == len(headers)


def test_connection_can_not_remove_what_frames_or_routes_a_request() -> None:
    headers = [HOST, (b"content-length", b"3"), (b"connection", b"close, host, content-length, x-forwarded-for")]

    assert read_request(headers, "1.1").headers == [HOST, (b"content-length", b"3")]


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a,b",
        b"user@host",
        b"user:pass@host",
        b"a b",
        b"a/b",
        b"a?b",
        b"a\\b",
        b"a#b",
        b'a"b',
        b"a:b",
        b"a:1:2",
        b":80",
        b"[::1",
        b"::1]",
        b"[::1]x",
        b"[[::1]]",
        b"a\x00b",
        b"\xc3\xa9",
    ],
)
def test_a_host_that_is_no_host_is_refused(host: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_request([(b"host", host)], "1.1")


@pytest.mark.parametrize("host", [b"a", b"a.example:8080", b"127.0.0.1", b"[::1]", b"[fe80::1]:80", b"a:", b"a_b"])
def test_a_host_is_passed_on_as_the_client_sent_it(host: bytes) -> None:
    head = read_request([(b"host", host)], "1.1")

    assert head.headers == [(b"host", host)]
    assert head.host == host


def test_no_host_and_two_hosts_are_refused() -> None:
    for headers in ([], [(b"x", b"y")], [HOST, HOST], [HOST, (b"x", b"y"), (b"host", b"other")]):
        with pytest.raises(InvalidRequestError):
            read_request(headers, "1.1")


def test_the_authority_of_an_absolute_form_replaces_the_host_in_its_place() -> None:
    head = read_request([(b"a", b"1"), HOST, (b"b", b"2")], "1.1", b"other:81")

    assert head.headers == [(b"a", b"1"), (b"host", b"other:81"), (b"b", b"2")]


def test_an_authority_with_userinfo_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        read_request([HOST], "1.1", b"user@other")


@pytest.mark.parametrize(
    "framing",
    [
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
        [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"content-length", b"4")],
        [(b"content-length", b"3, 3")],
        [(b"content-length", b"+3")],
        [(b"content-length", b"-3")],
        [(b"content-length", b"0x3")],
        [(b"content-length", b"3 ")],
        [(b"content-length", b"")],
        [(b"content-length", b"9" * 19)],
        [(b"content-length", "٣".encode())],
        [(b"transfer-encoding", b"xchunked")],
        [(b"transfer-encoding", b"chunked, chunked")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"identity")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"transfer_encoding", b"chunked")],
        [(b"content_length", b"3")],
        [(b"x_forwarded_for", b"6.6.6.6")],
        [(b"transfer-encoding ", b"chunked")],
        [(b"transfer-encoding\t", b"chunked")],
        [(b" transfer-encoding", b"chunked")],
        [(b"transfer\nencoding", b"chunked")],
        [(b"", b"chunked")],
        [(b"x:y", b"1")],
        [(b"x\x00", b"1")],
        [(b"x", b"a\r\nb: c")],
        [(b"x", b"a\nb")],
        [(b"x", b"a\x00b")],
        [(b"x", b"a\x7fb")],
    ],
)
def test_whatever_two_servers_could_read_differently_is_refused(framing: list[tuple[bytes, bytes]]) -> None:
    for headers in ([HOST, *framing], [*framing, HOST]):
        with pytest.raises(InvalidRequestError):
            read_request(headers, "1.1")


def test_chunked_is_unknown_to_http_1_0() -> None:
    with pytest.raises(InvalidRequestError):
        read_request([HOST, (b"transfer-encoding", b"chunked")], "1.0")


@pytest.mark.parametrize(
    ("framing", "length"),
    [
        ([], NO_BODY),
        ([(b"content-length", b"0")], 0),
        ([(b"content-length", b"0042")], 42),
        ([(b"transfer-encoding", b"Chunked")], CHUNKED),
    ],
)
def test_the_length_of_the_body_is_what_the_headers_say(framing: list[tuple[bytes, bytes]], length: int) -> None:
    assert read_request([HOST, *framing], "1.1").length == length


def test_names_that_a_server_left_in_upper_case_are_the_same_names() -> None:
    head = read_request([(b"Host", b"a"), (b"Connection", b"X-One"), (b"X-One", b"1"), (b"X-Two", b"2")], "1.1")

    assert head.headers == [(b"host", b"a"), (b"x-two", b"2")]


def test_underscores_elsewhere_are_nobodys_business() -> None:
    assert read_request([HOST, (b"x_custom_name", b"1")], "1.1").headers == [HOST, (b"x_custom_name", b"1")]


def test_expect_and_the_request_id_are_noted() -> None:
    head = read_request([HOST, (b"expect", b"100-Continue"), (b"x-request-id", b"abc")], "1.1")

    assert head.expects_continue
    assert head.request_id == b"abc"
    assert head.headers == [HOST, (b"expect", b"100-Continue")]


def test_a_response_keeps_order_and_duplicates_and_loses_its_hop() -> None:
    headers = [
        (b"Set-Cookie", b"a=1"),
        (b"Connection", b"close, X-Internal"),
        (b"X-Internal", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"b=2"),
        (b"Date", b"now"),
    ]

    assert read_response(200, headers, ResponseNames([b"date"])) == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize(("status", "kept"), [(200, True), (206, True), (404, True), (204, False), (304, False)])
def test_the_length_of_a_response_is_kept_where_there_can_be_content(status: int, kept: bool) -> None:
    headers = read_response(status, [(b"content-length", b"5"), (b"etag", b'"x"')], ResponseNames())

    assert ((b"content-length", b"5") in headers) is kept
    assert (b"etag", b'"x"') in headers


@pytest.mark.parametrize("header", [(b"x y", b"1"), (b"", b"1"), (b"x", b"a\nb"), (b"x", b"\x01"), (b"x\r", b"1")])
def test_a_response_that_servers_would_not_take_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header's"):
        read_response(200, [(b"ok", b"caf\xe9\t1"), header], ResponseNames())


def test_the_memory_of_names_is_bounded() -> None:
    requests, responses = RequestNames(), ResponseNames()
    for number in range(3000):
        name = b"x-%d" % number
        read([HOST, (name, b"1")], "1.1", requests)
        assert read_response(200, [(name, b"1")], responses) == [(name, b"1")]

    assert len(requests) <= 1024
    assert len(responses) <= 1024


NAMES = st.sampled_from(
    [b"host", b"content-length", b"transfer-encoding", b"connection", b"te", b"x-a", b"x-b", b"content_length", b"x a"]
)
VALUES = st.sampled_from([b"a", b"3", b"chunked", b"x-a", b"close", b"a\rb", b"", b"x-b, host"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
@settings(max_examples=300, deadline=None)
def test_what_passes_has_one_host_one_length_and_no_hop_by_hop_field(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        head = read_request(headers, "1.1")
    except InvalidRequestError:
        return
    names = [name for name, _ in head.headers]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") == (1 if head.length >= 0 else 0)
    assert not set(names) & HOP_BY_HOP
    assert all(header in headers for header in head.headers)
