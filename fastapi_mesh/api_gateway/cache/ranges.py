"""A part of a complete stored response: one byte range (RFC 9110 section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONE = re.compile(rb"bytes=[ \t]*(\d*)-(\d*)[ \t]*")
_DIGITS = 18


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to and without `end`, of `total`."""

    start: int
    end: int
    total: int

    @property
    def content_range(self) -> bytes:
        return b"bytes %d-%d/%d" % (self.start, self.end - 1, self.total)


class Unsatisfiable:
    """The range begins behind the end of the content: 416."""


UNSATISFIABLE = Unsatisfiable()


def byte_range(
    asked: bytes | None, if_range: bytes | None, *, total: int, etag: bytes | None, modified: bytes | None
) -> ByteRange | Unsatisfiable | None:
    """The part that a request wants of a content of `total` bytes; None: all of it.

    Several ranges at once are answered with everything, as section 14.2 allows and as protects from amplification. An
    `If-Range` must be the stored strong entity tag or the stored date, to the byte (section 13.1.5).
    """
    if asked is None:
        return None
    match = _ONE.fullmatch(asked)
    if match is None or match.groups() == (b"", b"") or max(map(len, match.groups())) > _DIGITS:
        return None
    if if_range is not None and (if_range.startswith(b"W/") or if_range not in (etag, modified)):
        return None
    if not match[1]:
        suffix = int(match[2])
        return ByteRange(max(0, total - suffix), total, total) if suffix and total else UNSATISFIABLE
    start = int(match[1])
    end = min(int(match[2]) + 1, total) if match[2] else total
    if match[2] and int(match[2]) < start:
        return None  # not a valid range (section 14.1.1), so there is none
    return UNSATISFIABLE if start >= total else ByteRange(start, end, total)
