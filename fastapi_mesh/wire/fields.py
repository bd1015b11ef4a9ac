"""Header fields at a hop: which of them belong to one connection only, and what they say of the length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.core.message import Header

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""Fields of one connection (RFC 9110 section 7.6.1), never passed on; `trailer`, because no trailers are."""

_KEPT = HOP_BY_HOP | {b"host", b"content-length", b"close"}
"""What `Connection` may name without effect: gone already, an option, or a field that frames and routes the message."""

_FORBIDDEN = re.compile(rb"[\x00\r\n]")


def end_to_end(fields: Iterable[Header]) -> list[Header]:
    """The fields that pass this hop, names in lower case, order and duplicates kept.

    Fields that `Connection` names are removed too (RFC 9110 section 7.6.1). Raises ValueError for a value with CR, LF
    or NUL (RFC 9110 section 5.5), which would split the message.
    """
    kept: list[Header] = []
    options = b""
    for name, value in fields:
        name = name.lower()
        if name in HOP_BY_HOP:
            if name == b"connection":
                options += value + b","
            continue
        if _FORBIDDEN.search(value) is not None:
            raise ValueError(f"the header field {name.decode('latin-1')!r} has a line break or a NUL in its value")
        kept.append((name, value))
    if options:
        named = {option.strip().lower() for option in options.split(b",")} - _KEPT
        if named:
            kept = [field for field in kept if field[0] not in named]
    return kept


def content_length(fields: Iterable[Header]) -> int | None:
    """What `Content-Length` says, None without one; `fields` have lower-case names.

    Raises ValueError when it is no number or there are several (RFC 9110 section 8.6; equal ones are one).
    """
    found: bytes | None = None
    for name, value in fields:
        if name == b"content-length":
            if found is not None and found != value:
                raise ValueError("there are several Content-Lengths")
            found = value
    if found is None:
        return None
    if not found.isdigit() or len(found) > 18:
        raise ValueError("the Content-Length is not a number")
    return int(found)
