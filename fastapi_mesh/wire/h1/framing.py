"""Framing of HTTP/1.1 messages (RFC 9112): writes request heads, reads response heads, refuses what is ambiguous.

Pure functions of bytes; nothing here knows a socket. A response head is read by two regular expressions that accept
the grammar and nothing else, so that no second parser can see another message in the same bytes: bare LF, obs-fold,
a space before the colon, NUL and other controls all fail to match.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from fastapi_mesh.exceptions import InvalidRequestError, UpstreamProtocolError

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Header, Request

CHUNKED = -1
"""As a length: the body comes in chunks (RFC 9112 section 7.1)."""
UNTIL_CLOSE = -2
"""As a length: the body ends where the connection does (RFC 9112 section 6.3, item 8)."""

_FORWARD, _DROP, _HOST, _LENGTH, _EXPECT, _UPGRADE, _CODING = range(7)
_KINDS = {
    b"connection": _DROP,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"trailers": _DROP,
    b"transfer-encoding": _CODING,
    b"upgrade": _UPGRADE,
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"expect": _EXPECT,
}
_NAME_MEMORY = 1024

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
_TOKEN = re.compile(_TCHAR + rb"+")
# Origin-form or asterisk-form (RFC 9112 section 3.2). Bytes above 0x7f mean nothing in framing and pass, as in nginx.
_REQUEST_LINE = re.compile(_TCHAR + rb"++ (?:/[!\"$-~\x80-\xff]*+|\*) HTTP/1\.1\r\n")
_CONTROLS = bytes(code for code in (*range(32), 127) if code not in b"\t\r\n")
_LENGTH_EXPECTED = frozenset({b"POST", b"PUT", b"PATCH"})
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*+)?\r\n")
_VCHARS = rb"[!-~\x80-\xff]"
_FIELD_LINE = re.compile(
    rb"(?<=\r\n)(" + _TCHAR + rb"++):[ \t]*+(" + _VCHARS + rb"*+(?:[ \t]++" + _VCHARS + rb"++)*+)[ \t]*+\r\n"
)
_FRAMING_NAME_LENGTHS = frozenset({10, 14, 17})
_START = b"HTTP/1."


class FieldNames(dict[bytes, int]):
    """What to do with a request header, by its name as given; learns, up to 1024 names, which are valid tokens."""

    def __missing__(self, name: bytes) -> int:
        if _TOKEN.fullmatch(name) is None:
            raise InvalidRequestError(f"{name[:64]!r} is not a header name")
        kind = _KINDS.get(name.lower(), _FORWARD)
        if len(self) < _NAME_MEMORY:
            self[name] = kind
        return kind


class RequestHead(NamedTuple):
    """A request head as bytes, blank line included, and what the sender of the body must know.

    `length` is the size of the body in bytes or CHUNKED; `expects` whether to wait for `100 Continue` first;
    `upgrade` whether 101 is a valid answer.
    """

    data: bytes
    length: int
    expects: bool
    upgrade: bool


def request_head(request: Request, base_path: bytes, host_line: bytes, names: FieldNames) -> RequestHead:
    """Serialise the head of `request`. Raises InvalidRequestError for whatever could be read as something else.

    Hop-by-hop headers are dropped (RFC 9110 section 7.6.1) and the framing is our own. `host_line` is used where the
    request has no `Host`; that comes first (RFC 9110 section 7.2).
    """
    target = request.target
    if target != b"*":
        target = base_path + target
    parts = [request.method, b" ", target, b" HTTP/1.1\r\n", host_line]
    special: list[tuple[int, bytes, bytes]] = []
    for name, value in request.headers:
        kind = names[name]
        if kind == _FORWARD:
            parts += (name, b": ", value, b"\r\n")
        elif kind != _DROP:
            special.append((kind, name, value))
    length, expects, upgrade = _add_special(request, parts, special)
    data = b"".join(parts)
    lines = (len(parts) - 1) // 4 + 1
    if data.count(b"\r") != lines or data.count(b"\n") != lines or len(data.translate(None, _CONTROLS)) != len(data):
        raise InvalidRequestError("a header value or the target has a control character in it", service=request.service)
    if _REQUEST_LINE.match(data) is None or (target == b"*" and request.method != b"OPTIONS"):
        raise InvalidRequestError("the method or the target is not valid in HTTP/1.1", service=request.service)
    return RequestHead(data + b"\r\n", length, expects, upgrade)


def _add_special(
    request: Request, parts: list[bytes], special: list[tuple[int, bytes, bytes]]
) -> tuple[int, bool, bool]:
    """Add the headers that are the wire's business to `parts`, in groups of four. Returns length, expects, upgrade."""
    hosts = 0
    stated: bytes | None = None
    coded = expects = upgrade = False
    for kind, name, value in special:
        if kind == _HOST:
            hosts += 1
            parts[4] = name + b": " + value + b"\r\n"
        elif kind == _LENGTH:
            if stated is not None:
                raise InvalidRequestError("more than one content-length", service=request.service)
            stated = value
        elif kind == _CODING:
            coded = True
        elif kind == _UPGRADE:
            upgrade = True
            parts += (name, b": ", value, b"\r\n")
        elif request.body != b"":  # RFC 9110 section 10.1.1: no expectation without content
            expects = value.lower() == b"100-continue"
            parts += (name, b": ", value, b"\r\n")
    if hosts > 1:
        raise InvalidRequestError("more than one host header", service=request.service)
    if upgrade:
        parts += (b"connection", b": ", b"upgrade", b"\r\n")
    body = request.body
    if isinstance(body, bytes):
        length = len(body)
        if length or request.method in _LENGTH_EXPECTED:
            parts += (b"content-length", b": ", b"%d" % length, b"\r\n")
        return length, False, upgrade
    if stated is None:
        parts += (b"transfer-encoding", b": ", b"chunked", b"\r\n")
        return CHUNKED, expects, upgrade
    if coded or not stated.isdigit() or len(stated) > 18:
        raise InvalidRequestError("the length of the body is ambiguous", service=request.service)
    parts += (b"content-length", b": ", stated, b"\r\n")
    return int(stated), expects, upgrade


