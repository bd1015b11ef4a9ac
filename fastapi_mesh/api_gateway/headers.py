"""The header rules of a forwarded message: one pass over what came in, one over what goes back (RFC 9110, RFC 9112).

A request whose framing, host or header names could be read in two ways is refused, whatever the server in front made of
it: request smuggling needs two readers that disagree. Hop-by-hop fields, and those that `Connection` lists, end here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_mesh.core.message import Header

NO_BODY = -2
CHUNKED = -1
CLOSE = (b"connection", b"close")

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUE = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_HOST_BYTES = b"!$%&'()*+-.:;=[]_~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""What a host and port may consist of (RFC 3986 section 3.2.2); no comma, no userinfo, no space."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1. `TE` and `Trailer` go because trailers are not passed on.

`Proxy-Authorization` goes on, as with nginx and Envoy: to its clients a gateway is the origin server, no proxy (section
3.7), so that such credentials are the service's business.
"""

FORWARDING = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-prefix", b"x-forwarded-proto"}
)
RELATED = frozenset(
    {b"x-forwarded-port", b"x-forwarded-scheme", b"x-forwarded-server", b"x-forwarded-ssl", b"x-real-ip"}
)
"""What some proxies say of a client besides, and frameworks believe like the others (Rack, Spring; as in Traefik)."""
FOR_SERVICES = frozenset({b"grpc-timeout", b"x-envoy-expected-rq-timeout-ms", b"x-mesh-shadow", b"x-mesh-priority"})
"""What a service does less for. With a deadline of a few milliseconds anybody could make its calls fail, and so open
circuits for everybody (Envoy's edge drops its own from outside, too); who marks a request as a copy gets it half done.
And who is important is not for clients to say.
"""
_OURS = FORWARDING | RELATED | FOR_SERVICES | {b"x-request-id", b"x-mesh-timeout-ms", b"x-mesh-timeout-covers"}
_END_TO_END = _OURS | {b"host", b"content-length", b"via"}
"""What `Connection` can't remove: a client must not make us drop what a proxy in front of us said."""
_MANAGED = HOP_BY_HOP | _END_TO_END | {b"expect"}
_HARMLESS_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"Keep-Alive"})

_KEEP, _DROP, _HOST, _LENGTH, _CODING, _CONNECTION, _EXPECT, _REQUEST_ID, _FORWARDED, _UPPER = range(10)
_ATTEMPTS, _UPGRADE = 10, 11
_KINDS = dict.fromkeys(HOP_BY_HOP, _DROP) | dict.fromkeys(FORWARDING | RELATED | FOR_SERVICES, _FORWARDED)
_KINDS |= {
    b"connection": _CONNECTION,
    b"content-length": _LENGTH,
    b"expect": _EXPECT,
    b"host": _HOST,
    b"transfer-encoding": _CODING,
    b"upgrade": _UPGRADE,
    b"x-mesh-timeout-ms": _DROP,
    b"x-mesh-timeout-covers": _DROP,
    b"x-request-id": _REQUEST_ID,
}
_NAME_MEMORY = 1024
_VERSIONS = frozenset({*(f"1.{minor}" for minor in range(10)), "2", "2.0", "3", "3.0"})
"""What is HTTP with headers. httptools has "0.9" for a request line without a version, whatever comes after it."""
MAX_HEADERS = 1000
MAX_HEADER_BYTES = 256 * 1024
"""A hard limit, since not every server has one: uvicorn with httptools takes a head of any size."""


class HeadTooLargeError(InvalidRequestError):
    """The request has more headers, or more bytes in their values, than any gateway passes on (RFC 6585 section 5)."""

    status: ClassVar[int] = 431
    reason: ClassVar[str] = "request-header-fields-too-large"


