"""uvicorn's httptools protocol for a server that is a gateway: what it would let pass, or lose, in silence.

- Trailer fields are dropped. uvicorn adds those that come together with the head to the *headers* of the request, where
  an `Authorization` or `Cookie` among them looks as if a proxy in front had let it pass (RFC 9110 section 6.5.1).
- A request that offers an upgrade (`Upgrade: h2c`, as Java's client does) keeps its body and what follows it.
- An absolute-form target keeps its authority, which counts over `Host` (RFC 9112 section 3.2.2).
- An HTTP/1.0 client is not answered in chunks, which it does not know (RFC 9112 section 6.1), nor by `100 Continue`,
  which it would take for the answer (RFC 9110 section 15.2).
- What is no HTTP is not answered in the middle of another request's answer, nor before it.

Needs the `server` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGISendEvent


class _Sealed(list[tuple[bytes, bytes]]):
    """The headers after their end: trailers come the same way, and nothing is added."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drop it."""


class _CycleOf10(RequestResponseCycle):
    """A request over HTTP/1.0 and its answer: one without a length ends with the connection."""

    _until_close = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self._until_close = True
                self.chunked_encoding = False
        elif self._until_close and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class StrictHttpProtocol(HttpToolsProtocol):
    """One client's connection, for `uvicorn.Config(http=StrictHttpProtocol)`."""

    _offers_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self.parser = httptools.HttpRequestParser(self)  # without uvicorn's "dangerous leniencies"

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse()

    # What the parser reports.

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers_upgrade = True  # and is parsed once more, without the offer
            return
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()
        self.headers = _Sealed(self.headers)
        if self.scope["http_version"] == "1.0" and type(self.cycle) is RequestResponseCycle:
            self.cycle.__class__ = _CycleOf10  # it has just been made, by its name, and has not run yet
        if self.url[:1] != b"/" and b"://" in self.url:
            target = self.url.partition(b"?")[0].partition(b"#")[0]
            self.scope["raw_path"] = self.root_path.encode("ascii") + target

    def on_message_complete(self) -> None:
        if not self._offers_upgrade:
            super().on_message_complete()

    # Private.

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offers_upgrade:
                    if self._should_upgrade():
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

    def _refuse(self) -> None:
        """Answer and close; but let an earlier request's answer come first, and never write into one."""
        cycle = self._latest()
        if cycle is None or cycle.response_complete:
            self.send_400_response("Invalid HTTP request received.")
        elif not cycle.more_body:  # the fault is in what follows a request that is being answered
            cycle.keep_alive = False
            self.flow.pause_reading()
        elif cycle.response_started or self.pipeline:  # half an answer is on its way: it must not look complete
            self.transport.abort()
        else:
            self.send_400_response("Invalid HTTP request received.")

    def _latest(self) -> RequestResponseCycle | None:
        """The latest request on this connection, None before the first."""
        return self.cycle
