"""One HTTP/2 connection to an instance: `h2` knows the protocol, this moves its bytes and finds the streams.

All bytes that `h2` produces reach the transport in the same turn of the loop, so a cancelled call can never tear a
frame out of the stream of frames; and a stream that is given up is reset, so the instance stops sending.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

try:
    import h2.config
    import h2.connection
    import h2.errors
    import h2.events
    import h2.exceptions
    import h2.settings
except ImportError as error:
    raise ImportError("HTTP/2 needs the package `h2`: pip install 'fastapi-mesh[http2]'") from error

from fastapi_mesh.core.events import TrailersDropped
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamProtocolError
from fastapi_mesh.wire.fields import end_to_end
from fastapi_mesh.wire.h2.goaway import GoawayFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.wire.h2.goaway import Goaway
    from fastapi_mesh.wire.h2.stream import Stream

STREAM_WINDOW = 256 * 1024
"""Bytes of one body that may wait to be read; the instance stops sending at that many (RFC 9113 section 5.2)."""
CONNECTION_WINDOW = 1 << 30
"""The window of the whole connection: so large that one slow reader never holds up the others."""
MOST_STREAMS = 100
"""Streams at once on one connection, or fewer if the instance says so."""
PROBE_TIMEOUT = 5.0
"""Seconds that an instance gets to answer a ping after a call timed out; then the connection is taken for dead."""
MOST_UNSENT = 4 * 1024 * 1024
"""Bytes that may wait in the socket: more than our own back-pressure allows is an instance that floods us."""
CLOSE_TIMEOUT = 2.0
"""Seconds that a closed connection may take to flush and to say goodbye in TLS."""

_STATUS = re.compile(rb"[1-9][0-9]{2}")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 section 5.6.2, in lower case (RFC 9113 section 8.2.1)


class H2Connection(asyncio.Protocol):
    """Speaks HTTP/2 as a client. `ready` is done once the instance has sent its settings, or failed to.

    `on_idle` is called when the last stream has ended, `on_lost` when the connection is gone.
    """

    def __init__(
        self,
        on_idle: Callable[[H2Connection], object],
        on_lost: Callable[[H2Connection], object],
        observer: Observer | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.closing = False
        self.lost = False
        self.idle_timer: asyncio.TimerHandle | None = None
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._observer = observer
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._write_paused = False
        self._probe: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._goaways = GoawayFilter()
        # Malformed heads are our business: h2 would end the whole connection for one of them.
        config = h2.config.H2Configuration(client_side=True, header_encoding=None, validate_inbound_headers=False)
        self._h2 = h2.connection.H2Connection(config)

    # What the wire asks for.

    @property
    def in_use(self) -> int:
        return len(self._streams)

    @property
    def free(self) -> int:
        """How many more streams may be opened now."""
        if self.closing or not self.ready.done():
            return 0
        return min(MOST_STREAMS, self._h2.remote_settings.max_concurrent_streams) - len(self._streams)

    def open(self, stream: Stream, headers: list[Header], *, end: bool) -> None:
        """Open `stream` with a request head. Raises UpstreamConnectionError where nothing can have been sent."""
        try:
            stream.id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream.id, headers, end_stream=end)
        except h2.exceptions.ProtocolError as error:  # no ids left, or the connection is closing
            self.close()
            raise UpstreamConnectionError(f"the connection takes no more requests: {error}") from error
        stream.connection = self
        self._streams[stream.id] = stream
        stream.sent = end
        self._flush()

    def room(self, stream: Stream) -> int:
        """Bytes that may be sent on `stream` now."""
        if self._write_paused:
            return 0
        return max(0, min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size))

    def send_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if data:
            self._h2.send_data(stream.id, data, end_stream=end)
        elif end:
            self._h2.end_stream(stream.id)
        stream.sent = end
        self._flush()

    def acknowledge(self, stream: Stream, size: int) -> None:
        """`size` bytes were read: let the instance send as many more."""
        self._h2.acknowledge_received_data(size, stream.id)
        self._flush()

    def reset(self, stream: Stream, code: h2.errors.ErrorCodes = h2.errors.ErrorCodes.CANCEL) -> None:
        """Tell the instance that nobody wants the rest of `stream` (RFC 9113 section 5.4.2)."""
        if self._streams.pop(stream.id, None) is None:
            return
        try:
            self._h2.reset_stream(stream.id, code)
        except h2.exceptions.ProtocolError:  # the connection is closing anyway, or the stream was never known
            self._finish()
            return
        self._acknowledge_rest(stream)
        self._finish()

    def probe(self) -> None:
        """Find out with a ping whether the instance is still there."""
        if self._probe is None and not self.closing:
            self._h2.ping(b"fastmesh")
            self._flush()
            self._probe = self._loop.call_later(PROBE_TIMEOUT, self._dead)

    def close(self) -> None:
        """Take no further stream; close the connection when the last one has ended."""
        self.closing = True
        self._finish()

    def abort(self, error: UpstreamConnectionError) -> None:
        """End every stream with an error like `error`, and the connection."""
        self.closing = True
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # somebody may have stopped waiting for it
        for stream in tuple(self._streams.values()):
            stream.lose(type(error)(str(error)))
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit it
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.abort(UpstreamConnectionError("the instance does not offer HTTP/2 in TLS (ALPN)"))
            return
        codes = h2.settings.SettingCodes
        settings = {
            codes.ENABLE_PUSH: 0,
            codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            codes.MAX_HEADER_LIST_SIZE: h2.connection.H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
        }
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        data, goaways = self._goaways.feed(data)
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self.abort(UpstreamProtocolError(f"the instance broke HTTP/2: {error}"))
            return
        for event in events:
            self._take(event)
        for goaway in goaways:
            self._take_goaway(goaway)
        self._flush()
        if self._transport is not None and self._transport.get_write_buffer_size() > MOST_UNSENT:
            self.abort(UpstreamProtocolError("the instance asks for more answers than it reads"))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_writers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost = True
        for timer in (self._probe, self._linger, self.idle_timer):
            if timer is not None:
                timer.cancel()
        text = "the connection was closed" if exc is None else f"the connection was lost: {exc}"
        self.abort(UpstreamConnectionError(text))
        self._on_lost(self)

    # Private.

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._take_data(event)
            case h2.events.ResponseReceived():
                self._take_head(event)
            case h2.events.StreamEnded():
                self._take_end(event)
            case h2.events.StreamReset():
                self._take_reset(event)
            case h2.events.WindowUpdated():
                self._wake_writers()
            case h2.events.RemoteSettingsChanged():
                if not self.ready.done():
                    self.ready.set_result(None)
                    self._on_idle(self)
                self._wake_writers()
            case h2.events.TrailersReceived():
                if self._observer is not None and (stream := self._streams.get(event.stream_id)) is not None:
                    self._observer(TrailersDropped(stream.service))

    def _take_data(self, event: h2.events.DataReceived) -> None:
        size = event.flow_controlled_length or 0
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._h2.acknowledge_received_data(size, event.stream_id)
        else:
            stream.on_data(event.data or b"", size)

    def _take_head(self, event: h2.events.ResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        try:
            status, headers = _read_head(event.headers or ())
            stream.on_head(status, headers)
        except ValueError as error:
            stream.lose(UpstreamProtocolError(f"the response head is not valid: {error}"))

    def _take_end(self, event: h2.events.StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        if stream.sent:
            del self._streams[stream.id]
        else:  # the answer is complete before the request is, which then need not be sent (RFC 9113 section 8.1)
            self.reset(stream)
        stream.on_end()
        self._finish()

    def _take_reset(self, event: h2.events.StreamReset) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        code = event.error_code
        refused = code == h2.errors.ErrorCodes.REFUSED_STREAM  # RFC 9113 section 8.7: it was not processed
        name = code.name if isinstance(code, h2.errors.ErrorCodes) else code
        self._acknowledge_rest(stream)
        stream.lose(UpstreamConnectionError(f"the instance reset the stream ({name})"), sent=not refused)
        self._finish()

    def _take_goaway(self, goaway: Goaway) -> None:
        """No new streams; those above the last id were not processed (RFC 9113 section 6.8), the others go on."""
        self.closing = True
        for stream in [each for each in self._streams.values() if each.id > goaway.last_stream_id]:
            del self._streams[stream.id]
            stream.lose(UpstreamConnectionError("the instance is going away"), sent=False)
        self._finish()

    def _acknowledge_rest(self, stream: Stream) -> None:
        """What nobody will read any more still counts against the connection's window."""
        unread = stream.take_unread()
        if unread:
            self._h2.acknowledge_received_data(unread, stream.id)

    def _wake_writers(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.on_writable()

    def _finish(self) -> None:
        """After a stream has ended: send what that produced, and close or rest if it was the last one."""
        self._flush()
        if self._streams or self._transport is None:
            return
        if not self.closing:
            self._on_idle(self)
        elif not self._transport.is_closing():
            try:
                self._h2.close_connection()
            except h2.exceptions.ProtocolError:  # it is closed already, in h2's eyes
                self._transport.abort()
                return
            self._flush()
            self._transport.close()
            self._linger = self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _dead(self) -> None:
        self.abort(UpstreamConnectionError(f"the instance did not answer a ping for {PROBE_TIMEOUT:g} s"))


def _read_head(fields: Iterable[tuple[bytes, bytes]]) -> tuple[int, list[Header]]:
    """Status and headers of a response head. Raises ValueError for what RFC 9113 section 8.3.2 calls malformed."""
    status = 0
    headers: list[Header] = []
    for name, value in fields:
        if name[:1] == b":":
            if name != b":status" or status or headers or _STATUS.fullmatch(value) is None:
                raise ValueError(f"{bytes(name)!r} has no place or no value")
            status = int(value)
        elif _NAME.fullmatch(name) is None:
            raise ValueError(f"{bytes(name)!r} is no header name")
        else:
            headers.append((bytes(name), bytes(value)))
    if not status:
        raise ValueError("it has no status")
    return status, end_to_end(headers)
