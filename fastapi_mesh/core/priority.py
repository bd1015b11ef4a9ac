"""How important a request is: who is refused first when not all can be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.core.message import Header

PRIORITY_HEADER = b"x-mesh-priority"
LOW, NORMAL, HIGH = 0, 1, 2
PriorityName = Literal["low", "normal", "high"]
NAMES: tuple[PriorityName, ...] = ("low", "normal", "high")
PRIORITIES = tuple(name.encode() for name in NAMES)
"""The values of the header, by number."""
_BY_VALUE = {name.encode(): number for number, name in enumerate(NAMES)}


def read_priority(headers: Iterable[Header], default: int = NORMAL) -> int:
    """The priority that `x-mesh-priority` names (low, normal or high), else `default`; names are lower-case.

    >>> read_priority([(b"x-mesh-priority", b"low")])
    0
    """
    for name, value in headers:
        if name == PRIORITY_HEADER:
            return parse_priority(value, default)
    return default


def agreed_priority(headers: Iterable[Header], own: int | None) -> int:
    """The priority of a request to somebody who says `own` of it: its header lowers that, and does not raise it.

    With `own` None the header counts, else it is normal.
    """
    for name, value in headers:
        if name == PRIORITY_HEADER:
            said = parse_priority(value, NORMAL)
            if own is None:
                return said
            return own if said == NORMAL else min(said, own)
    return NORMAL if own is None else own


def parse_priority(value: bytes, default: int) -> int:
    """The number of a header's value; `default` where it says nothing known."""
    return _BY_VALUE.get(value.strip().lower(), default)
