"""A TCP proxy on 127.0.0.1 that lets faults happen between a client and a server: slow, cut, silent, or nonsense.

    async with FaultProxy(server.port) as proxy:
        client = Client(f"http://127.0.0.1:{proxy.port}")
        proxy.fault = Cut(after=100)  # for the connections that are open too
        ...
        proxy.fault = PASS

It runs in the test's event loop, and leaves neither task nor socket behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self

_NO_LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: closing sends RST."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Each piece of an answer comes `seconds` late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    """An answer comes `size` bytes at a time, with `pause` seconds before each."""

    size: int = 1
    pause: float = 0.05


@dataclass(frozen=True, slots=True)
class Cut:
    """The client's connection is reset (RST) after `after` bytes of answers; 0 resets it at once."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class HalfClose:
    """The server's side ends (FIN) after `after` bytes of answers, and the client may go on sending."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Blackhole:
    """Connections are accepted, what is sent is read, and nothing ever comes back, as behind a firewall that drops."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Whatever a client sends is answered by `content`, then the connection ends. The server sees nothing of it."""

    content: bytes


Fault = Pass | Delay | Drip | Cut | HalfClose | Blackhole | Garbage
PASS = Pass()


class FaultProxy:
    """Forwards TCP connections to `target_port` of 127.0.0.1, with the fault that `fault` says at the moment.

    A new fault is for all connections, also those that are open; bytes are counted from then on. `refuse` closes the
    listener, as a server that is gone does, and `accept` opens it again on the same port.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1") -> None:
        self.port = 0
        self.accepted = 0
        self._target = target_host, target_port
        self._fault: Fault = PASS
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return len(self._open)

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        match fault:
            case Cut(0):
                self._reset_all()
            case Garbage():  # an answer that is awaited is not theirs to wait for
                self.drop()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections, and reset those that are open."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._reset_all()
        if tasks := list(self._open):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    def drop(self) -> None:
        """Reset all connections that are open; new ones are accepted."""
        self._reset_all()

    def _reset_all(self) -> None:
        for writer in tuple(self._open.values()):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._open[task] = writer
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._carry(reader, writer)
        finally:
            del self._open[task]
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match self._fault:
            case Cut(0):
                return _reset(writer)
            case Garbage(content):
                if await reader.read(65536):
                    writer.write(content)
                    await writer.drain()
                return None
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            return _reset(writer)
        try:
            ways = [
                asyncio.ensure_future(each)  # noqa: TID251 - the proxy's own, awaited below
                for each in (self._requests(reader, to_server), self._answers(from_server, writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            to_server.close()
            with contextlib.suppress(OSError):
                await to_server.wait_closed()

    async def _requests(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not isinstance(self._fault, Blackhole):
                to_server.write(data)
                await to_server.drain()

    async def _answers(self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = _Passed(self._fault)
        while data := await from_server.read(65536):
            if not await self._answer(data, writer, passed):
                return

    async def _answer(self, data: bytes, writer: asyncio.StreamWriter, passed: _Passed) -> bool:
        """Pass a piece of an answer on; False when that was the last one."""
        while data:
            fault = self._fault
            if fault is not passed.fault:
                passed.fault, passed.count = fault, 0
            size, ends = len(data), False
            match fault:
                case Delay(seconds):
                    await self._pause(seconds)
                case Drip(size, pause):
                    await self._pause(pause)
                case Cut(after) | HalfClose(after):
                    size = min(size, after - passed.count)
                    ends = passed.count + size >= after
                case Blackhole():
                    data = b""
            writer.write(data[:size])
            passed.count += size
            data = data[size:]
            await writer.drain()
            if ends:
                await self._end(fault, writer)
                return False
        return True

    @staticmethod
    async def _end(fault: Fault, writer: asyncio.StreamWriter) -> None:
        if isinstance(fault, HalfClose):
            writer.write_eof()
            await asyncio.get_running_loop().create_future()  # until the client goes
        await _flushed(writer)
        _reset(writer)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until there is another fault."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()


@dataclass(slots=True)
class _Passed:
    """How many bytes a connection has passed on since there is this fault."""

    fault: Fault
    count: int = 0


async def _flushed(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written is with the kernel, so that a reset comes after it."""
    while writer.transport.get_write_buffer_size():  # noqa: ASYNC110 - drain() waits for less
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # a reset makes the receiving kernel drop what its program has not read yet


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
