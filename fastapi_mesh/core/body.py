"""Bodies: where a response's bytes come from, and which request bodies can be sent twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.config.policies import REPLAY_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterable


class BodySource(Protocol):
    """Where the bytes of one response come from; a wire makes one, `Response` reads it."""

    @property
    def at_end(self) -> bool:
        """True when everything was read and the message ended as it should."""
        ...

    async def read(self) -> bytes:
        """The next part, waiting for it; b"" at the end. Raises ServiceUnavailableError when the instance fails."""
        ...

    async def aclose(self) -> None:
        """Give up whatever is left. Must be safe to call twice."""
        ...


class BytesSource:
    """A body that is already here."""

    __slots__ = ("at_end", "content")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at_end = not content

    async def read(self) -> bytes:
        content, self.content = self.content, b""
        self.at_end = True
        return content

    async def aclose(self) -> None:
        self.content = b""


def replayable(body: bytes | AsyncIterable[bytes], limit: int = REPLAY_LIMIT) -> bool:
    """Whether `body` can be sent a second time: it is in memory, and at most `limit` bytes."""
    return isinstance(body, bytes) and len(body) <= limit
