"""What Cache-Control and its kin say: strict reading of directives (RFC 9111 section 5.2, RFC 9213).

Directives are a mapping from their name in lower case to their argument: None where there is none, "" where there is
one that can't be read. Of a number given twice the smaller one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Header

Directives = Mapping[str, str | None]

NOTHING: Directives = MappingProxyType({})
LONG = 2**31
"""Seconds that stand for "for ever": larger numbers become this one (RFC 9111 section 1.2.2)."""

_DIRECTIVE = re.compile(
    r"\s*(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)"
    r'(?:=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s,"]*)))?'
    r'(?P<rest>[^,"]*)(?:,|$)'
)
_MEMBER = re.compile(
    r'(?P<name>[a-z*][a-z0-9_\-.*]*)(?:=(?P<value>-?\d+|"[^"]*"|[A-Za-z*][^\s,;"]*|\?[01]))?(?:;[^,]*)?'
)
"""A member of a dictionary of structured fields (RFC 9651 section 3.2), as far as cache directives need one."""
_FRESHNESS = ("max-age", "s-maxage")


@lru_cache(maxsize=512)
def _parse(text: bytes) -> Directives:
    found: dict[str, str | None] = {}
    line = text.decode("latin-1")
    position = 0
    while position < len(line):
        match = _DIRECTIVE.match(line, position)
        if match is None:  # not a directive at all: go on behind the next comma
            position = line.find(",", position) + 1 or len(line)
            continue
        position = match.end()
        name = match["name"].lower()
        value = match["quoted"] if match["quoted"] is not None else match["token"]
        if match["rest"].strip():  # `max-age = 5`, `max-age=1 2`: it is there, and can't be read
            value = None if value is None and not match["rest"].lstrip().startswith("=") else ""
        earlier = found.get(name)
        if earlier is not None and value is not None and _is_number(earlier) and _is_number(value):
            value = min(value, earlier, key=int)
        found[name] = value
    return MappingProxyType(found)


def cache_control(values: Sequence[bytes]) -> Directives:
    """The directives of the values of Cache-Control."""
    return _parse(b",".join(values)) if values else NOTHING


def response_control(headers: Sequence[Header]) -> tuple[Directives, bool]:
    """What a response says to this cache, and whether it said so in CDN-Cache-Control.

    A valid CDN-Cache-Control takes the place of Cache-Control and Expires (RFC 9213 section 2.2).
    """
    targeted: list[bytes] = []
    usual: list[bytes] = []
    for name, value in headers:
        if name == b"cache-control":
            usual.append(value)
        elif name == b"cdn-cache-control":
            targeted.append(value)
    if targeted and (directives := _structured(b",".join(targeted))) is not None:
        return directives, True
    return cache_control(usual), False


@lru_cache(maxsize=256)
def _structured(text: bytes) -> Directives | None:
    """Directives as a dictionary of structured fields; None where it is not a valid one."""
    found: dict[str, str | None] = {}
    for part in text.decode("latin-1").split(","):
        match = _MEMBER.fullmatch(part.strip())
        if match is None:
            return None
        name, value = match["name"], match["value"]
        if name in _FRESHNESS and not _is_number(value or ""):
            return None
        found[name] = None if value is None else value.strip('"')
    return MappingProxyType(found)


def seconds(directives: Directives, name: str) -> int | None:
    """The argument of a directive in seconds, None where it is absent; an argument that can't be read counts as 0."""
    if name not in directives:
        return None
    value = directives[name]
    return min(int(value), LONG) if value is not None and _is_number(value) else 0


def fields(directives: Directives, name: str) -> frozenset[bytes]:
    """The field names that `no-cache="..."` or `private="..."` lists, in lower case."""
    return frozenset(
        field.strip().lower().encode("latin-1") for field in (directives.get(name) or "").split(",") if field.strip()
    )


def means_all(directives: Directives, name: str) -> bool:
    """Whether `no-cache` or `private` is there, and about the whole response rather than some of its fields."""
    return name in directives and not fields(directives, name)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
