"""Framing of HTTP/1.1 messages (RFC 9112): writes request heads, judges response heads, refuses what is ambiguous.

Pure functions; nothing here knows a socket. llhttp, which reads the answers, is strict about their bytes (line ends,
field names, controls, `Content-Length`, chunk sizes) but lets some framing pass that RFC 9112 forbids; what it lets
pass is refused by `judge_head`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 section 5.6.2."""
_PATH = re.compile(rb"/[!\"$-~\x80-\xff]*")
"""Origin-form (RFC 9112 section 3.2.1) without a fragment. Bytes above 0x7f mean nothing in framing and pass."""
_colon = b": ".join
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_LENGTH_EXPECTED = frozenset({b"POST", b"PUT", b"PATCH"})
_FRAMING_NAMES = frozenset({10, 14, 17})
"""Lengths of `connection` and `keep-alive`, `content-length`, `transfer-encoding`: cheaper to ask than the names."""


class FieldNames(dict[bytes, int]):
    """What to do with a request header, by its name as given; learns, up to 1024 names, which are valid tokens."""

    def __missing__(self, name: bytes) -> int:
        if _TOKEN.fullmatch(name) is None:
            raise InvalidRequestError(f"{name[:64]!r} is not a header name")
        kind = _KINDS.get(name.lower(), _FORWARD)
        if len(self) < _NAME_MEMORY:
            self[name] = kind
        return kind


def request_head(
    request: Request, base_path: bytes, host_line: bytes, names: FieldNames
) -> tuple[bytes, int, bool, bool]:
    """Serialise the head of `request`, blank line included. Raises InvalidRequestError for whatever is ambiguous.

    Returns it with the size of the body in bytes or CHUNKED, whether to wait for `100 Continue` before the body, and
    whether 101 is a valid answer. Hop-by-hop headers are dropped (RFC 9110 section 7.6.1) and the framing is our own;
    `host_line` is used where the request has no `Host`, which comes first (RFC 9110 section 7.2).
    """
    method = request.method
    target = request.target
    if base_path and target != b"*":
        target = base_path + target
    lines = [method + b" " + target + b" HTTP/1.1", host_line]
    special: list[tuple[int, Header]] = []
    for header in request.headers:
        kind = names[header[0]]
        if not kind:
            lines.append(_colon(header))
        elif kind != _DROP:
            special.append((kind, header))
    if special or request.body != b"" or method in _LENGTH_EXPECTED:
        length, expects, upgrade = _add_special(request, lines, special)
    else:
        length, expects, upgrade = 0, False, False
    if method not in _METHODS and (_TOKEN.fullmatch(method) is None or method == b"CONNECT"):
        raise InvalidRequestError(f"{method[:64]!r} is no method of a request to a service", service=request.service)
    if _PATH.fullmatch(target) is None and (target != b"*" or method != b"OPTIONS"):
        raise InvalidRequestError("the target is not a path", service=request.service)
    # RFC 9110 section 5.5 forbids these three in values and lets other controls pass. (`find` is memchr, `count` and
    # `in` are many times slower.)
    text = b"".join(lines)
    if text.find(b"\n") >= 0 or text.find(b"\r") >= 0 or text.find(b"\0") >= 0:
        raise InvalidRequestError("a header value has CR, LF or NUL in it", service=request.service)
    lines += (b"", b"")
    return b"\r\n".join(lines), length, expects, upgrade


def _add_special(request: Request, lines: list[bytes], special: list[tuple[int, Header]]) -> tuple[int, bool, bool]:
    """Add the headers that are the wire's business to `lines`. Returns length, expects, upgrade."""
    hosts = 0
    stated: bytes | None = None
    coded = expects = upgrade = False
    for kind, header in special:
        value = header[1]
        if kind == _HOST:
            hosts += 1
            lines[1] = _colon(header)
        elif kind == _LENGTH:
            if stated is not None:
                raise InvalidRequestError("more than one content-length", service=request.service)
            stated = value
        elif kind == _CODING:
            coded = True
        elif kind == _UPGRADE:
            upgrade = True
            lines.append(_colon(header))
        elif request.body != b"":  # RFC 9110 section 10.1.1: no expectation without content
            expects = value.lower() == b"100-continue"
            lines.append(_colon(header))
    if hosts > 1:
        raise InvalidRequestError("more than one host header", service=request.service)
    if upgrade:
        lines.append(b"connection: upgrade")
    body = request.body
    if isinstance(body, bytes):
        length = len(body)
        if length or request.method in _LENGTH_EXPECTED:
            lines.append(b"content-length: %d" % length)
        return length, False, upgrade
    if stated is None:
        lines.append(b"transfer-encoding: chunked")
        return CHUNKED, expects, upgrade
    if coded or not stated.isdigit() or len(stated) > 18:
        raise InvalidRequestError("the length of the body is ambiguous", service=request.service)
    lines.append(b"content-length: " + stated)
    return int(stated), expects, upgrade


def response_framing(status: int, headers: list[Header], to_head: bool) -> tuple[int, bytes | None]:
    """How long the body of a response is, in bytes, or CHUNKED or UNTIL_CLOSE (RFC 9112 section 6.3).

    `to_head` says that the request was HEAD. Also returns the value of `Keep-Alive`, found on the way. Raises
    UpstreamProtocolError where the RFC calls it invalid or where two readers could see two messages.
    """
    stated: bytes | None = None
    coding: bytes | None = None
    keep_alive: bytes | None = None
    for name, value in headers:
        if len(name) in _FRAMING_NAMES:
            lower = name.lower()
            if lower == b"content-length":
                if stated is not None:
                    raise UpstreamProtocolError("more than one content-length")
                stated = value
            elif lower == b"transfer-encoding":
                if coding is not None:
                    raise UpstreamProtocolError("more than one transfer-encoding")
                coding = value
            elif lower == b"keep-alive":
                keep_alive = value
    if coding is None and stated is not None and status >= 200 and status != 204 and status != 304 and not to_head:
        return _number(stated), keep_alive
    return _unusual_length(status, stated, coding, to_head), keep_alive


def _unusual_length(status: int, stated: bytes | None, coding: bytes | None, to_head: bool) -> int:
    bodiless = status < 200 or status == 204
    if coding is not None:
        if bodiless:
            raise UpstreamProtocolError(f"transfer-encoding in a {status} answer")
        if stated is not None:
            raise UpstreamProtocolError("both transfer-encoding and content-length")
        if coding.lower() != b"chunked":  # not even with a blank after it: llhttp takes that for another coding
            raise UpstreamProtocolError("a transfer-encoding other than chunked")
    if stated is not None and _number(stated) and bodiless:
        raise UpstreamProtocolError(f"a content-length in a {status} answer")
    if bodiless or to_head or status == 304:
        return 0
    return UNTIL_CLOSE if coding is None else CHUNKED


def _number(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise UpstreamProtocolError("content-length is not a number")
    return int(value)


def is_persistent(headers: list[Header], version: str) -> bool:
    """Whether the sender of this head keeps the connection open (RFC 9112 section 9.3)."""
    options: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            options.update(option.strip() for option in value.lower().split(b","))
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


def idle_timeout(keep_alive: bytes) -> float | None:
    """Seconds from the value of `Keep-Alive: timeout=`, None where it doesn't say."""
    for parameter in keep_alive.lower().split(b","):
        key, _, number = parameter.strip().partition(b"=")
        if key == b"timeout" and number.isdigit() and len(number) <= 9:
            return float(number)
    return None