class ResponseHead(NamedTuple):
    """A response head. `length` is bytes of body, CHUNKED or UNTIL_CLOSE; `keep_alive` whether the server goes on;
    `idle_timeout` what it said in `Keep-Alive: timeout=`, seconds or None.
    """

    status: int
    headers: list[Header]
    length: int
    keep_alive: bool
    idle_timeout: float | None


def is_head_start(data: bytes | bytearray) -> bool:
    """Whether `data`, which has no complete head yet, may become one: fails early instead of waiting for more."""
    return data[:7] == _START[: len(data)]


def response_head(data: bytes, end: int, to_head: bool, max_headers: int) -> ResponseHead:
    """Read the response head `data[:end]`, blank line included; `to_head` says that the request was HEAD.

    Raises UpstreamProtocolError where RFC 9112 section 6 calls it invalid or ambiguous.
    """
    start = _STATUS_LINE.match(data)
    if start is None:
        raise UpstreamProtocolError("the status line is not valid")
    last = end - 2
    lines = data.count(b"\r\n", 0, last) - 1
    if lines > max_headers:
        raise UpstreamProtocolError(f"more than {max_headers} headers")
    headers: list[Header] = _FIELD_LINE.findall(data, start.end(), last)
    if len(headers) != lines:
        raise UpstreamProtocolError("a header line is not valid")
    status = int(start[2])
    minor = start[1]
    framing = [(name.lower(), value) for name, value in headers if len(name) in _FRAMING_NAME_LENGTHS]
    length = _body_length(status, minor, framing, to_head)
    keep_alive, idle_timeout = (minor == b"1", None) if not framing else _persistence(minor, framing)
    if length == UNTIL_CLOSE:
        keep_alive = False
    return ResponseHead(status, headers, length, keep_alive, idle_timeout)


def _body_length(status: int, minor: bytes, framing: list[Header], to_head: bool) -> int:
    """How long the body is (RFC 9112 section 6.3), in its order of precedence."""
    stated: bytes | None = None
    coding: bytes | None = None
    for name, value in framing:
        if name == b"content-length":
            if stated is not None:
                raise UpstreamProtocolError("more than one content-length")
            stated = value
        elif name == b"transfer-encoding":
            if coding is not None:
                raise UpstreamProtocolError("more than one transfer-encoding")
            coding = value
    bodiless = status < 200 or status == 204
    if coding is not None:
        if bodiless or minor == b"0":
            raise UpstreamProtocolError("transfer-encoding where there can be none")
        if stated is not None:
            raise UpstreamProtocolError("both transfer-encoding and content-length")
        if coding.lower() != b"chunked":
            raise UpstreamProtocolError("a transfer-encoding other than chunked")
    if stated is not None and (not stated.isdigit() or len(stated) > 18):
        raise UpstreamProtocolError("content-length is not a number")
    if bodiless:
        if stated is not None and int(stated):
            raise UpstreamProtocolError(f"a content-length in a {status} answer")
        return 0
    if to_head or status == 304:
        return 0
    if coding is not None:
        return CHUNKED
    return UNTIL_CLOSE if stated is None else int(stated)


def _persistence(minor: bytes, framing: list[Header]) -> tuple[bool, float | None]:
    """Whether the connection may be used again (RFC 9112 section 9.3), and for how long it says so."""
    options: list[bytes] = []
    idle_timeout: float | None = None
    for name, value in framing:
        if name == b"connection":
            options += [option.strip() for option in value.lower().split(b",")]
        elif name == b"keep-alive":
            for parameter in value.lower().split(b","):
                key, _, number = parameter.strip().partition(b"=")
                if key == b"timeout" and number.isdigit() and len(number) <= 9:
                    idle_timeout = float(number)
    if not options:
        return minor == b"1", idle_timeout
    if b"close" in options:
        return False, None
    return minor == b"1" or b"keep-alive" in options, idle_timeout
