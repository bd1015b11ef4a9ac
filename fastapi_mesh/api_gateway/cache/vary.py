"""Which variant of a resource a request gets: `Vary` and the request fields that it names (RFC 9111 section 4.1)."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.freshness import values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.message import Header

Selectors = tuple[tuple[bytes, bytes | None], ...]
"""Request fields and their normalised values, None for an absent one; sorted by name. () matches every request."""

_LISTS = frozenset({b"accept-charset", b"accept-encoding", b"accept-language"})
"""Fields whose members have no order and no case: `gzip, br` and `BR,gzip` ask for the same."""
_SECRET = frozenset(
    {b"authorization", b"cookie", b"api-key", b"apikey", b"x-access-token", b"x-api-key", b"x-auth-token"}
)
_LONG = 128
"""Bytes of a value that are kept as they are; of longer ones, and of secrets, only a digest is."""
_SPACE = re.compile(rb"\s+")
_FULL = re.compile(rb";q=1(\.0{0,3})?$")


def vary_names(headers: Sequence[Header]) -> tuple[bytes, ...]:
    """The request fields that a response was chosen by, in lower case and sorted; `*` for what nobody can know.

    A compressed one was chosen by Accept-Encoding, also where its service forgets to say so.
    """
    names = {name.strip().lower() for value in values(headers, b"vary") for name in value.split(b",") if name.strip()}
    if any(value.lower() != b"identity" for value in values(headers, b"content-encoding")):
        names.add(b"accept-encoding")
    return tuple(sorted(names))


def normalised(headers: Sequence[Header], name: bytes) -> bytes | None:
    """What a request says in the field `name`: members joined, without the space around them.

    >>> normalised([(b"accept-encoding", b"gzip, BR;q=1.0")], b"accept-encoding")
    b'br,gzip'
    """
    said = values(headers, name)
    if not said:
        return None
    members = [member.strip() for value in said for member in value.split(b",") if member.strip()]
    if name in _LISTS:
        members = sorted(_FULL.sub(b"", _SPACE.sub(b"", member).lower()) for member in members)
    value = b",".join(members)
    if name in _SECRET or len(value) > _LONG:
        return b"sha256:" + sha256(value).hexdigest().encode()
    return value


def selectors(headers: Sequence[Header], names: Sequence[bytes]) -> Selectors:
    """What a request with `headers` says in the fields `names`."""
    return tuple((name, normalised(headers, name)) for name in names)


class Selecting:
    """A request, asked whether it would have been given a stored variant. Normalises each field at most once."""

    __slots__ = ("_headers", "_known")

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers
        self._known: dict[bytes, bytes | None] = {}

    def matches(self, wanted: Selectors) -> bool:
        for name, value in wanted:
            known = self._known
            if name not in known:
                known[name] = normalised(self._headers, name)
            if known[name] != value:
                return False
        return True

    def selectors(self, names: Sequence[bytes]) -> Selectors:
        return selectors(self._headers, names)
