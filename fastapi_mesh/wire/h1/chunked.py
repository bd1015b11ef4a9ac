"""The chunked transfer coding of responses (RFC 9112 section 7.1), decoded by llhttp and watched by us."""

from __future__ import annotations

import httptools

from fastapi_mesh.exceptions import UpstreamProtocolError

_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"\r\n\r\n"


class ChunkedDecoder:
    """Decodes one chunked body after the other; made once per connection, `start` begins a body.

    The parser only ever sees a head of our own, so that the framing of the message is decided in one place
    (`framing.response_head`). llhttp is strict about chunk sizes, extensions and line ends; what it lets pass, and is
    caught here, are empty lines after the end of the message, and extensions and trailers without bound.

    `complete` is True once the last byte of the message was fed, `trailers` counts the trailer fields of the message.
    """

    __slots__ = ("_overhead", "_overhead_limit", "_parser", "_tail", "complete", "parts", "trailers")

    def __init__(self, overhead_limit: int) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._overhead_limit = overhead_limit
        self._overhead = 0
        self._tail = b""
        self.complete = False
        self.trailers = 0
        self.parts: list[bytes] = []

    def start(self, parts: list[bytes]) -> None:
        """Begin a body; its decoded bytes are appended to `parts`."""
        self.complete = False
        self.parts = parts
        self._parser.feed_data(_HEAD)
        self.trailers = 0
        self._overhead = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Decode `data`. Raises UpstreamProtocolError."""
        before = len(self.parts)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise UpstreamProtocolError("data after the end of the message") from error
        except httptools.HttpParserError as error:
            raise UpstreamProtocolError(f"the chunked body is not valid: {error}") from error
        tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self.complete:
            if tail[-4:] != _END or tail[0] in b"\r\n":
                raise UpstreamProtocolError("data after the end of the message")
            return
        self._tail = tail
        if len(self.parts) > before:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > self._overhead_limit:
                raise UpstreamProtocolError("the chunk extensions or trailers are too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer field: counted and dropped, as RFC 9110 section 6.5.1 allows."""
        self.trailers += 1

    def on_message_begin(self) -> None:
        if self.complete:
            raise UpstreamProtocolError("data after the end of the message")

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)

    def on_message_complete(self) -> None:
        self.complete = True
