"""Reads on in the place of an application that does not, so that a client which goes away is noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.types import Message, Receive

DISCONNECT = "http.disconnect"


class ReadAhead:
    """The server's `receive` with one reader at a time: the application, or this in its place.

    At most one part of a body is read ahead, so a client can't fill the memory of a handler that reads slowly.
    """

    __slots__ = ("_ahead", "_gone", "_parked", "_reader", "_receive", "_start")

    def __init__(
        self,
        receive: Receive,
        start: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None],
        gone: Callable[[], None],
    ) -> None:
        """`start` runs something in the background; `gone` is called when the client went away."""
        self._receive = receive
        self._start = start
        self._gone = gone
        self._ahead: list[Message] = []
        self._parked: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to read, unless that is done already or the application has a part to take first."""
        if self._reader is None and not self._ahead:
            self._reader = self._start(self._read(), "disconnect")

    async def next(self) -> Message:
        """The next message for the application."""
        while not self._ahead and self._reader is not None:
            self._parked = asyncio.get_running_loop().create_future()
            await self._parked
        if not self._ahead:
            return await self._receive()
        message = self._ahead[0]
        if message["type"] != DISCONNECT:
            del self._ahead[0]
        return message

    def stop(self) -> None:
        """Read no further."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                self._ahead.append(message)
                if message["type"] == DISCONNECT:
                    self._gone()
                    return
                self._wake()
                if message.get("more_body", False):
                    return
        finally:
            self._reader = None
            self._wake()

    def _wake(self) -> None:
        if self._parked is not None and not self._parked.done():
            self._parked.set_result(None)
