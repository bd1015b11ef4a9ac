"""Sends cases through a real server and a gateway to a service that takes down the bytes it gets, and judges them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.http_server import Limits, new_protocol
from tests.api_gateway.gateway_support import gateway_to, serving
from tests.smuggling.cases import Case, Sent

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Message, Receive, Send

QUIET = 0.08
TIMES = 3 + int(os.getloadavg()[0])
"""Seconds without a byte, so many times in a row, after which a client takes it that the server waits for more. All run
in this process, so it takes longer only where the process doesn't get to run.
"""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PROTOCOLS = {"standalone": new_protocol(Limits(None, 65_536, 30.0, lambda status, reason: None))}
"""Servers that are no part of uvicorn: what a gateway uses that is a process of its own."""
REFUSALS = frozenset({400, 404, 405, 408, 411, 413, 414, 417, 421, 426, 431, 501, 505})
_HEAD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9a-z-]+: [\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
_VARIES = (
    (re.compile(rb"(?m)^x-request-id: [0-9a-f-]{32,36}\r\n"), b"x-request-id: ID\r\n"),
    (re.compile(rb"(?m)^x-mesh-timeout-ms: [0-9]+\r\n"), b""),
    (re.compile(rb"(?m)^x-mesh-timeout-covers: head\r\n"), b""),
    (re.compile(rb"(?m)^x-mesh-attempt: [0-9]+\r\n"), b""),
)
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})[ \r]")


class Recorder:
    """A service that believes nothing: it takes requests in their one strict form, and calls all else an error.

    `whole` has the heads and (decoded) bodies of the complete requests, `broken` those of which the connection ended
    too early, `errors` what was no request at all.
    """

    def __init__(self) -> None:
        self.whole: list[tuple[bytes, bytes]] = []
        self.broken: list[tuple[bytes, bytes]] = []
        self.errors: list[bytes] = []
        self.url = ""
        self._tasks: set[asyncio.Task[object]] = set()
        self.reading = 0

    async def __aenter__(self) -> Recorder:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**22)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def clear(self) -> None:
        self.whole, self.broken, self.errors = [], [], []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while await self._one(reader, writer):
                writer.write(ANSWER if not self.whole[-1][0].startswith(b"HEAD ") else ANSWER[:-2])
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one request down; False at the end of the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.errors.append(error.partial)
            return False
        if b"\r\nexpect: 100-continue\r\n" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        self.reading += 1
        try:
            await _read_body(reader, head, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken.append((head, bytes(body)))
            return False
        except ValueError as error:
            self.errors.append(f"{error}: ".encode() + head + body)
            return False
        finally:
            self.reading -= 1
        self.whole.append((head, bytes(body)))
        return True


async def _read_body(reader: asyncio.StreamReader, head: bytes, body: bytearray) -> None:
    """Add the body to `body` as it comes. Raises ValueError for what has not the one strict form."""
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ValueError("the head is not strict")
    framing = re.findall(rb"(?m)^(content-length|transfer-encoding): (.*)\r$", match[2])
    if not framing:
        return
    if len(framing) > 1:
        raise ValueError("two statements of the length")
    [(name, value)] = framing
    if name == b"content-length":
        if re.fullmatch(rb"0|[1-9][0-9]*|0[0-9]+", value) is None:
            raise ValueError("no number")
        left = int(value)
        while left:
            data = await reader.read(left)
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            body += data
            left -= len(data)
        return
    if value != b"chunked":
        raise ValueError("not chunked")
    while True:
        size = await reader.readuntil(b"\r\n")
        if re.fullmatch(rb"(0|[1-9a-f][0-9a-f]*)\r\n", size) is None:
            raise ValueError("a chunk size that is not strict")
        body += await reader.readexactly(int(size, 16))
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk without its end")
        if size == b"0\r\n":
            return


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case. `problem` is "" where it is allowed; `what` says it in a few words."""

    case: Case
    what: str
    problem: str


