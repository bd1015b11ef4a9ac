"""uvicorn as a gateway by itself uses it: the strict protocol, a limit of connections, and a word when it serves.

Needs the `server` extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

import uvicorn

from fastapi_mesh.api_gateway.joined import JoinedTransport
from fastapi_mesh.api_gateway.strict import StrictHttpProtocol
from fastapi_mesh.core.problem import document

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable

    from uvicorn._types import HTTPScope
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from fastapi_mesh.core.instance import Message, Receive, Send

TOO_MANY = "too-many-connections"
_REASONS = {400: "invalid-request", 408: "header-timeout", 431: "header-too-large"}
LINGER = 1.0
"""Seconds for which what a refused client still sends is read, so that it gets the answer."""
_RETRY_AFTER = 1.0
"""Seconds after which a client without a place may try again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take: connections at once (None: any), bytes of a request's head, and seconds for it.

    `refused` hears the status and reason of each refusal.
    """

    connections: int | None
    max_head: int
    head_timeout: float
    refused: Callable[[int, str], object]


class GatewayProtocol(StrictHttpProtocol):
    """One client's connection, with limits: on connections, and on the size and time of a request's head (slowloris).

    They cost next to nothing per request: a head that came whole is not looked at. A head is refused when more than
    its largest size has come after its first piece, so up to twice that is taken.
    """

    limits: ClassVar[Limits]

    cycle: RequestResponseCycle | None  # type: ignore[assignment] # as it is before the first request
    scope: HTTPScope | None  # type: ignore[assignment] # likewise

    _head: HTTPScope | None = None
    _head_size = 0
    _ended = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        limits = self.limits
        self._joined = JoinedTransport(transport, self.loop)
        self._whole = limits.max_head
        if limits.connections is not None and len(self.connections) > limits.connections:
            self.app = self._busy
            self.ws_protocol_class = None  # a handshake is answered as what it also is: a GET request
        self._timer = self.loop.call_later(limits.head_timeout, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        if len(data) > self._whole:
            self._take_in_pieces(data)
            return
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and not cycle.response_complete:
            if self._timer is not None:
                self._stop_timer()
        elif not self._has_ended():
            self._take_unfinished(len(data))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._whole = self.limits.max_head
        if (cycle := self.cycle) is not None:
            cycle.transport = self._joined  # type: ignore[assignment] # all that a cycle needs of one

    def on_response_complete(self) -> None:
        self._joined.flush()  # the answer to HEAD
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "this is not a valid HTTP/1.1 request")

    # Private.

    def _take_in_pieces(self, data: bytes) -> None:
        """So that no more of a head is taken than twice its largest size; of a body, all at once."""
        if self._ended:
            return
        if self._is_in_body():
            self._whole = len(data)
            self.data_received(data)
            if self._whole == len(data):  # not refused meanwhile
                self._whole = self.limits.max_head
            return
        start = 0
        while start < len(data) and not self._has_ended():
            end = start + self._whole
            self.data_received(data[start:end])
            start = end

    def _take_unfinished(self, received: int) -> None:
        """Something came that is no whole head: its beginning, line ends, or the rest of a body that nobody wants."""
        if self._is_in_head():
            if self._head is not self.scope:  # this piece may have had whole requests in it before this head
                self._head, self._head_size = self.scope, 0
            else:
                self._head_size += received
            self._whole = self.limits.max_head - self._head_size
            if self._whole <= 0:
                self._answer(431, f"the head of a request has at most {self.limits.max_head} bytes here")
                return
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.head_timeout, self._too_slow)

    def _has_ended(self) -> bool:
        """Nothing more is to be read by this object."""
        return self._ended or self.transport.is_closing() or self not in self.connections

    def _is_in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.more_body

    def _is_in_head(self) -> bool:
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:  # of a request before this one
            self._timer = self.loop.call_later(self.limits.head_timeout, self._too_slow)
        elif self._is_in_head():
            self._answer(408, f"the head of a request must come within {self.limits.head_timeout:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _answer(self, status: int, detail: str) -> None:
        """Answer where there is no request for the application, and close; never into another request's answer."""
        self._stop_timer()
        reason = _REASONS[status]
        self.limits.refused(status, reason)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            cycle.keep_alive = False  # what is being answered comes first, and nothing after it
            self.flow.pause_reading()
            return
        if cycle is not None and not cycle.response_complete:  # it waits for the rest of a body that won't come
            cycle.disconnected = True
            cycle.message_event.set()
        _, headers, body = document(status, reason, detail)
        headers = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode(), *[b": ".join(each) for each in headers]]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self._ended, self._whole = (
            True,
            -1,
        )  # and what still comes is read away: closing at once would reset the answer (RFC 9112 9.6)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER, self.transport.close)

    async def _busy(self, scope: Message, receive: Receive, send: Send) -> None:
        self.limits.refused(503, TOO_MANY)
        status, headers, body = document(
            503, TOO_MANY, "this gateway has as many connections as it takes", retry_after=_RETRY_AFTER
        )
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def new_protocol(limits: Limits) -> type[GatewayProtocol]:
    """The protocol of a gateway with these limits, for `uvicorn.Config(http=...)`."""
    return type("GatewayHttpProtocol", (GatewayProtocol,), {"limits": limits})


class GatewayServer(uvicorn.Server):
    """uvicorn's server, which says when it has begun to serve."""

    def __init__(self, config: uvicorn.Config, *, on_start: Callable[[], Awaitable[object]]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            await self._on_start()
