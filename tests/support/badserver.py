"""An upstream at the level of bytes: each connection runs a script that may misbehave in any way.

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel")
        peer.reset()

    async with BadServer(script) as server:
        ...  # server.port, server.peers

With several scripts, the first connection runs the first one and so on; the last is run for all further ones.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Self

HEAD_END = b"\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """The server's end of one connection. `received` is everything that came, `heads` the request heads among it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heads: list[bytes] = []
        self.received = bytearray()
        self.ended = asyncio.Event()
        """The script has ended."""
        self.error: BaseException | None = None

    async def read_head(self) -> bytes:
        """A request head, blank line included. Raises IncompleteReadError when the client closes."""
        head = await self._reader.readuntil(HEAD_END)
        self.received += head
        self.heads.append(head)
        return head

    async def read_exactly(self, size: int) -> bytes:
        data = await self._reader.readexactly(size)
        self.received += data
        return data

    async def read_until(self, end: bytes) -> bytes:
        data = await self._reader.readuntil(end)
        self.received += data
        return data

    async def read_some(self) -> bytes:
        """What is here, b"" when the client has closed."""
        data = await self._reader.read(64 * 1024)
        self.received += data
        return data

    async def read_request(self) -> tuple[bytes, bytes]:
        """A request head and its body, of a length or chunked (decoded)."""
        head = await self.read_head()
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while size := int(await self.read_until(b"\r\n"), 16):
                body += await self.read_exactly(size)
                assert await self.read_exactly(2) == b"\r\n"
            assert await self.read_exactly(2) == b"\r\n"
            return head, body
        _, found, rest = lower.partition(b"content-length: ")
        return head, await self.read_exactly(int(rest.partition(b"\r\n")[0])) if found else b""

    async def send(self, data: bytes) -> None:
        """Send it, and wait until the kernel has taken it. Raises ConnectionError when the client has gone."""
        if self._writer.is_closing():  # uvloop raises RuntimeError then
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def send_cut(self, data: bytes, cuts: Iterable[int]) -> None:
        """Send it in segments that end at `cuts`; the loop turns between them, so that each arrives by itself."""
        start = 0
        for cut in (*cuts, len(data)):
            await self.send(data[start:cut])
            start = cut
            for _ in range(3):
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close in good order (FIN)."""
        self._writer.close()

    def half_close(self) -> None:
        """Send FIN, and go on reading."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Cut the connection so that the client sees a reset (RST)."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def wait_closed_by_client(self) -> None:
        """Read on until the client has closed, in good order or by a reset."""
        try:
            while await self.read_some():
                continue
        except ConnectionError:
            return


Script = Callable[[Peer], Awaitable[object]]


class BadServer:
    """Listens on 127.0.0.1 and runs scripts; `port` and `peers` (in order of connection) are for the test."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *args: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()
        await asyncio.sleep(0)
        for peer in self.peers:
            if peer.error is not None:
                raise peer.error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = Peer(reader, writer)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client has gone, or the test is over
        except Exception as error:  # shown by the test
            peer.error = error
        finally:
            peer.ended.set()
            writer.transport.abort() if isinstance(peer.error, Exception) else writer.close()


def answering(answer: bytes = OK, *, then: Script | None = None) -> Script:
    """A script that gives `answer` to every request, for as long as the client wants."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_request()
            await peer.send(answer)
            if then is not None:
                await then(peer)
                return

    return script


def answering_once(answer: bytes) -> Script:
    """A script that gives `answer` to one request, then closes."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(answer)

    return script
