"""A client's connection to which a response's head and the beginning of its body go out in one piece.

uvicorn writes the head by itself, and each write is a system call: for a short answer the second one costs as much as
all layers of a gateway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_HEAD = b"HTTP/1.1 "


class JoinedTransport:
    """What a RequestResponseCycle needs of a transport. A head waits for what follows, until the loop's next turn.

    So an answer whose body is there is one write, and the head of one whose body is yet to come (an event stream) is
    hardly later than without.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send it, after what is held back; hold it back if it is a head and nothing is."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        elif data.startswith(_HEAD):
            self._held = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what is held back."""
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(held)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection when all is sent."""
        self.flush()
        self._transport.close()
