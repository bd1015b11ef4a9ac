"""A WebSocket into an ASGI application of this process: RFC 6455 bytes on one side, ASGI events on the other.

Framing is `websockets`' Sans-I/O ServerProtocol (extra `ws`). Extensions are never negotiated, pings are answered, and
the close codes of either side reach the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import ConfigurationError, UpstreamConnectionError
from fastapi_mesh.wire.asgi_exchange import HIGH_WATER, MOST_CHUNKS, Exchange
from fastapi_mesh.wire.fields import end_to_end

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.server import ServerProtocol

    from fastapi_mesh.core.clock import Clock, Timer
    from fastapi_mesh.core.instance import Message
    from fastapi_mesh.core.message import Header, Request

logger = logging.getLogger("fastapi_mesh.asgi")

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of the longest message that is let in (uvicorn's default); a longer one closes with 1009."""
CLOSE_TIMEOUT = 10.0
"""Seconds to wait for the peer's close frame after ours (uvicorn's default)."""

_TEXT, _BINARY, _CONTINUATION, _CLOSE = 1, 2, 0, 8
_NORMAL, _GOING_AWAY, _NO_STATUS, _ABNORMAL, _INVALID_DATA, _INTERNAL_ERROR = 1000, 1001, 1005, 1006, 1007, 1011


def open_websocket(request: Request, scope: Message, clock: Clock) -> Response | WebSocketExchange:
    """An exchange for a valid handshake (RFC 6455 section 4.2.1), else the answer that refuses it (400, 405, 426).

    `scope` is the HTTP scope, which becomes a WebSocket scope. Raises ConfigurationError without the extra `ws`.
    """
    try:
        from websockets.datastructures import Headers
        from websockets.http11 import Request as Handshake
        from websockets.protocol import State
        from websockets.server import ServerProtocol
    except ImportError as error:
        raise ConfigurationError(
            "WebSockets into an application of this process need the package `websockets`: "
            "pip install 'fastapi-mesh[ws]'"
        ) from error
    if scope["method"] != "GET":
        return Response.of(405, [(b"allow", b"GET"), (b"content-length", b"0")], b"")
    fields = Headers([("Connection", "Upgrade"), ("Upgrade", "websocket")])
    for name, value in scope["headers"]:
        fields[name.decode("latin-1")] = value.decode("latin-1")
    protocol = ServerProtocol(state=State.OPEN, max_size=MAX_MESSAGE)
    answer = protocol.accept(Handshake(scope["path"], fields))
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.raw_items()]
    if answer.status_code != 101:
        return Response.of(answer.status_code, end_to_end(headers), bytes(answer.body or b""))
    offered = ",".join(fields.get_all("Sec-WebSocket-Protocol")).split(",")
    scope["type"] = "websocket"
    scope["scheme"] = "ws"
    scope["subprotocols"] = [name.strip() for name in offered if name.strip()]
    scope["extensions"] = {"websocket.http.response": {}}
    del scope["method"]
    return WebSocketExchange(request, scope, clock, protocol, headers)


