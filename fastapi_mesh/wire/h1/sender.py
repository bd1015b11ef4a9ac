"""Sends a request body that does not go out with its head: a stream, or more than a few segments of bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import InvalidRequestError, UpstreamConnectionError
from fastapi_mesh.wire.h1.framing import CHUNKED

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from fastapi_mesh.wire.h1.body import Exchange

SLICE = 64 * 1024
"""Bytes of a body in memory that are written at once; a body up to this size goes out with the head."""
CONTINUE_TIMEOUT = 1.0
"""Seconds to wait for `100 Continue`: an instance that ignores `Expect` must not stop the call."""


async def send_body(exchange: Exchange, body: bytes | AsyncIterable[bytes], length: int, expects: bool) -> None:
    """Send `body`, of `length` bytes or CHUNKED; runs as a task beside the caller, who waits for the answer.

    It is cancelled when the final head comes first: the rest of the body is then of no interest. Whatever `body`
    raises ends the exchange with that error.
    """
    iterator: AsyncIterator[bytes] | None = None
    try:
        iterator = _slices(body) if isinstance(body, bytes) else body.__aiter__()
        if expects:
            await exchange.wait_continue(CONTINUE_TIMEOUT)
        await _send_parts(exchange, iterator, length)
    except asyncio.CancelledError:
        if exchange.sender is not None:  # not by the exchange: the body itself was cancelled
            exchange.sender = None
            exchange.lose(UpstreamConnectionError("the request body was cancelled"))
        raise
    except Exception as error:  # handed to the caller unchanged, who knows the body it gave
        exchange.sender = None
        exchange.fail(error)
    finally:
        if (aclose := getattr(iterator, "aclose", None)) is not None:
            await aclose()


async def _send_parts(exchange: Exchange, iterator: AsyncIterator[bytes], length: int) -> None:
    left = length
    async for part in iterator:
        connection = exchange.connection
        if connection is None or exchange.status:
            return
        if not part:
            continue
        if length == CHUNKED:
            connection.write(b"%x\r\n%b\r\n" % (len(part), part))
        else:
            left -= len(part)
            if left < 0:
                raise InvalidRequestError("the body is longer than its content-length", service=exchange.service)
            connection.write(part)
            if not left:
                exchange.on_sent()
        if connection.write_paused:
            await exchange.wait_writable()
    connection = exchange.connection
    if connection is None or exchange.status:
        return
    if length == CHUNKED:
        connection.write(b"0\r\n\r\n")
    elif left:
        raise InvalidRequestError("the body is shorter than its content-length", service=exchange.service)
    exchange.on_sent()


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), SLICE):
        yield body[start : start + SLICE]
