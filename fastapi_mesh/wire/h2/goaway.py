"""Takes GOAWAY frames out of the bytes of an HTTP/2 connection, so that its open streams can end in good order.

`h2` takes GOAWAY for the end of the connection and refuses whatever comes after it, while RFC 9113 section 6.8 lets
the streams up to its last id complete: a server that drains would cost us every call in flight.
"""

from __future__ import annotations

from typing import NamedTuple

_HEADER = 9
_TYPE = 7
_LONGEST = 16_384
"""The frame size that we allow (the default of SETTINGS_MAX_FRAME_SIZE)."""


class Goaway(NamedTuple):
    """Streams above `last_stream_id` were not processed; `error_code` 0 is a graceful end (RFC 9113 section 7)."""

    last_stream_id: int
    error_code: int


class GoawayFilter:
    """Follows the frames of one connection; anything malformed is passed on, for `h2` to complain about."""

    __slots__ = ("_held", "_left")

    def __init__(self) -> None:
        self._held = b""
        self._left = 0

    def feed(self, data: bytes) -> tuple[bytes, list[Goaway]]:
        """Take bytes as they came; return them without GOAWAY frames, and those frames."""
        if self._held:
            data = self._held + data
        size = len(data)
        found: list[Goaway] = []
        parts: list[bytes] = []
        start, position = 0, min(self._left, size)
        self._left -= position
        while size - position >= _HEADER:
            length = int.from_bytes(data[position : position + 3], "big")
            end = position + _HEADER + length
            stream = int.from_bytes(data[position + 5 : position + _HEADER], "big")
            if data[position + 3] == _TYPE and not stream and 8 <= length <= _LONGEST:
                if end > size:
                    break
                parts.append(data[start:position])
                found.append(_read(data[position + _HEADER : end]))
                start = position = end
            elif end > size:
                self._left = end - size
                position = size
            else:
                position = end
        self._held = data[position:]
        parts.append(data[start:position])
        return b"".join(parts), found


def _read(payload: bytes) -> Goaway:
    last = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
    return Goaway(last, int.from_bytes(payload[4:8], "big"))