class WebSocketExchange(Exchange):
    """A handshake in an application and, once accepted, the byte stream that follows `101 Switching Protocols`.

    A refusal before `websocket.accept` is a 403, or what the application says in `websocket.http.response.*`. An
    application that returns closes with 1000, one that fails with 1011.
    """

    __slots__ = (
        "_arrived",
        "_disconnect",
        "_fragments",
        "_handshake",
        "_inbox",
        "_inbox_size",
        "_is_text",
        "_protocol",
        "_taken",
        "_timer",
    )

    def __init__(
        self, request: Request, scope: Message, clock: Clock, protocol: ServerProtocol, handshake: list[Header]
    ) -> None:
        super().__init__(request, scope, clock)
        self._protocol = protocol
        self._handshake = [field for field in handshake if field[0] != b"date"]
        self._inbox: deque[Message] = deque([{"type": "websocket.connect"}])
        self._inbox_size = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._disconnect: Message | None = None
        self._fragments: list[bytes] = []
        self._is_text = False
        self._timer: Timer | None = None

    # The application's side.

    async def receive(self) -> Message:
        """ASGI receive: connect, each message, and the disconnect with the code of whoever closed first."""
        while not self._inbox:
            if self._disconnect is not None:
                return self._disconnect
            self._arrived.clear()
            await self._listen(self._arrived)
        message = self._inbox.popleft()
        self._inbox_size -= _size(message)
        self._taken.set()
        return message

    async def send(self, message: Message) -> None:
        """ASGI send. Raises ConnectionAbortedError once the peer has closed (an OSError, as WebSocket 2.4 wants it)."""
        kind = message["type"]
        if kind.startswith("websocket.http.response."):
            await super().send({**message, "type": kind.removeprefix("websocket.")})
            if self._finished:
                self._hang_up(_ABNORMAL, "")
        elif self.upgrade is not None:
            await self._send_open(kind, message)
        elif self._head is None and kind == "websocket.accept":
            self._check_connected()
            self._accept(message)
        elif self._head is None and kind == "websocket.close":
            self._check_connected()
            self._head = (403, [(b"content-length", b"0")])
            self._finished = True
            self._hang_up(_ABNORMAL, "")
            self._wake()
        else:
            raise RuntimeError(f"the application sent {kind!r} where it has no place")

    def _accept(self, message: Message) -> None:
        headers = [*self._handshake, *end_to_end(message.get("headers", ()))]
        subprotocol = message.get("subprotocol")
        if subprotocol:
            headers.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        self.upgrade = self
        self._idle_timeout = None
        self._hold = False
        self._head = (101, headers)
        self._wake()

    async def _send_open(self, kind: str, message: Message) -> None:
        if self._disconnect is not None or self._gone:
            raise ConnectionAbortedError("the WebSocket is closed")
        if kind == "websocket.send":
            data = message.get("bytes")
            if data is not None:
                self._protocol.send_binary(data)
            else:
                self._protocol.send_text(message["text"].encode())
            self._flush()
            await self._wait_vacant()
        elif kind == "websocket.close":
            self._close(message.get("code", _NORMAL), message.get("reason") or "")
        else:
            raise RuntimeError(f"the application sent {kind!r} where it has no place")

    def _close(self, code: int, reason: str) -> None:
        """Start the closing handshake; the peer has `CLOSE_TIMEOUT` seconds to answer it."""
        if code == _NO_STATUS:
            self._protocol.send_close()
        else:
            self._protocol.send_close(code, reason)
        self._flush()
        self._hang_up(code, reason)
        self._timer = self._clock.call_later(CLOSE_TIMEOUT, self._end)

    def app_ended(self, error: BaseException | None) -> None:
        if self.upgrade is None:
            super().app_ended(error)
            return
        if self._disconnect is not None or self._gone:
            if error is not None:
                logger.debug("%s ended after its WebSocket: %r", self.service, error)
        elif error is None:
            self._close(_NORMAL, "")
        elif isinstance(error, asyncio.CancelledError):
            self._close(_GOING_AWAY, "")
        else:
            logger.error("%s failed in an open WebSocket", self.service, exc_info=error)
            self._close(_INTERNAL_ERROR, "")

    # The caller's side: a byte stream that carries frames.

    async def read(self) -> bytes:
        data = await super().read()
        if self.upgrade is not None and self._chunks:
            data = b"".join((data, *self._chunks))
            self._chunks.clear()
            self._size = 0
        self._taken.set()
        return data

    async def write(self, data: bytes) -> None:
        """Take bytes from the peer, waiting while the application is behind; after the end they go nowhere."""
        if self._gone:
            raise self._error or UpstreamConnectionError(
                "the WebSocket was closed", service=self.service, request_sent=True
            )
        if self._finished:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self._take(cast("Frame", event))  # the protocol began after the handshake
        self._flush()
        if self._protocol.parser_exc is not None and self._protocol.close_sent is not None:
            self._hang_up(self._protocol.close_sent.code, self._protocol.close_sent.reason)
        while self._is_behind():
            self._taken.clear()
            await self._taken.wait()

    def _is_behind(self) -> bool:
        """Whether an open connection has messages waiting for the application, or answers to pings for the peer."""
        if self._gone or self._finished:
            return False
        behind = self._inbox_size >= HIGH_WATER or len(self._inbox) >= MOST_CHUNKS
        return behind or len(self._chunks) >= 4 * MOST_CHUNKS

    def _take(self, frame: Frame) -> None:
        if frame.opcode == _CLOSE:
            close = self._protocol.close_rcvd
            assert close is not None
            self._hang_up(close.code, close.reason)
        elif frame.opcode in (_TEXT, _BINARY, _CONTINUATION) and self._disconnect is None:
            if frame.opcode != _CONTINUATION:
                self._is_text = frame.opcode == _TEXT
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                content = b"".join(self._fragments)
                self._fragments.clear()
                self._take_message(content)

    def _take_message(self, content: bytes) -> None:
        message: Message = {"type": "websocket.receive"}
        if self._is_text:
            try:
                message["text"] = content.decode()
            except UnicodeDecodeError:
                self._protocol.fail(_INVALID_DATA, "a text message is not UTF-8")
                self._hang_up(_INVALID_DATA, "a text message is not UTF-8")
                return
        else:
            message["bytes"] = content
        self._inbox.append(message)
        self._inbox_size += _size(message)
        self._arrived.set()

    def _flush(self) -> None:
        """Pass on what the protocol wants to say; an empty piece is the end of the stream."""
        for data in self._protocol.data_to_send():
            if data:
                self._chunks.append(data)
                self._size += len(data)
            else:
                self._end()
        self._wake()

    def _hang_up(self, code: int, reason: str) -> None:
        """No further message for the application; it reads those that are here, then that the connection is closed."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._arrived.set()

    def _end(self) -> None:
        """Both sides have closed, or the peer did not answer our close: end the byte stream."""
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
        self._end_lifetime()
        self._taken.set()
        self._wake()

    def abandon(self, *, told: bool = False) -> None:
        if self._disconnect is not None:  # the application knows, and may need its time
            self._finished = True
        self._hang_up(_ABNORMAL, "")
        super().abandon(told=told)
        self._end()


def _size(message: Message) -> int:
    content = message.get("bytes") or message.get("text") or b""
    return len(content)
