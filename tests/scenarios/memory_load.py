"""Requests of many kinds from many addresses, with tokens, keys, URLs, header names, methods and hosts of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import re
from collections import Counter

SECRET = "a-secret-of-the-memory-scenario-that-is-long-enough"
KEYS = {f"client-{number}": f"key-of-client-{number}-long-and-random" for number in range(50)}
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_EXPIRES = 4_000_000_000


def token_of(number: int, *, expires: int = _EXPIRES, secret: str = SECRET) -> str:
    """A JWT of a user of that number."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"sub": f"user-{number}", "exp": expires, "scope": "read write", "jti": f"{number:032x}"}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return signed + "." + part(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))


class Shop(asyncio.Protocol):
    """The service: cacheable answers, private ones, slow ones, and some that break off, lie, or are no HTTP.

    `connections` are the open ones of all.
    """

    def __init__(self, connections: set[asyncio.Transport]) -> None:
        self._connections = connections
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._connections.discard(self._transport)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 4]
            if b"\r\ntransfer-encoding: chunked\r\n" in head:
                size = self._buffer.find(b"0\r\n\r\n", end + 4) + 5 - end - 4
                if size < 1 - end + 4:
                    return
            else:
                found = _LENGTH.search(head)
                size = int(found[1]) if found else 0
            if len(self._buffer) < end + 4 + size or size < 0:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        number = int(re.findall(rb"\d+", target)[0])
        kind = target.split(b"/")[1]
        if kind == b"broken":
            self._write(
                (
                    b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
                    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour and more",
                    b"this is no HTTP at all\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
                    b"",
                )[number % 5]
            )
            if self._transport is not None:
                self._transport.close()
        elif kind == b"slow":
            self._write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            asyncio.get_running_loop().call_later(0.05, self._write, b"5\r\nworld\r\n0\r\n\r\n")
        else:
            body = b"" if method == b"HEAD" else b"%d " % number * (number % 200 + 1)
            rule = (b"public, max-age=600", b"max-age=600", b"private", b"no-store")[number % 4]
            vary = b"vary: accept-language\r\n" if number % 3 == 0 else b""
            etag = b'etag: "%d"\r\n' % number if number % 5 == 0 else b""
            self._write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncache-control: %b\r\n%b%bcontent-length: %d\r\n\r\n%b"
                % (rule, vary, etag, len(body) if body else number % 200 + 1, body)
            )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Client:
    """One connection at a time, from an address of its own; `statuses` counts what was answered."""

    def __init__(self, port: int, seed: int, statuses: Counter[int]) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._statuses = statuses
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._left = 0

    async def run(self, numbers: list[int]) -> None:
        try:
            for number in numbers:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await self._one(number)
        finally:
            self._close()

    async def _one(self, number: int) -> None:
        if self._writer is None:
            local = (f"127.{self._random.randrange(1, 200)}.{self._random.randrange(256)}.1", 0)
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=local)
            self._left = 40
        payload, leaves = self._request(number)
        self._writer.write(payload)
        if leaves:  # before the answer, in the middle of the request or of the answer
            await asyncio.sleep(0 if number % 3 else 0.01)
            self._close()
            self._statuses[0] += 1
            return
        head = await self._head()
        status = int(head[9:12])
        self._statuses[status] += 1
        closes = b"\r\nconnection: close\r\n" in head.lower()
        if status >= 200 and not payload.startswith(b"HEAD") and status not in (204, 304):
            closes = await self._body(head) or closes
        self._left -= 1
        if closes or self._left <= 0:
            self._close()

    async def _head(self) -> bytes:
        assert self._reader is not None
        try:
            return await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 30)
        except (OSError, asyncio.IncompleteReadError):
            self._close()
            raise

    async def _body(self, head: bytes) -> bool:
        """Read the body; True where the connection ended with it."""
        assert self._reader is not None
        found = _LENGTH.search(head)
        try:
            if found:
                await self._reader.readexactly(int(found[1]))
            elif b"\r\ntransfer-encoding: chunked\r\n" in head.lower():
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    await self._reader.readexactly(size + 2)
                await self._reader.readexactly(2)
            else:
                await self._reader.read()
                return True
        except (OSError, asyncio.IncompleteReadError):
            return True
        return False

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    def _request(self, number: int) -> tuple[bytes, bool]:
        """The bytes of a request, and whether the client leaves without waiting for the answer."""
        rand = self._random.random
        user = self._random.randrange(20_000)
        bearer = f"authorization: Bearer {token_of(user)}\r\n"
        key = f"x-api-key: {KEYS[f'client-{user % 50}']}\r\n"
        language = f"accept-language: l{user % 40}\r\n"
        kind = number % 20
        if kind < 5:
            return _get(f"/items/{user}?page={user % 7}", language + (bearer if kind < 2 else "")), False
        if kind < 8:
            return _get(f"/mine/{user % 5000}", bearer if kind < 7 else key), False
        if kind == 8:
            return _get(f"/items/{user}", 'if-none-match: "x"\r\n', method="HEAD"), False
        if kind == 9:
            body = b"x" * (user % 3000)
            if user % 2:
                return _get(f"/orders/{user}", key, method="POST", body=body), False
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
            head = _get(f"/orders/{user}", bearer + "transfer-encoding: chunked\r\n", method="PUT")
            return head + chunks, False
        if kind < 12:
            return _get(f"/changed/{user}?a={number}", bearer, method="POST", body=b"{}" * (user % 500)), False
        if kind == 12:
            return _get(f"/nowhere/{number}/{rand()}"), False
        if kind == 13:
            wrong = (
                f"authorization: Bearer {token_of(number, expires=1_000_000)}\r\n",
                f"authorization: Bearer {token_of(number, secret='x' * 40)}\r\n",
                f"authorization: Bearer {rand()}.{rand()}.{rand()}\r\n",
                f"x-api-key: no-such-key-{number}\r\n",
                f"authorization: Basic {number}\r\n",
            )
            return _get(f"/mine/{number}", wrong[user % 5]), False
        if kind == 14:
            return _get("/few/1", f"x-client: {number if user % 2 else 'busy'}\r\n"), False
        if kind == 15:
            return _get(f"/{'mixed' if user % 2 else 'dead'}/{number}"), False
        if kind == 16:
            return _get(f"/broken/{user}"), False
        if kind == 17:
            return self._leaving(number, user, bearer)
        if kind == 18:
            return self._bad(number, user), False
        trace = f"traceparent: 00-{number:032x}-{user + 1:016x}-01\r\n"
        odd = f"x-name-{number}: {rand()}\r\nx-request-id: {number}\r\n{trace}"
        method = f"M{number}" if user % 10 == 0 else "GET"
        return _get(f"/items/{number}", odd, method=method, host=f"host-{number}.example"), False

    def _leaving(self, number: int, user: int, bearer: str) -> tuple[bytes, bool]:
        if user % 3 == 0:
            return _get(f"/slow/{number}"), True
        if user % 3 == 1:
            return _get(f"/orders/{user}", bearer + "content-length: 100000\r\n", method="PUT") + b"x" * 500, True
        return _get(f"/items/{number}?new", bearer), True

    def _bad(self, number: int, user: int) -> bytes:
        return (
            b"GET /items/1 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            b"GET /items/1 HTTP/1.1\r\n\r\n",
            b"NOT HTTP AT ALL %d\r\n\r\n" % number,
            _get("/items/%2e%2e/..//x"),
            _get("/orders/1", "content-length: 5\r\ntransfer-encoding: chunked\r\n", method="POST") + b"0\r\n\r\n",
            _get(f"/items/{number}", f"x-big: {'y' * 300_000}\r\n"),
        )[user % 6]


def _get(
    target: str, headers: str = "", *, method: str = "GET", body: bytes = b"", host: str = "shop.example"
) -> bytes:
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n{headers}{length}\r\n".encode() + body


async def load(port: int, numbers: range, statuses: Counter[int], *, clients: int = 16) -> None:
    """Send the requests of these numbers, dealt out to the clients."""
    await asyncio.gather(
        *(Client(port, numbers.start + each, statuses).run(list(numbers[each::clients])) for each in range(clients))
    )
