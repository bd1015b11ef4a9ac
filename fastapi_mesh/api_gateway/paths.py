"""How a request path is cut into segments, and the other ways in which a server further on could read it.

Matching compares percent-decoded segments, so `%61dmin` is `admin`; what is forwarded stays byte for byte as it came.
A path is cut at raw slashes only: `%2F` stays inside its segment. But servers differ in what they make of `%2F`, `\\`,
`//`, `;` and dot segments (RFC 3986 sections 3.3 and 5.2.4): Starlette decodes `%2F` before it routes, nginx merges
slashes, Tomcat drops `;...`, browsers take `\\` for `/`. `readings` lists what they would see; a path that leads to
another route under any of them is refused, because that route's rules would be bypassed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

Segments = tuple[bytes, ...]

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
PLAIN = _UNRESERVED + b"!$&'()*+,=:@/"
"""Bytes that every server reads alike; all of RFC 3986's pchar but `%` and `;`."""

MAX_AMBIGUOUS_LENGTH = 2048
"""Longest path, in bytes, whose other readings are worked out; a longer one that has any is refused."""


DOTS = (b".", b"..")


def is_usual(path: bytes) -> bool:
    """Whether there is only one way to read `path`; the quick check of the hot path, which may err to False."""
    return not (path.translate(None, PLAIN) or b"/." in path or b"//" in path)


def split(path: bytes) -> Segments:
    """Cut a path that starts with `/` into decoded segments.

    >>> split(b"/users/%61%2Fb/")
    (b'users', b'a/b', b'')
    """
    parts = path[1:].split(b"/")
    if b"%" in path:
        parts = [unquote_to_bytes(part) for part in parts]
    return tuple(parts)


def has_one_reading(segments: Segments) -> bool:
    """Whether `readings` would find nothing but these segments."""
    return not any(
        b"/" in each or b"\\" in each or b";" in each or each in DOTS or (not each and index < len(segments) - 1)
        for index, each in enumerate(segments)
    )


def readings(segments: Segments) -> set[Segments]:
    """Every way in which a server further on could take these segments, the plain one included.

    >>> sorted(readings((b"a/..", b"b")))
    [(b'a', b'..', b'b'), (b'a/..', b'b'), (b'b',)]
    """
    known = {segments}
    for rewrite in _REWRITES:
        known |= {rewrite(each) for each in known}
    return known


def climbs(segments: Segments) -> bool:
    """Whether under any reading `..` leads above the root, which some servers refuse and others ignore.

    >>> climbs((b"a", b"..", b"..", b"b")), climbs((b"a", b"..", b"b"))
    (True, False)
    """
    if not any(b".." in segment for segment in segments):
        return False
    known = {segments}
    for rewrite in _REWRITES[:-1]:
        known |= {rewrite(each) for each in known}
    return any(_depth(each) < 0 for each in known)


def _depth(segments: Segments) -> int:
    """The lowest depth on the way down these segments; negative is above the root."""
    depth = lowest = 0
    for segment in segments:
        if segment == b"..":
            depth -= 1
            lowest = min(lowest, depth)
        elif segment != b".":
            depth += 1
    return lowest


def _cut_at(separator: bytes) -> Callable[[Segments], Segments]:
    def cut(segments: Segments) -> Segments:
        return tuple(piece for segment in segments for piece in segment.split(separator))

    return cut


def _drop_parameters(segments: Segments) -> Segments:
    return tuple(segment.partition(b";")[0] for segment in segments)


def _merge_slashes(segments: Segments) -> Segments:
    return (*(segment for segment in segments[:-1] if segment), segments[-1])


def _remove_dots(segments: Segments) -> Segments:
    """RFC 3986 section 5.2.4."""
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in DOTS:
        kept.append(b"")
    return tuple(kept)


_REWRITES: tuple[Callable[[Segments], Segments], ...] = (
    _cut_at(b"/"),
    _drop_parameters,
    _cut_at(b"\\"),
    _merge_slashes,
    _remove_dots,
)
"""In the order in which servers apply them; each may or may not happen."""
