"""The connections to one instance: a LIFO free list, and a FIFO queue where their number is limited."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.h1.connection import CLOSE_TIMEOUT, H1Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.message import Request
    from fastapi_mesh.wire.h1.connection import Settings


class Pool:
    """The connections to one address with one TLS context. Every step is O(1).

    Last in, first out: the most recently used connection is the least likely to have been closed by the instance,
    and after a burst the surplus ages out. `open` counts connections including those being made. `service` is the first
    one that called there, `authority` the address, for people to read.
    """

    __slots__ = (
        "_address",
        "_all",
        "_closed",
        "_connecting",
        "_idle",
        "_on_empty",
        "_port",
        "_queue",
        "_server_name",
        "_settings",
        "_ssl",
        "_sweeper",
        "authority",
        "host_line",
        "loop",
        "open",
        "service",
    )

    def __init__(
        self,
        instance: Instance,
        settings: Settings,
        tls: ssl.SSLContext | None,
        on_empty: Callable[[], object],
    ) -> None:
        self._address = instance.address
        self._port = instance.port
        self._ssl = tls
        self._server_name = instance.metadata.get("server_name", instance.address) if tls is not None else None
        self._settings = settings
        self._on_empty = on_empty
        self._closed = False
        self._connecting: set[asyncio.Timeout] = set()
        self._all: set[H1Connection] = set()
        self._idle: OrderedDict[H1Connection, None] = OrderedDict()
        self._queue: OrderedDict[asyncio.Future[H1Connection | None], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self.service = instance.service
        self.authority = instance.authority.decode("latin-1")
        self.host_line = b"host: " + instance.authority
        self.loop = asyncio.get_running_loop()
        self.open = 0

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def take(self) -> H1Connection | None:
        """The free connection that was used last, or None."""
        idle = self._idle
        while idle:
            connection = idle.popitem()[0]
            if connection.expires <= monotonic():
                connection.close()
            elif connection.usable():
                self._settings.counters.reused += 1
                return connection
        return None

    async def acquire(self, request: Request) -> H1Connection:
        """A new connection; where their number is limited, the next one that comes free.

        Raises UpstreamTimeoutError(phase="connect") and UpstreamConnectionError, both with `request_sent` False.
        """
        limit = self._settings.max_connections
        first = False
        while limit is not None and self.open >= limit:
            connection = await self._wait_turn(request, first)
            if connection is None:
                return await self._connect(request)
            if connection.usable():
                self._settings.counters.reused += 1
                return connection
            first = True
        self.open += 1
        return await self._connect(request)

    def release(self, connection: H1Connection) -> None:
        """Its exchange is complete and it may be used again: hand it to whoever has waited longest, or keep it."""
        connection.reused = True
        if self._queue and self._hand_over(connection):
            return
        connection.expires = monotonic() + connection.keep_for
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._settings.keepalive_expiry, self._sweep)

    def withdraw(self, connection: H1Connection) -> None:
        """It must not be used again."""
        self._idle.pop(connection, None)

    def lost(self, connection: H1Connection) -> None:
        """It is closed, or was never made."""
        self._idle.pop(connection, None)
        self._all.discard(connection)
        if connection.counted:
            connection.counted = False
            self._free_place()

    def close(self) -> None:
        """Close all: the idle ones in good order, the others at once. `on_empty` tells when they are gone."""
        self._closed = True
        for waiter in self._queue:
            if not waiter.done():
                waiter.set_exception(_closed_error())
        self._queue.clear()
        for timeout in self._connecting:
            if not timeout.expired():
                timeout.reschedule(0)
        for connection in list(self._all):
            if connection in self._idle:
                connection.close()
            else:
                connection.cut(_closed_error())
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # Private.

    def _hand_over(self, connection: H1Connection | None) -> bool:
        while self._queue:
            waiter = self._queue.popitem(last=False)[0]
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _free_place(self) -> None:
        """One connection less: whoever has waited longest may make one."""
        if self._hand_over(None):
            return
        self.open -= 1
        if not self.open:
            self._on_empty()

    async def _wait_turn(self, request: Request, first: bool) -> H1Connection | None:
        """Wait in the queue, at its head if `first`; returns a connection, or None for the right to make one."""
        loop = self.loop
        waiter: asyncio.Future[H1Connection | None] = loop.create_future()
        self._queue[waiter] = None
        if first:
            self._queue.move_to_end(waiter, last=False)
        deadline = request.context.attempt_deadline
        timer = None
        if deadline is not None:
            timer = loop.call_later(deadline - monotonic(), _queue_timeout, waiter, request.service)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise
        finally:
            self._queue.pop(waiter, None)
            if timer is not None:
                timer.cancel()

    def _give_back(self, connection: H1Connection | None) -> None:
        if connection is None:
            self._free_place()
        elif connection.usable():
            self.release(connection)

    async def _connect(self, request: Request) -> H1Connection:
        """Make a connection; its place in `open` is taken already."""
        service = request.service
        context = request.context
        timeout = context.policy.connect_timeout
        if context.attempt_deadline is not None:
            timeout = min(timeout, context.attempt_deadline - monotonic())
        connection = H1Connection(self, self._settings)
        limit = asyncio.timeout(timeout)
        self._connecting.add(limit)
        try:
            async with limit:
                await self._open(connection)
        except BaseException as error:
            connection.abort()
            self.lost(connection)  # uvloop does not call connection_lost for an attempt that was cancelled
            if self._closed and isinstance(error, OSError):
                raise _closed_error(service) from error
            if isinstance(error, TimeoutError):
                raise UpstreamTimeoutError(
                    "no connection in time", service=service, phase="connect", request_sent=False
                ) from error
            if isinstance(error, OSError | UnicodeError):
                raise UpstreamConnectionError(f"could not connect: {error}", service=service) from error
            raise
        finally:
            self._connecting.discard(limit)
        if connection.closed or connection.transport.is_closing():
            raise UpstreamConnectionError("the connection was closed at once", service=service)
        self._all.add(connection)
        self._settings.counters.created += 1
        return connection

    async def _open(self, connection: H1Connection) -> None:
        await self.loop.create_connection(
            lambda: connection,
            self._address,
            self._port,
            ssl=self._ssl,
            server_hostname=self._server_name,
            ssl_shutdown_timeout=None if self._ssl is None else CLOSE_TIMEOUT,
        )

    def _sweep(self) -> None:
        """Close the idle connections that have expired; the oldest come first."""
        self._sweeper = None
        now = monotonic()
        while self._idle:
            oldest = next(iter(self._idle))
            if oldest.expires > now:
                delay = oldest.expires - now
                self._sweeper = self.loop.call_later(delay + 0.01, self._sweep)
                return
            del self._idle[oldest]
            oldest.close()


def _closed_error(service: str | None = None) -> UpstreamConnectionError:
    return UpstreamConnectionError("the wire was closed", service=service)


def _queue_timeout(waiter: asyncio.Future[H1Connection | None], service: str) -> None:
    if not waiter.done():
        waiter.set_exception(
            UpstreamTimeoutError(
                "no connection came free in time", service=service, phase="connect", request_sent=False
            )
        )