class Lane:
    """One service behind one gateway behind one server; runs a case at a time."""

    def __init__(self, gateway: APIGateway, recorder: Recorder, server: str) -> None:
        self._server = server
        self.port = 0
        self._gateway = gateway
        self._recorder = recorder
        self._running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The gateway, with a count of what runs in it."""
        if scope["type"] == "lifespan":
            await self._gateway(scope, receive, send)
            return
        self._running += 1
        try:
            await self._gateway(scope, receive, send)
        finally:
            self._running -= 1

    async def _wait_settled(self) -> None:
        """Wait until the gateway has nothing left to do, nor the service anything to take down."""
        async with asyncio.timeout(20):
            while True:
                for _ in range(
                    12
                ):  # what was written or closed is seen by its other end within a few turns of the loop
                    await asyncio.sleep(0)
                if not self._running and not self._recorder.reading:
                    return
                await asyncio.sleep(0.002)

    async def run(self, case: Case, piece: int = 0) -> Outcome:
        """Send it, in pieces of so many bytes if `piece` is not 0."""
        self._recorder.clear()
        raw = await _exchange(self.port, case.payload, piece)
        await self._wait_settled()
        statuses = [int(status) for status in _STATUS.findall(raw)]
        final = [status for status in statuses if status != 100]
        problem = self._judge(case) or self._judge_answers(final, lossy=bool(piece))
        return Outcome(case, self._describe(raw, final), problem)

    def _describe(self, raw: bytes, final: list[int]) -> str:
        arrived = len(self._recorder.whole)
        refusals = [status for status in final if status >= 300]
        parts = []
        if arrived:
            parts.append("sent on" if arrived == 1 else f"{arrived} sent on")
        if self._recorder.broken:
            parts.append("broken off")
        if refusals:
            by = "gateway" if b"x-mesh-reason:" in raw else "server"
            parts.append(f"{by} {refusals[-1]}")
        return ", ".join(parts) or ("answered" if final else "no answer")

    def _judge(self, case: Case) -> str:
        recorder = self._recorder
        if recorder.errors:
            return f"the service got what is no request: {recorder.errors[0][:200]!r}"
        allowed = case.allowed + (case.more if self._server in case.lenient else ())
        arrived = [(normal(head), body) for head, body in recorder.whole]
        broken = [(normal(head), body) for head, body in recorder.broken]
        if not any(_matches(sent, arrived, broken) for sent in allowed):
            expected = [[bytes_of(each) for each in sent] for sent in allowed]
            return f"the service got {arrived!r} and, broken off, {broken!r}, allowed are {expected!r}"
        return ""

    def _judge_answers(self, final: list[int], *, lossy: bool) -> str:
        """`lossy`: who still writes when the server closes, may lose answers that were on their way."""
        arrived = self._recorder.whole
        good = sum(status == 200 for status in final)
        if good > len(arrived) or (good < len(arrived) and not lossy and max(final, default=0) < 400):
            return f"{len(arrived)} requests reached the service and {good} of the answers {final} are its"
        if len(final) > good + 1 or any(status not in REFUSALS for status in final if status not in (200, 204)):
            return f"answers: {final}"
        return ""


def _matches(sent: tuple[Sent, ...], arrived: list[tuple[bytes, bytes]], broken: list[tuple[bytes, bytes]]) -> bool:
    whole = [(bytes_of(each), each.body or b"") for each in sent if not each.cut]
    cut = [(bytes_of(each), each.body or b"") for each in sent if each.cut]
    return (
        whole == arrived
        and len(cut) == len(broken)
        and all(head == got and body.startswith(part) for (head, body), (got, part) in zip(cut, broken, strict=True))
    )


def bytes_of(sent: Sent) -> bytes:
    """The head that the service has to get, byte for byte, with `normal` ids."""
    host = sent.host
    late = tuple(line for line in sent.headers if line.startswith(b"expect:"))
    lines = [
        sent.line + b" HTTP/1.1",
        b"host: " + host,
        *(line for line in sent.headers if line not in late),
        b"x-forwarded-for: 127.0.0.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: " + host,
        b'forwarded: for=127.0.0.1;host="' + host + b'";proto=http',
        b"via: VERSION fastapi-mesh",
        b"x-request-id: ID",
        *late,
    ]
    if sent.chunked:
        lines.append(b"transfer-encoding: chunked")
    elif sent.body is not None:
        lines.append(b"content-length: %d" % len(sent.body))
    return b"\r\n".join([*lines, b"", b""])


def normal(head: bytes) -> bytes:
    """Without what differs from request to request. Leading zeros of a length mean nothing."""
    for pattern, text in _VARIES:
        head = pattern.sub(text, head)
    head = re.sub(rb"\r\nvia: [12]\.[0-9] ", b"\r\nvia: VERSION ", head)
    return re.sub(rb"\r\ncontent-length: 0+([0-9])", rb"\r\ncontent-length: \1", head)


async def _exchange(port: int, payload: bytes, piece: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = b""
    try:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(payload), piece or len(payload)):
                writer.write(payload[start : start + (piece or len(payload))])
                await writer.drain()
                if piece:
                    await asyncio.sleep(0)
            quiet = 0
            while quiet < TIMES:
                try:
                    async with asyncio.timeout(QUIET):
                        data = await reader.read(65536)
                except TimeoutError:
                    quiet += 1
                    continue
                if not data:
                    break
                raw += data
                quiet = 0
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return raw


@asynccontextmanager
async def _lane(http: str) -> AsyncIterator[Lane]:
    async with Recorder() as recorder:
        lane = Lane(gateway_to(recorder.url), recorder, http)
        async with serving(lane, PROTOCOLS.get(http, http)) as lane.port:
            yield lane


@contextlib.contextmanager
def _crashes_refuse() -> Iterator[None]:
    """uvicorn with zttp fails at a target that is not ASCII. asyncio then closes the connection."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), UnicodeDecodeError):
            before(loop, context) if before else loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


async def run_all(http: str, cases: Iterable[Case], *, piece: int = 0, count: int = 8) -> list[Outcome]:
    """Run the cases on several connections at once, one gateway each; outcomes in the order of the cases."""
    queue = list(enumerate(cases))
    outcomes: dict[int, Outcome] = {}

    async def work() -> None:
        async with _lane(http) as lane:
            while queue:
                index, case = queue.pop()
                outcomes[index] = await lane.run(case, piece)

    with _crashes_refuse():
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(work)
    return [outcomes[index] for index in sorted(outcomes)]
