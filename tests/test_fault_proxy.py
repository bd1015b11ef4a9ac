"""The proxy that plays faults between clients and servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.fault_proxy import PASS, Blackhole, Cut, Delay, Drip, FaultProxy, Garbage, HalfClose

pytestmark = pytest.mark.anyio


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1]) as running:
        yield running
    server.close()
    await server.wait_closed()


class Client:
    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._proxy.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))


async def test_without_a_fault_bytes_pass_both_ways(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        assert await client.ask(b"x" * 300_000) == b"x" * 300_000
        assert proxy.connections == proxy.accepted == 1


async def test_a_cut_resets_after_so_many_bytes(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        await client.ask(b"before")
        proxy.fault = Cut(after=4)
        client.writer.write(b"123456")

        assert await client.reader.readexactly(4) == b"1234"
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_a_cut_at_once_resets_what_is_open_and_what_comes(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        await client.ask(b"before")
        proxy.fault = Cut()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        async with Client(proxy) as other:
            with pytest.raises(ConnectionResetError):
                await other.reader.read()
        proxy.fault = PASS
        async with Client(proxy) as third:
            assert await third.ask(b"again") == b"again"


async def test_a_half_closed_connection_ends_on_one_side(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        proxy.fault = HalfClose(after=2)
        client.writer.write(b"1234")

        assert await client.reader.read() == b"12"
        client.writer.write(b"more")
        await client.writer.drain()


async def test_a_dripping_answer_comes_in_pieces_until_the_fault_ends(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        proxy.fault = Drip(size=1, pause=0.02)
        client.writer.write(b"1234" + b"x" * 100_000)

        pieces = [await client.reader.read(10) for _ in range(4)]
        assert pieces == [b"1", b"2", b"3", b"4"]
        proxy.fault = PASS
        assert await client.reader.readexactly(100_000) == b"x" * 100_000


async def test_a_delay_is_at_least_as_long_as_it_says(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        proxy.fault = Delay(0.05)
        started = time.monotonic()

        assert await client.ask(b"1") == b"1"
        assert time.monotonic() - started >= 0.05


async def test_a_black_hole_takes_everything_and_says_nothing(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        proxy.fault = Blackhole()
        client.writer.write(b"lost")
        await client.writer.drain()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)


async def test_garbage_is_answered_whatever_was_asked(proxy: FaultProxy) -> None:
    proxy.fault = Garbage(b"HTTP/1.1 200 OK\r\n\r\n<html>")
    async with Client(proxy) as client:
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n")

        assert await client.reader.read() == b"HTTP/1.1 200 OK\r\n\r\n<html>"


async def test_a_proxy_that_refuses_is_back_on_its_port(proxy: FaultProxy) -> None:
    async with Client(proxy) as client:
        await client.ask(b"before")
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)

        await proxy.accept()
        async with Client(proxy) as other:
            assert await other.ask(b"again") == b"again"
