"""What is left of a connection after `101 Switching Protocols`: a duplex byte stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import UpstreamConnectionError

if TYPE_CHECKING:
    from fastapi_mesh.wire.h1.body import Exchange


class UpgradedStream:
    """A ByteStream over the exchange that was upgraded.

    Reading has no idle timeout, since a quiet stream is no fault; a write that the peer does not take for
    `idle_timeout` fails, and so does the whole stream after `max_stream_duration`.
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def read(self) -> bytes:
        return await self._exchange.read()

    async def write(self, data: bytes) -> None:
        exchange = self._exchange
        connection = exchange.connection
        if connection is None:
            raise exchange.error or UpstreamConnectionError("the stream is closed", service=exchange.service)
        connection.write(data)
        while connection.write_paused:
            await exchange.wait_writable()
            if exchange.connection is None:
                raise exchange.error or UpstreamConnectionError("the stream is closed", service=exchange.service)

    async def aclose(self) -> None:
        """Close it; what was written still goes out."""
        self._exchange.hang_up()
