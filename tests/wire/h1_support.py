"""A connection without a socket, for tests that feed it bytes; and the two event loops that the wire runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi_mesh.core.events import Event
from fastapi_mesh.wire.h1.body import Exchange
from fastapi_mesh.wire.h1.connection import Counters, H1Connection, Settings
from tests.support.calls import make_context, make_instance, make_request

T = TypeVar("T")
_closed_loop = asyncio.new_event_loop()
_closed_loop.close()

LOOPS = [
    ("asyncio", {"use_uvloop": False}),
    ("asyncio", {"use_uvloop": True}),
]
LOOP_NAMES = ["asyncio", "uvloop"]


class FakeLoop:
    """Enough of an event loop for an exchange that nobody awaits; `timers` are delays with what is due."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.Future(loop=_closed_loop)

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self.timers.append((delay, callback))
        return asyncio.TimerHandle(0, callback, (), _closed_loop)


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `closed` is "" or how it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = ""
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = self.closed or "abort"

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class FakePool:
    """Keeps what a connection tells its pool."""

    service = "users"
    authority = "10.0.0.1:80"

    def __init__(self, loop: FakeLoop) -> None:
        self.loop = loop
        self.released: list[H1Connection] = []

    def release(self, connection: H1Connection) -> None:
        connection.reused = True
        self.released.append(connection)

    def withdraw(self, connection: H1Connection) -> None:
        if connection in self.released:
            self.released.remove(connection)

    def lost(self, connection: H1Connection) -> None:
        return


class Line:
    """A connection on a FakeTransport."""

    def __init__(self, *, max_header_bytes: int = 64 * 1024, max_headers: int = 256) -> None:
        self.loop = FakeLoop()
        self.pool = FakePool(self.loop)
        self.events: list[Event] = []
        self.counters = Counters()
        settings = Settings(
            keepalive_expiry=4.0,
            max_connections=None,
            max_header_bytes=max_header_bytes,
            max_headers=max_headers,
            observer=self.events.append,
            counters=self.counters,
        )
        self.connection = H1Connection(self.pool, settings)  # type: ignore[arg-type]
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)

    def ask(self, method: bytes = b"GET", *, hold: bool = False, upgrade: bool = False) -> Exchange:
        """Begin an exchange."""
        context = make_context(make_instance(1), hold=hold, timeout=None)
        waiter = self.loop.create_future()
        exchange = Exchange(
            self.connection,
            make_request(context, method),
            self.loop,  # type: ignore[arg-type]
            waiter,
            upgrade,
        )
        self.connection.begin(exchange, b"")
        return exchange

    @property
    def idle(self) -> bool:
        """Whether the connection went back to the pool and may be used again."""
        return self.connection in self.pool.released and not self.transport.closed


def woken(exchange: Exchange) -> bool:
    """Whether the caller who waits for the answer would go on."""
    return exchange.waiter is None


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("it waits")


def read_all(exchange: Exchange) -> bytes:
    """The body of an exchange, all of which has come."""
    data = b""
    while part := drive(exchange.read()):
        data += part
    return data


def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A call that runs beside the test."""
    return asyncio.get_running_loop().create_task(coroutine)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; 5 s are enough for anything that has to happen by itself."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the wire has no events for tests
            await asyncio.sleep(0)
