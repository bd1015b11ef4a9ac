"""A request at the transformers: shown to them as they want it, and put together again for the service."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from fastapi_mesh.api_gateway.buffer import WITHOUT_LIMIT
from fastapi_mesh.api_gateway.client import Client
from fastapi_mesh.api_gateway.headers import check_host
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.request_id import REQUEST_ID, accept
from fastapi_mesh.api_gateway.transform.body import TooLongError, UnreadableError, decoded, read_request, resumed
from fastapi_mesh.api_gateway.transform.fields import Fields
from fastapi_mesh.api_gateway.transform.limits import RequestTooLongError, RequestUnreadableError, UnsendableError
from fastapi_mesh.api_gateway.transform.messages import GatewayRequest
from fastapi_mesh.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable
    from typing import ClassVar

    from fastapi_mesh.api_gateway.exchange import Exchange

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING = frozenset({b"content-length", b"expect"})
OF_THE_BODY = frozenset(
    {b"content-digest", b"content-encoding", b"content-md5", b"digest", b"etag", b"last-modified", b"repr-digest"}
)
"""What a message says of its body, true no more when that is another one (RFC 9110 section 8.8, RFC 9530)."""


class AmbiguousTargetError(GatewayRefusalError):
    """A client's path with dot segments in disguise, put into another path by a transformer."""

    status: ClassVar[int] = 400
    reason: ClassVar[str] = "ambiguous-path"


class Incoming:
    """One request. `asked` is what transformers see; `load` reads its body; `apply` changes the exchange."""

    __slots__ = ("_body", "_limit", "_loaded", "asked", "exchange")

    def __init__(self, exchange: Exchange, limit: int) -> None:
        self.exchange = exchange
        self._limit = limit
        self._body = exchange.body
        self._loaded: bytes | None = None
        asked = GatewayRequest.of(
            exchange.method.decode("latin-1"), exchange.path, exchange.query, Fields.of(exchange.headers)
        )
        asked.client = exchange.origin
        asked.scheme = exchange.origin.scheme
        asked.principal = exchange.principal
        asked.route = exchange.route.config
        asked.request_id = exchange.context.request_id
        asked.is_websocket = exchange.scope["type"] == "websocket"
        if self._body != b"":
            asked.later(self.load)
        self.asked = asked

    async def load(self) -> None:
        """Read the body, if that hasn't been tried; what is too long or can't be decoded stays as it is."""
        if not self.asked.is_open:
            return
        raw = await self._raw()
        if raw is None:
            self.asked.put(None, RequestTooLongError(self._limit))
            return
        try:
            self.asked.put(decoded(raw, self.asked.headers.get("content-encoding", ""), self._limit))
        except TooLongError:
            self.asked.put(None, RequestTooLongError(self._limit))
        except UnreadableError as why:
            self.asked.put(None, RequestUnreadableError(f"The request's body can't be read: {why}."))

    async def _raw(self) -> bytes | None:
        """The body as it came, None where it is too long; the exchange keeps all of it either way."""
        body = self._body
        if isinstance(body, bytes):
            return body if len(body) <= self._limit else None
        if isinstance(body, Client) and body.length > self._limit:
            return None
        timeout = self.exchange.context.policy.timeout or WITHOUT_LIMIT
        try:
            self._loaded = await read_request(body, self._limit, timeout)
        except TooLongError as error:
            self.exchange.body = resumed(error.read, body)
            return None
        self.exchange.body = self._loaded
        return self._loaded

    def apply(self) -> None:
        """Make the exchange what the transformers have made of it. Raises UnsendableError."""
        asked, exchange = self.asked, self.exchange
        if asked.is_websocket:
            _check_handshake(asked)
        method = asked.method.encode("latin-1", "replace")
        if method != exchange.method:
            if not _METHOD.fullmatch(asked.method) or asked.method in ("CONNECT", "TRACE"):
                raise UnsendableError(f"{asked.method!r:.40} is no method of a request to a service")
            exchange.method = method
        if asked.target_changed:
            exchange.target = self._target()
        if asked.headers.changed:
            self._apply_headers()
        if asked.body_changed:
            self._replace_body(self._body)
        elif self._loaded is not None:
            kept = [header for header in exchange.headers if header[0] not in _FRAMING]
            exchange.headers = [*kept, (b"content-length", b"%d" % len(self._loaded))]
            self._is_small()

    def _target(self) -> bytes:
        asked, route = self.asked, self.exchange.route
        raw = asked.raw_path
        if raw != self.exchange.path and _climbs(raw):
            if _climbs(self.exchange.path):
                raise AmbiguousTargetError("The path can be read in more than one way.")
            raise UnsendableError(f"the path {asked.path!r:.200} has dot segments or a NUL in it")
        try:
            return route.target(raw, asked.query.encode())
        except (InvalidRequestError, IndexError) as error:  # a path with less segments than `rewrite` wants
            raise UnsendableError(f"the path {asked.path!r:.200} doesn't fit the route: {error}") from error

    def _apply_headers(self) -> None:
        headers, context = list(self.asked.headers.raw), self.exchange.context
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            raise UnsendableError("a request has exactly one Host")
        if hosts[0] != self.exchange.host:
            try:
                check_host(hosts[0])
            except InvalidRequestError as error:
                raise UnsendableError(str(error)) from error
        said = next((value for name, value in headers if name == REQUEST_ID), None)
        context.request_id = accept(said) or context.request_id
        self.exchange.headers = headers

    def _replace_body(self, before: bytes | AsyncIterable[bytes]) -> None:
        exchange, content = self.exchange, self.asked.body
        if isinstance(before, Client):
            before.answered()  # what is left of it is of no interest
        gone = _FRAMING | OF_THE_BODY
        exchange.headers = [header for header in exchange.headers if header[0] not in gone]
        if content:
            exchange.headers.append((b"content-length", b"%d" % len(content)))
        exchange.body = content
        self._is_small()

    def _is_small(self) -> None:
        """The body is here now, so that the call has its deadline again."""
        exchange = self.exchange
        policies = exchange.route.policies.get(exchange.service)
        if policies is not None and exchange.context.policy is policies[1]:
            exchange.context.policy = policies[0]


def _check_handshake(asked: GatewayRequest) -> None:
    """RFC 6455 section 4.1: a GET without a body, and fields that are the gateway's own towards the service."""
    if asked.method != "GET" or asked.body_changed:
        raise UnsendableError("the handshake of a WebSocket is a GET without a body")
    if any(name.startswith(b"sec-websocket-") for name, _ in asked.headers.raw):
        raise UnsendableError("Sec-WebSocket-* belong to one connection: they are not a transformer's")


def _climbs(raw: bytes) -> bool:
    """Whether some server could read dot segments, or an end, in this path."""
    path = unquote_to_bytes(raw).replace(b"\\", b"/")
    return b"\0" in path or any(each.partition(b";")[0] in (b".", b"..") for each in path.split(b"/"))