class RequestNames(dict[bytes, int]):
    """What to do with a request's header, by its name; learns up to 1024 names that are in order, and as many hosts."""

    def __init__(self) -> None:
        super().__init__(_KINDS)
        self.hosts: set[bytes] = set()

    def __missing__(self, name: bytes) -> int:
        if name != name.lower():  # against the ASGI specification, yet some do
            return _UPPER
        if not name or name.translate(None, _TOKEN):
            raise InvalidRequestError("a header's name is not a token")
        if b"_" in name and name.replace(b"_", b"-") in _MANAGED:
            # CGI, WSGI and their kin can't tell `Transfer_Encoding` from `Transfer-Encoding`.
            raise InvalidRequestError(f"{name.decode()} looks like a header that must be unmistakable")
        if len(self) < _NAME_MEMORY:
            self[name] = _KEEP
        return _KEEP


class ResponseNames(dict[bytes, tuple[bytes, int]]):
    """A response header's name in lower case, and whether it goes on; learns up to 1024 names that are in order.

    `dropped` are names that do not, besides HOP_BY_HOP. Raises ValueError for what is no name.
    """

    def __init__(self, dropped: Iterable[bytes] = ()) -> None:
        super().__init__()
        self._dropped = HOP_BY_HOP | frozenset(dropped)

    def __missing__(self, name: bytes) -> tuple[bytes, int]:
        if not name or name.translate(None, _TOKEN):
            raise ValueError("a header's name is not a token")
        lowered = name.lower()
        kind = _DROP if lowered in self._dropped else _KEEP
        if lowered == b"connection":
            kind = _CONNECTION
        elif lowered == b"content-length":
            kind = _LENGTH
        elif lowered == b"x-mesh-attempts":
            kind = _ATTEMPTS
        if len(self) < _NAME_MEMORY:
            self[name] = (lowered, kind)
        return lowered, kind


class Head:
    """What one pass over a request's headers gives.

    `headers` is what goes on, in order; `length` the Content-Length, CHUNKED or NO_BODY; `forwarding` what came in of
    FORWARDING, RELATED and FOR_SERVICES, for trusted proxies only; `offers_upgrade` that there was an `Upgrade`.
    """

    __slots__ = ("expects_continue", "forwarding", "headers", "host", "length", "offers_upgrade", "request_id")

    def __init__(self, headers: list[Header], host: bytes, length: int) -> None:
        self.headers = headers
        self.host = host
        self.length = length
        self.expects_continue = False
        self.offers_upgrade = False
        self.request_id: bytes | None = None
        self.forwarding: list[Header] | None = None


def read_request(
    headers: Iterable[Header], http_version: str, names: RequestNames, authority: bytes | None = None
) -> Head:
    """Check and sort a request's headers. `authority` comes from an absolute-form target and replaces `Host`.

    Raises InvalidRequestError (400) for whatever can't be passed on in one unambiguous form, HeadTooLargeError (431).
    """
    if http_version not in _VERSIONS:
        raise InvalidRequestError("a version of HTTP that is not spoken here")
    received = headers if isinstance(headers, list) else list(headers)
    text = b"".join([value for _, value in received])
    if len(text) > MAX_HEADER_BYTES or len(received) > MAX_HEADERS:
        raise HeadTooLargeError("the request's headers are too many or too long")
    if text.translate(None, _VALUE):
        raise InvalidRequestError("a header's value has a control byte in it")
    kept: list[Header] = []
    head = Head(kept, b"", NO_BODY)
    host: bytes | None = None
    listed: list[bytes] | None = None
    for header in received:
        kind = names[header[0]]
        if kind == _KEEP:
            kept.append(header)
        elif kind == _HOST:
            if host is not None:
                raise InvalidRequestError("more than one Host header")
            host = header[1] if authority is None else authority
            kept.append((b"host", host))
        elif kind == _LENGTH:
            if head.length != NO_BODY:
                raise InvalidRequestError("more than one statement of the body's length")
            head.length = _content_length(header[1])
            kept.append(header)
        elif kind == _CODING:
            if head.length != NO_BODY:
                raise InvalidRequestError("more than one statement of the body's length")
            if header[1].lower() != b"chunked" or http_version == "1.0":
                raise InvalidRequestError("a Transfer-Encoding other than chunked")
            head.length = CHUNKED
        elif kind == _CONNECTION:
            if header[1] not in _HARMLESS_OPTIONS:
                listed = [*(listed or ()), *_options(header[1])]
        elif kind == _EXPECT:
            head.expects_continue = header[1].lower() == b"100-continue"
            kept.append(header)
        elif kind == _REQUEST_ID:
            head.request_id = header[1]
        elif kind == _FORWARDED:
            head.forwarding = [*(head.forwarding or ()), header]
        elif kind == _UPGRADE:
            head.offers_upgrade = True
        elif kind == _UPPER:
            return read_request([(name.lower(), value) for name, value in received], http_version, names, authority)
    if host is None:
        raise InvalidRequestError("no Host header")
    if host not in names.hosts:
        check_host(host)
        if len(names.hosts) < _NAME_MEMORY:
            names.hosts.add(host)
    head.host = host
    if listed is not None:
        head.headers = [header for header in kept if header[0] not in listed]
    return head


