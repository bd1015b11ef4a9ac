"""The frames of a WebSocket towards a service: websockets' Sans-I/O ClientProtocol (extra `ws`), bytes in and out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.websocket.closes import INVALID_DATA, NO_STATUS, Close
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from websockets.frames import Frame

    from fastapi_mesh.core.message import Header

NEEDS_WS = "WebSockets through a gateway need the package `websockets`: pip install 'fastapi-mesh[ws]'"
SLICE = 64 * 1024
"""Bytes that are read into frames at a time, which bounds how many messages wait to be passed on."""
_TEXT, _BINARY, _CONTINUATION, _CLOSE = 1, 2, 0, 8
_OURS = b"sec-websocket-"
_logger = logging.getLogger("fastapi_mesh.gateway.frames")
_logger.setLevel(logging.INFO)  # at DEBUG websockets formats every frame


class Frames:
    """One WebSocket, seen from the client's end of the connection to the service.

    Made with what the handshake offers: `subprotocols` in order of preference, and permessage-deflate (RFC 7692) with
    `compression`. `max_message` is the most bytes of a message from the service. Raises ConfigurationError without the
    extra `ws`.

    `closed` is the service's Close frame once it has come, `fault` the Close frame that a broken rule made us send.
    """

    __slots__ = ("_is_text", "_message", "_protocol", "closed", "fault", "headers")

    def __init__(self, subprotocols: Sequence[str], *, max_message: int, compression: bool) -> None:
        try:
            from websockets.client import ClientProtocol
            from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
            from websockets.typing import Subprotocol
            from websockets.uri import WebSocketURI
        except ImportError as error:
            raise ConfigurationError(NEEDS_WS) from error
        deflate = ClientPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        self._protocol = ClientProtocol(
            WebSocketURI(False, "service", 80, "/", ""),
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            extensions=[deflate] if compression else None,
            max_size=max_message,
            logger=_logger,
        )
        fields = self._protocol.connect().headers.raw_items()
        self.headers: list[Header] = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        self.headers += [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in fields
            if name.lower().startswith("sec-websocket-")
        ]
        self._message = bytearray()
        self._is_text = False
        self.closed: Close | None = None
        self.fault: Close | None = None

    def open(self, headers: Iterable[Header]) -> str | None:
        """Take the headers of the service's 101; returns the subprotocol it chose. Raises ValueError for a wrong one
        (RFC 6455 section 4.1): another key's accept, a subprotocol or an extension that was not offered.
        """
        from websockets.datastructures import Headers
        from websockets.http11 import Response

        fields = Headers([("Connection", "Upgrade"), ("Upgrade", "websocket")])
        for name, value in headers:
            if name.lower().startswith(_OURS):
                fields[name.decode("latin-1")] = value.decode("latin-1")
        self._protocol.receive_data(Response(101, "Switching Protocols", fields).serialize())
        self._protocol.events_received()
        if self._protocol.handshake_exc is not None:
            raise ValueError(str(self._protocol.handshake_exc)) from self._protocol.handshake_exc
        return self._protocol.subprotocol

    @property
    def is_open(self) -> bool:
        """Whether messages may be sent: neither side has closed."""
        return self._protocol.state.name == "OPEN"

    def feed(self, data: bytes) -> list[str | bytes]:
        """Take at most `SLICE` bytes from the service; returns the messages that became complete."""
        self._protocol.receive_data(data)
        messages: list[str | bytes] = []
        for event in self._protocol.events_received():
            self._take(event, messages)  # type: ignore[arg-type] # after the handshake all events are frames
        if self._protocol.parser_exc is not None and self.fault is None and self.closed is None:
            sent = self._protocol.close_sent
            self.fault = Close(INVALID_DATA if sent is None else sent.code)
        return messages

    def _take(self, frame: Frame, messages: list[str | bytes]) -> None:
        opcode = frame.opcode
        if opcode == _CLOSE:
            close = self._protocol.close_rcvd
            self.closed = Close(NO_STATUS) if close is None else Close(close.code, close.reason)
        elif opcode in (_TEXT, _BINARY, _CONTINUATION) and self.fault is None:
            if opcode != _CONTINUATION:
                self._is_text = opcode == _TEXT
                if frame.fin:
                    self._complete(frame.data, messages)
                    return
            self._message += frame.data
            if frame.fin:
                content, self._message = bytes(self._message), bytearray()
                self._complete(content, messages)

    def _complete(self, content: bytes | bytearray | memoryview, messages: list[str | bytes]) -> None:
        if not self._is_text:
            messages.append(bytes(content))
            return
        try:
            messages.append(str(content, "utf-8"))
        except UnicodeDecodeError:
            self.fault = Close(INVALID_DATA)
            self._protocol.fail(INVALID_DATA, "a text message is not UTF-8")

    def send(self, message: str | bytes) -> None:
        """A message for the service; nothing once either side has closed."""
        if self.is_open:
            if isinstance(message, str):
                self._protocol.send_text(message.encode())
            else:
                self._protocol.send_binary(message)

    def ping(self) -> None:
        if self.is_open:
            self._protocol.send_ping(b"")

    def close(self, close: Close) -> None:
        """Our Close frame, unless one was sent."""
        if not self.is_open:
            return
        if close.code == NO_STATUS:
            self._protocol.send_close()
        else:
            self._protocol.send_close(close.code, close.reason)

    def outgoing(self) -> bytes:
        """What is to be written to the service, b"" for nothing: frames of ours, pongs, answers to its Close."""
        return b"".join(self._protocol.data_to_send())
