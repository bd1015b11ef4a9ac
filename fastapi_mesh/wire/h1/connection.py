"""One HTTP/1.1 connection to an instance: bytes in, messages out, one exchange at a time."""

from __future__ import annotations

import asyncio
import select
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import httptools

from fastapi_mesh.core.events import ExcessDropped, TrailersDropped
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamProtocolError
from fastapi_mesh.wire.h1.body import SWITCHED
from fastapi_mesh.wire.h1.framing import CHUNKED, UNTIL_CLOSE, idle_timeout, is_persistent, response_framing

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.wire.h1.body import Exchange
    from fastapi_mesh.wire.h1.pool import Pool

CLOSE_TIMEOUT = 2.0
"""Seconds that a closed connection may take to flush and to say goodbye in TLS."""


@dataclass(slots=True)
class Counters:
    """What happened on all connections of one wire since the start."""

    created: int = 0
    reused: int = 0
    stale_retries: int = 0
    trailers_dropped: int = 0
    excess_dropped: int = 0
    excess_of: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the pools and connections of one wire share. Durations are seconds, sizes bytes."""

    keepalive_expiry: float
    max_connections: int | None
    max_header_bytes: int
    max_headers: int
    observer: Observer | None
    counters: Counters


_POLL = getattr(select, "poll", None)  # Windows has none
_START = b"HTTP/1."
_END = b"\r\n\r\n"


class H1Connection(asyncio.Protocol):
    """The protocol of one connection. The pool owns it while it is idle, an Exchange while it is in use.

    `expires` is monotonic seconds after which the pool no longer uses it; `reused` is True from the second exchange
    on; `closed` once no exchange can begin on it; `counted` while it takes a place in the pool.
    """

    __slots__ = (
        "_complete",
        "_eof",
        "_exchange",
        "_feed",
        "_head_bytes",
        "_head_size",
        "_headers",
        "_interim",
        "_keep_alive",
        "_length",
        "_linger",
        "_overhead",
        "_parser",
        "_poll",
        "_reading_paused",
        "_settings",
        "_suspect",
        "closed",
        "counted",
        "expires",
        "keep_for",
        "made",
        "pool",
        "reused",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.pool = pool
        self.made = False
        self.counted = True
        self.closed = False
        self.reused = False
        self.expires = 0.0
        self.keep_for = settings.keepalive_expiry
        self.write_paused = False
        self._settings = settings
        self._exchange: Exchange | None = None
        self._headers: list[Header] = []
        self._complete = False
        self._length = 0
        self._head_bytes = 0
        self._head_size = 0
        self._overhead = 0
        self._keep_alive = False
        self._suspect = False
        self._interim = False
        self._reading_paused = False
        self._eof = False
        self._linger: asyncio.TimerHandle | None = None
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._reset_parser()

    # What the pool and the exchange ask for.

    def begin(self, exchange: Exchange, data: bytes) -> None:
        """Send the request head, and the body if it is short, and expect an answer."""
        self._exchange = exchange
        self._complete = False
        if self._suspect or exchange.to_head:
            self._suspect = exchange.to_head
            self._interim = False
            self._head_bytes = 0
            self._head_size = 0
        self.transport.write(data)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def usable(self) -> bool:
        """Whether a request may go out on it now: it is open, and nothing has come that nobody asked for.

        What the kernel has and the loop has not brought yet would be taken for the answer to that request: excess of
        the answer before it, which may be somebody else's answer by another's making (response splitting), a 408 of a
        server that waited too long, or the end of the connection.
        """
        if self.closed or self.transport.is_closing():
            return False
        if self._poll is None or not self._poll(0):
            return True
        if self.transport.get_extra_info("ssl_object") is not None:
            self.close()  # it may be a record that is none of the application's, and the loop would say nothing
        return False  # else the loop is about to bring it, and `data_received` or `eof_received` ends the connection

    def close(self) -> None:
        """Close it in good order: what was written goes out, TLS says goodbye; after 2 s it is cut."""
        self._retire()
        if self.made:
            self.transport.close()
            self._linger = self.pool.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def cut(self, error: UpstreamConnectionError) -> None:
        """Cut it, failing the exchange with `error`."""
        if self._exchange is None:
            self.abort()
        else:
            self._exchange.lose(error)

    def abort(self) -> None:
        """Cut it."""
        self._retire()
        if self.made:
            self.transport.abort()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit it
        self.made = True
        if self.closed:
            self.transport.abort()
        elif _POLL is not None and (socket := transport.get_extra_info("socket")) is not None:
            poll = _POLL()
            poll.register(socket.fileno(), select.POLLIN)
            self._poll = poll.poll

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if not self.closed:  # unsolicited: whatever it is, it would be taken for the next answer
                self.pool.withdraw(self)
                self.abort()
                self._tell_excess(self.pool.service)
            return
        if exchange.status == SWITCHED:
            exchange.parts.append(data)
            self._pace(exchange, len(data))
            return
        before = len(exchange.parts)
        try:
            if not exchange.started:
                exchange.started = True
                if not data.startswith(_START):
                    self._doubt_start(data)
                elif len(data) > self._settings.max_header_bytes:
                    self._suspect = True
            self._feed(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switched(exchange, data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._complete:
                self._finish(exchange, excess=True)
                return
            cause = error.__context__
            if not isinstance(cause, UpstreamProtocolError):
                cause = UpstreamProtocolError(f"the answer is not valid HTTP: {error}")
            exchange.lose(cause)
        except UpstreamProtocolError as error:
            exchange.lose(error)
        else:
            if self._complete:
                doubtful = exchange.to_head or data[-1] in b"\r\n"
                self._finish(exchange, excess=doubtful and self._ends_late(exchange, data))
            else:
                self._progress(exchange, len(data), before)

    def eof_received(self) -> None:
        self._eof = self._ended_properly()
        if self._exchange is None and not self.closed:
            self.pool.withdraw(self)
            self._retire()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        exchange = self._exchange
        self._retire()
        if exchange is not None:
            status = exchange.status
            if self._eof and status and (status == SWITCHED or self._length == UNTIL_CLOSE):
                exchange.on_complete()
            else:
                exchange.stale = self.reused and not exchange.started
                text = "the connection was closed" if exc is None else f"the connection was lost: {exc}"
                exchange.lose(UpstreamConnectionError(text))
        del self._parser, self._feed  # it holds this protocol: nothing is left for the garbage collector
        if self.made:
            self.made = False
            self.pool.lost(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.wake_sender()

    # What the parser reports, within one `_feed`. An error raised here ends the exchange.

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamProtocolError("data after the end of the message")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not value or value[-1] <= 32:  # nothing, or a blank that is not part of the value (RFC 9112 section 5.1)
            # llhttp takes "chunked<HTAB>" for another coding; then so must we.
            value = value.rstrip(b" " if len(name) == 17 else b" \t")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        headers = self._headers
        parser = self._parser
        settings = self._settings
        status: int = parser.get_status_code()
        length, keep_alive = response_framing(status, headers, exchange.to_head)
        self._length = length
        if self._suspect or length < 0 or status < 200 or len(headers) > settings.max_headers:
            self._judge(exchange, status, parser.get_http_version())
            if status < 200:
                return
        else:
            self._keep_alive = parser.should_keep_alive()
        if keep_alive is not None and (timeout := idle_timeout(keep_alive)) is not None:
            # A little earlier than the instance will close it, so that a request does not meet the FIN.
            self.keep_for = min(settings.keepalive_expiry, timeout * 0.8)
        exchange.status = status
        exchange.headers = headers
        if exchange.sender is not None:
            exchange.on_early_head()

    def on_body(self, data: bytes) -> None:
        self._exchange.parts.append(data)  # type: ignore[union-attr] # the parser is fed only for an exchange

    def on_message_complete(self) -> None:
        if self._exchange.status:  # type: ignore[union-attr] # as above; 0 while there were only 1xx
            self._complete = True

    # Private.

    def _reset_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def _ended_properly(self) -> bool:
        """Whether the end of the connection is the end of a body that lasts until then (RFC 9112 section 9.8).

        Over TLS that takes a close_notify, else somebody may have cut it; OpenSSL reads b"" after one. After 101 the
        other protocol knows its own end.
        """
        tls = self.transport.get_extra_info("ssl_object")
        if tls is None or self._exchange is None or self._exchange.status == SWITCHED:
            return True
        try:
            return bool(tls.read(1) == b"")
        except ssl.SSLError:
            return False

    def _retire(self) -> None:
        self.closed = True
        self._exchange = None

    def _doubt_start(self, data: bytes) -> None:
        """The first bytes are not those of HTTP/1: llhttp would skip empty lines, and speaks RTSP and ICE too."""
        if not _START.startswith(data):
            raise UpstreamProtocolError("the answer does not start like HTTP/1.x")
        self._suspect = True

    def _judge(self, exchange: Exchange, status: int, version: str) -> None:
        """What llhttp lets pass in unusual heads (RFC 9112 sections 2.3, 6.1, 6.3; RFC 9110 sections 7.8, 15.2)."""
        headers = self._headers
        settings = self._settings
        if version not in ("1.0", "1.1"):
            raise UpstreamProtocolError(f"HTTP/{version} is not spoken here")
        if len(headers) > settings.max_headers:
            raise UpstreamProtocolError(f"more than {settings.max_headers} headers")
        self._head_size += 16 + sum(len(name) + len(value) + 4 for name, value in headers)
        if self._head_size > settings.max_header_bytes:
            raise UpstreamProtocolError(f"the head is longer than {settings.max_header_bytes} bytes")
        if self._length == CHUNKED:
            if version == "1.0":
                raise UpstreamProtocolError("transfer-encoding in HTTP/1.0")
            self._overhead = 0
        self._headers = []  # trailers come the same way, even after a head that has no body, and are no part of it
        self._keep_alive = self._length != UNTIL_CLOSE and is_persistent(headers, version)
        if status >= 200:
            self._complete = exchange.to_head
            return
        self._suspect = self._interim = True  # data_received does not see where the next head in its bytes starts
        if status < 100:
            raise UpstreamProtocolError(f"{status} is not a status")
        if status == 100:
            exchange.on_continue()
        elif status == SWITCHED:
            if not exchange.upgrade:
                raise UpstreamProtocolError("101 Switching Protocols that nobody asked for")
            if not self._parser.should_upgrade():
                raise UpstreamProtocolError("101 Switching Protocols without Upgrade")
            exchange.status = status
            exchange.headers = headers

    def _progress(self, exchange: Exchange, size: int, before: int) -> None:
        """`size` bytes more, and the message is not complete yet."""
        limit = self._settings.max_header_bytes
        if not exchange.status:
            self._suspect = True  # the head comes in parts: its size is to be added up
            self._head_bytes += size
            if self._head_bytes > limit:
                exchange.lose(UpstreamProtocolError(f"the head is longer than {limit} bytes"))
            return
        if len(exchange.parts) > before or self._length != CHUNKED:
            self._overhead = 0
        else:
            self._overhead += size
            if self._overhead > limit:
                exchange.lose(UpstreamProtocolError("the chunk extensions or trailers are too long"))
                return
        self._pace(exchange, size)

    def _pace(self, exchange: Exchange, size: int) -> None:
        if exchange.on_progress(self._length, size) and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _finish(self, exchange: Exchange, *, excess: bool) -> None:
        """The message is complete: give the connection back, then tell whoever waits for it.

        With `excess` there came more than the message has. What is over is neither a part of it nor an answer (RFC 9112
        section 6.3), and the connection ends with it.
        """
        self._exchange = None
        if self._length == CHUNKED and self._headers:
            self._settings.counters.trailers_dropped += 1
            if self._settings.observer is not None:
                self._settings.observer(TrailersDropped(exchange.service))
        if exchange.to_head:
            self._reset_parser()  # it waits for a body that doesn't come
        if self._reading_paused:
            self.resume_reading()
        if excess:
            self.abort()
            self._tell_excess(exchange.service)
            if not self._length:
                exchange.parts.clear()
        elif exchange.sending:
            self.abort()
        elif self._keep_alive and self.keep_for > 0:
            self.pool.release(self)
        else:
            self.close()
        exchange.on_complete()

    def _ends_late(self, exchange: Exchange, data: bytes) -> bool:
        """Whether more than the message is in `data` that llhttp says nothing of: empty lines, a body after a HEAD.

        Asked when `data` ends in CR or LF, and for HEAD. Empty lines after a body of such are not seen, and do no harm.
        """
        if self._length > 0:
            return not data.endswith(exchange.parts[-1])
        if exchange.to_head and (
            exchange.parts or data[-1] != 10 or (not self._interim and 0 <= data.find(_END) != len(data) - 4)
        ):
            return True
        return len(data) >= 5 and (data[-4:] != _END or data[-5] in b"\r\n")

    def _tell_excess(self, service: str) -> None:
        counters = self._settings.counters
        counters.excess_dropped += 1
        first = service not in counters.excess_of
        if first and len(counters.excess_of) < 1000:
            counters.excess_of.add(service)
        if self._settings.observer is not None:
            self._settings.observer(ExcessDropped(service, self.pool.authority, first))

    def _switched(self, exchange: Exchange, rest: bytes) -> None:
        """101: from here on the connection belongs to another protocol (RFC 9110 section 7.8)."""
        if rest:
            exchange.parts.append(rest)
        exchange.on_upgrade()