def read_response(status: int, headers: Sequence[Header], names: ResponseNames) -> list[Header]:
    """The headers of a response that go on: in order, duplicates kept, names in lower case.

    204 and 304 have no content, so a Content-Length there would only make servers wait for bytes (RFC 9110 section
    8.6 lets it be left out). Of several `x-mesh-attempts` the last counts: our mesh adds its own after what a gateway
    behind us may have said. Raises ValueError where a server in front could not send them.
    """
    if b"".join([value for _, value in headers]).translate(None, _VALUE):
        raise ValueError("a header's value has a control byte in it")
    kept: list[Header] = []
    listed: list[bytes] | None = None
    attempts: bytes | None = None
    for name, value in headers:
        lowered, kind = names[name]
        if kind == _KEEP or (kind == _LENGTH and status != 304 and status != 204):
            kept.append((lowered, value))
        elif kind == _CONNECTION and value not in _HARMLESS_OPTIONS:
            listed = [*(listed or ()), *_options(value)]
        elif kind == _ATTEMPTS:
            attempts = value
    if listed is not None:
        kept = [header for header in kept if header[0] not in listed]
    if attempts is not None:
        kept.append((b"x-mesh-attempts", attempts))
    return kept


def expects_continue(headers: Iterable[Header]) -> bool:
    """Whether a client may hold its body back. When it gets a final answer instead of `100 Continue` it may never send
    it (RFC 9110 section 10.1.1), and what it sends next would be taken for it; so that answer must end the connection.
    """
    return any(name.lower() == b"expect" and b"100-continue" in value.lower() for name, value in headers)


def _options(value: bytes) -> list[bytes]:
    """The field names that a Connection header lists for removal."""
    names = [option.strip().lower() for option in value.split(b",")]
    return [name for name in names if name not in _END_TO_END]


def _content_length(value: bytes) -> int:
    """1*DIGIT (RFC 9110 section 8.6), at most 18 of them: no sign, no list, no space."""
    if not value.isdigit() or len(value) > 18:
        raise InvalidRequestError("a Content-Length that is no number")
    return int(value)


def check_host(host: bytes) -> None:
    """Host = uri-host [":" port] (RFC 9110 section 7.2); empty, lists and userinfo are refused."""
    if not host or host.translate(None, _HOST_BYTES):
        raise InvalidRequestError("a Host header that is no host")
    if b":" in host or b"[" in host or b"]" in host:
        name, bracket, port = host.rpartition(b"]") if host[:1] == b"[" else host.partition(b":")
        if bracket == b"]":
            valid = name.count(b"[") == 1 and b"]" not in name and (port == b"" or port[:1] == b":")
            port = port[1:]
        else:
            valid = bool(name) and b"[" not in host and b"]" not in host
        if not valid or (port and not port.isdigit()):
            raise InvalidRequestError("a Host header that is no host and port")
