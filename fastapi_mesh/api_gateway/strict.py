"""uvicorn's httptools protocol for a server that is a gateway: what it would let pass, or lose, in silence.

- Trailer fields are dropped. uvicorn adds those that come together with the head to the *headers* of the request, where
  an `Authorization` or `Cookie` among them looks as if a proxy in front had let it pass (RFC 9110 section 6.5.1).
- A request that offers an upgrade (`Upgrade: h2c`, as Java's client does) keeps its body and what follows it.
- The head has a largest size (431) and a longest time to come (408).
- An absolute-form target keeps its authority, which counts over `Host` (RFC 9112 section 3.2.2).
- A request that is no HTTP is not answered in the middle of another's answer, nor before it.

Needs the `server` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_PER_HEADER = 4
"""Bytes of a header line besides name and value: colon, space and CRLF."""
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class _HeadTooLargeError(Exception):
    """Leaves a parser's callback, which ends the parsing."""


class _Sealed(list[tuple[bytes, bytes]]):
    """The headers after their end: trailers come the same way, and nothing is added."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drop it."""


class StrictHttpProtocol(HttpToolsProtocol):
    """One client's connection. Subclass it for other limits: `max_head` in bytes, `head_timeout` in seconds."""

    max_head = 65_536
    head_timeout = 30.0

    _timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self.parser = httptools.HttpRequestParser(self)  # without uvicorn's "dangerous leniencies"
        self._in_head = True
        self._head_size = 0
        self._offers_upgrade = False
        self._timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_size += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            large = isinstance(error.__context__, _HeadTooLargeError)
            self.logger.warning("A request's head is too large." if large else "Invalid HTTP request received.")
            self._refuse(431 if large else 400)
            return
        if not self._in_head:
            self._stop_timer()
        elif self._head_size > self.max_head:
            self._refuse(431)
        elif self._head_size and self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    # What the parser reports.

    def on_headers_complete(self) -> None:
        if self._head_size > self.max_head and self._exact_size() > self.max_head:
            raise _HeadTooLargeError
        self._in_head = False
        if self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers_upgrade = True  # and is parsed once more, without the offer
            return
        super().on_headers_complete()
        self.headers = _Sealed(self.headers)
        if self.url[:1] != b"/" and b"://" in self.url:
            target = self.url.partition(b"?")[0].partition(b"#")[0]
            self.scope["raw_path"] = self.root_path.encode("ascii") + target

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_size = 0
        if not self._offers_upgrade:
            super().on_message_complete()

    # Private.

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offers_upgrade:
                    if self._should_upgrade():
                        self._stop_timer()
                        self.handle_websocket_upgrade()
                    return
                self._offers_upgrade = False
                data = self._without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            else:
                return

    def _without_offer(self) -> bytes:
        """The head again, as if the client had not offered to upgrade (RFC 9110 section 7.8 lets a server ignore it).

        The parser has checked it: no name or value has a line end in it.
        """
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _running(self) -> RequestResponseCycle | None:
        """The latest request on this connection, None before the first."""
        return self.cycle

    def _exact_size(self) -> int:
        """Bytes of the head alone; what was read may have had the body in it, or more requests."""
        return len(self.url) + sum(len(name) + len(value) + _PER_HEADER for name, value in self.headers)

    def _refuse(self, status: int) -> None:
        """Answer and close; but let an earlier request's answer come first, and never write into one."""
        cycle = self._running()
        if cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started):
            if self.pipeline:  # the fault is in the body of a request that waits behind another
                self.transport.abort()
                return
            reason = _REASONS[status]
            text = f"{reason}."
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{text}".encode())
            self.transport.close()
        elif cycle.more_body:  # half an answer is on its way: it must not look complete
            self.transport.abort()
        else:
            cycle.keep_alive = False
            self.flow.pause_reading()

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head_size:
            self._refuse(408)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def strict_protocol(*, max_head: int, head_timeout: float) -> type[StrictHttpProtocol]:
    """A protocol class with these limits, for `uvicorn.Config(http=...)`."""
    return type("GatewayHttpProtocol", (StrictHttpProtocol,), {"max_head": max_head, "head_timeout": head_timeout})
