"""Request and Response on the data path: raw bytes, exactly as ASGI and the wire carry them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi_mesh.core.body import BytesSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from fastapi_mesh.core.body import BodySource
    from fastapi_mesh.core.context import CallContext

Header = tuple[bytes, bytes]
T = TypeVar("T")


class Outcome(Enum):
    """How a response's body ended."""

    COMPLETE = "complete"
    ABANDONED = "abandoned"
    """Closed by our side before its end: the caller went away or lost interest. Neutral to health."""
    FAILED = "failed"
    """The instance died, or broke the rules, in the middle of it."""


class ByteStream(Protocol):
    """A duplex byte stream: what is left of a connection after `101 Switching Protocols`."""

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of `data`, waiting while the peer is slow."""
        ...

    async def aclose(self) -> None: ...


class Request:
    """One request to a service.

    `target` is the origin-form request target, path and query as raw bytes (RFC 9112 section 3.2.1). `headers` keeps
    order and duplicates; framing and hop-by-hop headers are the wire's business, with one exception: a
    `content-length` in it states the length of a streamed body. `body` is bytes (b"" for none) or an async iterable of
    bytes, which can be sent once only.
    """

    __slots__ = ("body", "context", "headers", "method", "service", "target")

    def __init__(
        self,
        method: bytes,
        service: str,
        target: bytes,
        headers: list[Header],
        body: bytes | AsyncIterable[bytes],
        context: CallContext,
    ) -> None:
        self.method = method
        self.service = service
        self.target = target
        self.headers = headers
        self.body = body
        self.context = context

    def __repr__(self) -> str:
        return f"<Request {self.method.decode('latin-1')} {self.service} {self.target.decode('latin-1')}>"


class Response:
    """One answer: the head at once, the body as it comes.

    Read with `await response.read()` until it returns b"", or iterate; `at_end` looks ahead, so the last part can be
    passed on with "this was the last". Whoever holds a response closes it; the callbacks of `on_close` run exactly
    once, with how the body ended. `upgrade` is the connection's byte stream after 101, else None.
    """

    __slots__ = ("_callbacks", "_closed", "_source", "headers", "status", "upgrade")

    def __init__(
        self,
        status: int,
        headers: list[Header],
        source: BodySource | None = None,
        upgrade: ByteStream | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.upgrade = upgrade
        self._source: BodySource = BytesSource(b"") if source is None else source
        self._callbacks: list[tuple[Callable[[Any, Outcome, BaseException | None], object], object]] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"<Response {self.status}>"

    @classmethod
    def of(cls, status: int, headers: list[Header], content: bytes) -> Response:
        """A response whose body is already here."""
        return cls(status, headers, BytesSource(content))

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name or key.lower() == name:
                return value
        return None

    def on_close(self, callback: Callable[[T, Outcome, BaseException | None], object], argument: T) -> None:
        """Call `callback(argument, outcome, error)` once, when the body has ended or was given up."""
        self._callbacks.append((callback, argument))

    @property
    def at_end(self) -> bool:
        """True when everything was read: no further `read` will return a byte."""
        return self._source.at_end

    async def read(self) -> bytes:
        """The next part of the body, b"" at its end. Raises ServiceUnavailableError when the instance fails."""
        try:
            data = await self._source.read()
        except BaseException as error:
            if isinstance(error, Exception):
                self._finish(Outcome.FAILED, error)
            else:
                self._finish(Outcome.ABANDONED, None)
            raise
        if not self._closed and self._source.at_end:
            self._finish(Outcome.COMPLETE, None)
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def read_all(self, limit: int | None = None) -> bytes:
        """The whole body. Raises ValueError when it is longer than `limit` bytes."""
        data = await self.read()
        if self._source.at_end:
            if limit is not None and len(data) > limit:
                raise ValueError(f"the body is longer than {limit} bytes")
            return data
        parts = [data]
        size = len(data)
        while data:
            if limit is not None and size > limit:
                await self.aclose()
                raise ValueError(f"the body is longer than {limit} bytes")
            data = await self.read()
            size += len(data)
            parts.append(data)
        return b"".join(parts)

    async def aclose(self) -> None:
        """End it, read or not; the connection is reused only if the body had come completely."""
        if not self._closed:
            self._finish(Outcome.COMPLETE if self._source.at_end else Outcome.ABANDONED, None)
        await self._source.aclose()

    def _finish(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        for callback, argument in self._callbacks:
            callback(argument, outcome, error)
        self._callbacks.clear()
