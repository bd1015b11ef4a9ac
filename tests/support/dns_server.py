"""A DNS server on 127.0.0.1, over UDP and TCP, that answers what a test tells it; written with dnspython's messages.

    async with DnsServer() as server:
        server.add("_http._tcp.users.test.", "SRV", "1 1 8001 one.test.", "1 1 8002 two.test.")
        server.add("one.test.", "A", "10.0.0.1", ttl=5)
        server.rcodes["broken.test."] = "SERVFAIL"

It follows CNAMEs as resolvers do, and says how long names don't exist (SOA).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Self, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

NEGATIVE_TTL = 7


class DnsServer:
    """`asked` has each question as "udp NAME TYPE". Names are absolute, with a dot at the end."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.asked: list[str] = []
        self.rcodes: dict[str, str] = {}
        """Answered for these names, "*" for all."""
        self.truncate = False
        """Whether answers over UDP have no records and the flag TC."""
        self.silent = False
        """Whether nothing is answered."""
        self.garbage: bytes | None = None
        """What is answered instead of a message."""
        self.foreign = False
        """Whether answers have the id of another question."""
        self.follows_aliases = True
        self.additional = True
        """Whether the addresses of targets come along."""
        self._records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        while self._udp is None:
            self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=("127.0.0.1", port)
                )
            except OSError:  # another program has that port of UDP
                self._tcp.close()
                if self.port:
                    raise
                continue
            self.port = port

    async def stop(self) -> None:
        """Be gone: nothing listens any more."""
        tcp, self._tcp = self._tcp, None
        udp, self._udp = self._udp, None
        if udp is not None:
            udp.close()
        if tcp is not None:
            tcp.close()
            for each in tuple(self._streams):
                each.transport.abort()
            await tcp.wait_closed()
        await asyncio.sleep(0)

    def add(self, name: str, kind: str, *values: str, ttl: int = 0) -> None:
        """Set all records of a name and type."""
        self._records[name.lower(), kind] = (ttl, list(values))

    def remove(self, name: str, kind: str) -> None:
        self._records.pop((name.lower(), kind), None)

    def answer(self, wire: bytes, protocol: str) -> bytes | None:
        """The answer to one message."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{protocol} {name} {kind}")
        if self.silent:
            return None
        if self.garbage is not None:
            return self.garbage
        response = dns.message.make_response(query, recursion_available=True)
        if self.foreign:
            response.id ^= 1
        code = self.rcodes.get(name) or self.rcodes.get("*")
        if code is not None:
            response.set_rcode(dns.rcode.from_text(code))
        elif protocol == "udp" and self.truncate:
            response.flags |= dns.flags.TC
        else:
            self._fill(response, name, kind)
        return response.to_wire(max_size=65535)

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        while self.follows_aliases and (name, "CNAME") in self._records:
            response.answer.append(self._rrset(name, "CNAME"))
            name = self._records[name, "CNAME"][1][0]
        if (name, kind) in self._records:
            response.answer.append(self._rrset(name, kind))
            for value in self._records[name, kind][1] if kind == "SRV" and self.additional else ():
                target = value.split()[-1]
                response.additional += [
                    self._rrset(target, each) for each in ("A", "AAAA") if (target, each) in self._records
                ]
        elif (name, "CNAME") in self._records:
            response.answer.append(self._rrset(name, "CNAME"))
        else:
            if not any(known == name for known, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            zone = dns.name.from_text(name).parent()
            soa = f"ns. root. 1 60 60 60 {NEGATIVE_TTL}"
            response.authority.append(dns.rrset.from_text(zone, 60, "IN", "SOA", soa))

    def _rrset(self, name: str, kind: str) -> dns.rrset.RRset:
        ttl, values = self._records[name.lower(), kind]
        return dns.rrset.from_text(name, ttl, "IN", kind, *values)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    answer = self.answer(await reader.readexactly(length), "tcp")
                    if answer is not None:
                        writer.write(struct.pack("!H", len(answer)) + answer)
                        await writer.drain()
        finally:
            self._streams.discard(writer)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, "udp")
        if answer is not None:
            self._transport.sendto(answer, addr)
