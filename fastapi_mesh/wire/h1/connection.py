"""One HTTP/1.1 connection to an instance: bytes in, messages out, one exchange at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, cast

from fastapi_mesh.core.events import TrailersDropped
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamProtocolError
from fastapi_mesh.wire.h1.body import SWITCHED
from fastapi_mesh.wire.h1.chunked import ChunkedDecoder
from fastapi_mesh.wire.h1.framing import CHUNKED, is_head_start, response_head

if TYPE_CHECKING:
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.wire.h1.body import Exchange
    from fastapi_mesh.wire.h1.framing import ResponseHead
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


@dataclass(frozen=True, slots=True)
class Settings:
    """What the pools and connections of one wire share. Durations are seconds, sizes bytes."""

    keepalive_expiry: float
    max_connections: int | None
    max_header_bytes: int
    max_headers: int
    observer: Observer | None
    counters: Counters


class Phase(Enum):
    """What the next bytes on a connection are."""

    IDLE = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNKS = auto()
    UNTIL_CLOSE = auto()
    UPGRADED = auto()
    CLOSED = auto()


class H1Connection(asyncio.Protocol):
    """The protocol of one connection. The pool owns it while it is idle, an Exchange while it is in use.

    `expires` is monotonic seconds after which the pool no longer uses it; `reused` is True from the second exchange
    on; `closed` once no exchange can begin on it; `counted` while it takes a place in the pool.
    """

    __slots__ = (
        "_chunks",
        "_eof",
        "_exchange",
        "_head_bytes",
        "_keep_alive",
        "_linger",
        "_partial",
        "_phase",
        "_reading_paused",
        "_remaining",
        "_settings",
        "_transport",
        "closed",
        "counted",
        "expires",
        "keep_for",
        "made",
        "pool",
        "reused",
        "write_paused",
    )

    _transport: asyncio.Transport

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
        self._phase = Phase.IDLE
        self._exchange: Exchange | None = None
        self._chunks: ChunkedDecoder | None = None
        self._partial = bytearray()
        self._head_bytes = 0
        self._keep_alive = False
        self._remaining = 0
        self._reading_paused = False
        self._eof = False
        self._linger: asyncio.TimerHandle | None = None

    # What the pool and the exchange ask for.

    def begin(self, exchange: Exchange, data: bytes) -> None:
        """Send the request head, and the body if it is short, and expect an answer."""
        self._exchange = exchange
        self._phase = Phase.HEAD
        self._head_bytes = 0
        self._transport.write(data)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def usable(self) -> bool:
        return not self.closed and not self._transport.is_closing()

    def close(self) -> None:
        """Close it in good order: what was written goes out, TLS says goodbye; after 2 s it is cut."""
        self._retire()
        if self.made:
            self._transport.close()
            self._linger = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._transport.abort)

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
            self._transport.abort()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit it
        self.made = True
        if self.closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if not self.closed:  # unsolicited: whatever it is, it would be taken for the next answer
                self.pool.withdraw(self)
                self.abort()
            return
        try:
            if self._phase is Phase.HEAD:
                self._head_received(exchange, data)
            else:
                self._body_received(exchange, data)
        except UpstreamProtocolError as error:
            exchange.lose(error)

    def eof_received(self) -> None:
        self._eof = True
        if self._exchange is None and not self.closed:
            self.pool.withdraw(self)
            self._retire()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        exchange = self._exchange
        phase = self._phase
        self._retire()
        if exchange is not None:
            # Over TLS, eof_received means close_notify: without it the body may have been cut (RFC 9112 section 9.8).
            if self._eof and phase in (Phase.UNTIL_CLOSE, Phase.UPGRADED):
                exchange.on_complete()
            else:
                exchange.stale = self.reused and not exchange.started
                text = "the connection was closed" if exc is None else f"the connection was lost: {exc}"
                exchange.lose(UpstreamConnectionError(text))
        if self.made:
            self.made = False
            self.pool.lost(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.wake_sender()

    # Private.

    def _retire(self) -> None:
        self.closed = True
        self._phase = Phase.CLOSED
        self._exchange = None
        self._chunks = None  # the parser holds its decoder: break the cycle

    def _head_received(self, exchange: Exchange, data: bytes) -> None:
        exchange.started = True
        settings = self._settings
        while True:
            if self._partial:
                end = self._gather(data)
                if end:
                    data = bytes(self._partial)
                    self._partial.clear()
            else:
                end = data.find(b"\r\n\r\n") + 4
                if end == 3:
                    end = self._gather(data)
            if not end:
                return
            self._head_bytes += end
            if self._head_bytes > settings.max_header_bytes:
                raise UpstreamProtocolError(f"the head is longer than {settings.max_header_bytes} bytes")
            head = response_head(data, end, exchange.to_head, settings.max_headers)
            if head.status >= 200:
                break
            if head.status == SWITCHED:
                self._switch(exchange, head, data[end:])
                return
            if head.status == 100:
                exchange.on_interim()
            data = data[end:]
            if not data:
                return
        self._begin_body(exchange, head, data, end)

    def _gather(self, data: bytes) -> int:
        """Add `data` to a head that comes in parts; returns where the head ends, 0 while it doesn't."""
        partial = self._partial
        before = len(partial)
        ends_in_cr = partial[-1:] == b"\r"
        partial += data
        end = partial.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if end > 3:
            return end
        if not is_head_start(partial):
            raise UpstreamProtocolError("the answer does not start like HTTP/1.x")
        if data.count(b"\n") != data.count(b"\r\n") + (ends_in_cr and data[:1] == b"\n"):
            raise UpstreamProtocolError("a line of the head ends in a bare LF")
        if self._head_bytes + len(partial) > self._settings.max_header_bytes:
            raise UpstreamProtocolError(f"the head is longer than {self._settings.max_header_bytes} bytes")
        return 0

    def _begin_body(self, exchange: Exchange, head: ResponseHead, data: bytes, end: int) -> None:
        status, headers, length, keep_alive, idle_timeout = head
        self._keep_alive = keep_alive and not exchange.sending
        if idle_timeout is not None:
            # A little earlier than the instance will close it, so that a request does not meet the FIN.
            self.keep_for = min(self._settings.keepalive_expiry, idle_timeout * 0.8)
        exchange.on_head(status, headers)
        here = len(data) - end
        if here == length:
            if here:
                exchange.parts.append(data[end:])
            self._complete(exchange)
            return
        if length >= 0:
            self._phase = Phase.LENGTH
            self._remaining = length
        elif length == CHUNKED:
            self._phase = Phase.CHUNKS
            if self._chunks is None:
                self._chunks = ChunkedDecoder(self._settings.max_header_bytes)
            self._chunks.start(exchange.parts)
        else:
            self._phase = Phase.UNTIL_CLOSE
        if here:
            self._body_received(exchange, data[end:])
        if self._exchange is exchange:
            exchange.on_body_pending(length)

    def _body_received(self, exchange: Exchange, data: bytes) -> None:
        phase = self._phase
        if phase is Phase.LENGTH:
            self._remaining -= len(data)
            if self._remaining < 0:
                raise UpstreamProtocolError("data after the end of the message")
            exchange.parts.append(data)
            if not self._remaining:
                self._complete(exchange)
                return
        elif phase is Phase.CHUNKS:
            chunks = self._chunks
            assert chunks is not None
            chunks.feed(data)
            if chunks.complete:
                if chunks.trailers:
                    self._trailers_dropped(exchange)
                self._complete(exchange)
                return
            if not exchange.parts:
                return
        else:
            exchange.parts.append(data)
        if exchange.on_data(len(data)) and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _complete(self, exchange: Exchange) -> None:
        """The message is complete: give the connection back, then tell whoever waits for it."""
        self._exchange = None
        self._phase = Phase.IDLE
        self.resume_reading()
        if self._keep_alive and self.keep_for > 0:
            self.pool.release(self)
        elif exchange.sending or self.write_paused:
            self.abort()
        else:
            self.close()
        exchange.on_complete()

    def _switch(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        """101: from here on the connection belongs to another protocol (RFC 9110 section 7.8)."""
        if not exchange.upgrade:
            raise UpstreamProtocolError("101 Switching Protocols that nobody asked for")
        self._phase = Phase.UPGRADED
        exchange.on_head(head.status, head.headers)
        if rest:
            exchange.parts.append(rest)
        exchange.upgraded()

    def _trailers_dropped(self, exchange: Exchange) -> None:
        self._settings.counters.trailers_dropped += 1
        if self._settings.observer is not None:
            self._settings.observer(TrailersDropped(exchange.service))
