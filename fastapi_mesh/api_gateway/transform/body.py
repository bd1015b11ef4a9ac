"""Bodies for transformers: read whole where one asks for it, decoded, within a limit, and put back as they were."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.api_gateway.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from fastapi_mesh.core.message import Response


PIECE = 16 * 1024
MOST_MEMBERS = 10_000
"""Members of a gzip file; the usual blocked files have one for each 64 KiB."""


class UnreadableError(Exception):
    """A body can't be shown to a transformer: `reason` says why."""


class TooLongError(Exception):
    """A body is longer than the limit; `read` is what was taken of it so far."""

    def __init__(self, read: list[bytes]) -> None:
        super().__init__("the body is longer than the limit")
        self.read = read


async def read_request(body: AsyncIterable[bytes], limit: int, timeout: float) -> bytes:
    """The whole body, which a client has `timeout` seconds to send.

    Raises TooLongError, with what was read, once there are more than `limit` bytes.
    """
    client = body if isinstance(body, Client) else None
    pause = 0.0 if client is None else client.pause
    end = asyncio.get_running_loop().time() + timeout
    parts: list[bytes] = []
    size = 0
    iterator = aiter(body)
    while True:
        if client is not None:
            client.pause = max(0.001, end - asyncio.get_running_loop().time())
        part = await anext(iterator, None)
        if part is None:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > limit:
            if client is not None:
                client.pause = pause
            raise TooLongError(parts)


async def resumed(read: list[bytes], rest: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A body of which a part was read already."""
    for part in read:
        yield part
    read.clear()
    async for part in rest:
        yield part


async def read_response(response: Response, limit: int) -> bytes:
    """The whole body of an answer. Raises TooLongError, with what was read, once there are more than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    while data := await response.read():
        parts.append(data)
        size += len(data)
        if size > limit:
            raise TooLongError(parts)
    return b"".join(parts)


class ResumedSource:
    """A BodySource: what was read of a response, then the rest of it."""

    __slots__ = ("_read", "_response")

    def __init__(self, read: list[bytes], response: Response) -> None:
        self._read = read
        self._response = response

    @property
    def at_end(self) -> bool:
        return not self._read and self._response.at_end

    async def read(self) -> bytes:
        if self._read:
            data = b"".join(self._read)
            self._read = []
            return data
        return await self._response.read()

    async def aclose(self) -> None:
        self._read = []
        await self._response.aclose()


class _Decoder(Protocol):
    def __call__(self, data: bytes, limit: int) -> bytes: ...


def codings() -> frozenset[str]:
    """The content codings that can be taken off here; Brotli where the `brotli` package is installed."""
    return frozenset(_decoders())


def decoded(data: bytes, codings: str, limit: int) -> bytes:
    """`data` without its content codings ("gzip", "br, gzip"). Raises UnreadableError, TooLongError above `limit`."""
    known = _decoders()
    for coding in reversed([each.strip().lower() for each in codings.split(",") if each.strip()]):
        if coding == "identity":
            continue
        decode = known.get(coding)
        if decode is None:
            raise UnreadableError(f"its content coding {coding!r} is not known here")
        data = decode(data, limit)
    return data


def _decoders() -> dict[str, _Decoder]:
    known: dict[str, _Decoder] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}
    if (brotli := _brotli()) is not None:
        known["br"] = brotli
    return known


def _gzip(data: bytes, limit: int) -> bytes:
    """Every member of the file (RFC 1952 section 2.2)."""
    out: list[bytes] = []
    size = start = 0
    while start < len(data):
        if len(out) == MOST_MEMBERS:
            raise UnreadableError("its coding has too many members")
        member, start = _member(data, start, limit - size)
        out.append(member)
        size += len(member)
    return b"".join(out)


def _member(data: bytes, start: int, limit: int) -> tuple[bytes, int]:
    """The member of a gzip file that begins at `start`, and where the next one does.

    In pieces, because zlib copies what is behind a member: a megabyte of empty ones would take seconds.
    """
    machine = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    out = bytearray()
    while not machine.eof:
        piece = data[start : start + PIECE]
        if not piece:
            raise UnreadableError("its coding ends too early")
        start += len(piece)
        try:
            out += machine.decompress(piece, limit + 1 - len(out))
        except zlib.error as error:
            raise UnreadableError("it is not in the coding that it says") from error
        if len(out) > limit:
            raise TooLongError([])
    return bytes(out), start - len(machine.unused_data)


def _deflate(data: bytes, limit: int) -> bytes:
    """zlib's format (RFC 9110 section 8.4.1.2), or the bare one that some servers send for it."""
    raw = len(data) < 2 or data[0] & 0x0F != 8 or int.from_bytes(data[:2], "big") % 31
    return _inflate(zlib.decompressobj(wbits=-zlib.MAX_WBITS if raw else zlib.MAX_WBITS), data, limit)


def _inflate(machine: zlib._Decompress, data: bytes, limit: int) -> bytes:
    """Never makes more than one byte above `limit`, however small `data` is (a decompression bomb)."""
    try:
        out = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise UnreadableError("it is not in the coding that it says") from error
    if len(out) > limit:
        raise TooLongError([])
    if not machine.eof:
        raise UnreadableError("its coding ends too early")
    return out


def _brotli() -> _Decoder | None:
    try:
        import brotli
    except ImportError:
        return None
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):
        return None  # before 1.2 nothing bounds what comes out of it

    def decode(data: bytes, limit: int) -> bytes:
        machine = brotli.Decompressor()
        out: list[bytes] = []
        size = 0
        try:
            while not machine.is_finished():
                part: bytes = machine.process(data, output_buffer_limit=limit + 1 - size)
                if not part and not data:
                    raise UnreadableError("its coding ends too early")
                data = b""
                out.append(part)
                size += len(part)
                if size > limit:
                    raise TooLongError([])
        except brotli.error as error:
            raise UnreadableError("it is not in the coding that it says") from error
        return b"".join(out)

    return decode


def narrowed(accept: str, known: frozenset[str]) -> str:
    """`Accept-Encoding` with the codings that can be taken off again, and no others (RFC 9110 section 12.5.3).

    >>> narrowed("gzip, br;q=0.9, zstd, *;q=0.1", frozenset({"gzip"}))
    'gzip'
    >>> narrowed("zstd", frozenset({"gzip"}))
    'identity'
    """
    kept = []
    for item in accept.split(","):
        coding = item.partition(";")[0].strip().lower()
        if coding == "identity" or coding in known:
            kept.append(item.strip())
    return ", ".join(kept) or "identity"
