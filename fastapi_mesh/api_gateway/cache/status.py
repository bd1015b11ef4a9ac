"""`Cache-Status`: what the cache did with a request (RFC 9211)."""

from __future__ import annotations

import re

from fastapi_mesh.api_gateway.cache.key import shown

_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~:/0-9A-Za-z]*")
_PRINTABLE = bytes(range(0x20, 0x7F))
_LONGEST_KEY = 1024


def name_of(via: str) -> bytes:
    """The name of a cache as a member of the field: a token where it can be one, else a string."""
    return via.encode() if _TOKEN.fullmatch(via) else b'"' + via.encode() + b'"'


def key_parameter(place: bytes) -> bytes:
    """`; key="..."`, or nothing where the URL is too long or has a byte in it that no string of the field may have."""
    key = shown(place)
    if len(key) > _LONGEST_KEY or key.translate(None, _PRINTABLE):
        return b""
    return b'; key="' + key.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def hit(name: bytes, ttl: float, place: bytes, detail: str = "") -> bytes:
    """Served from the cache; `ttl` is seconds for which it is still fresh, negative for a stale one."""
    more = b"; detail=" + detail.encode() if detail else b""
    return b"%b; hit; ttl=%d%b%b" % (name, ttl, key_parameter(place), more)


def forwarded(
    name: bytes,
    why: str,
    place: bytes = b"",
    *,
    status: int = 0,
    stored: bool = False,
    collapsed: bool = False,
    detail: str = "",
) -> bytes:
    """Sent on to the service; `status` is that of its answer, where it is not the client's."""
    text = f"; fwd={why}"
    if status:
        text += f"; fwd-status={status}"
    if stored:
        text += "; stored"
    if collapsed:
        text += "; collapsed"
    key = key_parameter(place) if place else b""
    return name + text.encode() + key + (b"; detail=" + detail.encode() if detail else b"")
