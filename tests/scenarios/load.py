"""A load generator of keep-alive connections over plain asyncio streams, strict about what counts as an answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What came of the requests: `failed` has a line for each that got no valid 200."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    instances: Counter[str] = field(default_factory=Counter)

    def fail(self, kind: str, why: str) -> None:
        self.failed.setdefault(kind, []).append(why)


class Connection:
    """One client connection, opened anew when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, target: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Raises OSError, ValueError or IncompleteReadError when there is no valid answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        head = f"{method} {target} HTTP/1.1\r\nhost: scenario\r\n"
        if body:
            head += f"content-length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        content = await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def run(port: int, kinds: list[str], *, connections: int, requests: int, tally: Tally) -> None:
    """Make `requests` requests in all, over `connections` connections at once; `kinds` are taken in turn."""
    left = iter(range(requests))

    async def client(number: int) -> None:
        connection = Connection(port)
        for turn in left:
            kind = kinds[turn % len(kinds)]
            size = (turn * 997) % (16 * 1024) + 1
            try:
                if kind == "GET":
                    status, headers, content = await connection.request("GET", f"/item?size={size}&id={turn}")
                    valid = content == b"i" * size
                else:
                    body = b"%d" % turn * 20
                    status, headers, content = await connection.request("POST", f"/order?id={turn}", body)
                    valid = content == body
            except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
                tally.fail(kind, f"{turn}: {type(error).__name__} {error}")
                connection.close()
                continue
            if status == 200 and valid:
                tally.answered[kind] += 1
                tally.instances[headers["x-instance"]] += 1
            else:
                tally.fail(kind, f"{turn}: {status} {headers.get('x-mesh-reason')} {content[:200]!r}")
        connection.close()

    await asyncio.gather(*[client(number) for number in range(connections)])


async def steady(port: int, *, rate: float, connections: int, until: asyncio.Event, tally: Tally) -> None:
    """Make `rate` GET requests a second over `connections` connections until `until` is set."""
    started = asyncio.get_running_loop().time()
    turns = iter(range(10**9))

    async def client() -> None:
        connection = Connection(port)
        for turn in turns:
            delay = started + turn / rate - asyncio.get_running_loop().time()
            if delay > 0:
                await asyncio.sleep(delay)
            if until.is_set():
                break
            size = (turn * 997) % 4096 + 1
            try:
                status, headers, content = await connection.request("GET", f"/item?size={size}&id={turn}")
            except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
                tally.fail("GET", f"{turn}: {type(error).__name__} {error}")
                connection.close()
                continue
            if status == 200 and content == b"i" * size:
                tally.answered["GET"] += 1
                tally.instances[headers["x-instance"]] += 1
            else:
                tally.fail("GET", f"{turn}: {status} {headers.get('x-mesh-reason')} {content[:200]!r}")
        connection.close()

    await asyncio.gather(*[client() for _ in range(connections)])
