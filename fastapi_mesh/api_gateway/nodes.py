"""What proxies write of those before them: the nodes of X-Forwarded-For and the elements of Forwarded (RFC 7239)."""

from __future__ import annotations

import re

_PORT = re.compile(r"[0-9]{1,5}|_[A-Za-z0-9._-]+")
_PAIR = re.compile(rb"""[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^ \t",;]*)[ \t]*""")
"""Unquoted values may have a colon here, against the RFC's grammar: `for=192.0.2.1:4711` is common."""
_ESCAPED = re.compile(rb"\\(.)")


def address_of(node: str) -> str:
    """The address in a node, without brackets and port; "" where it can't have one.

    >>> address_of("192.0.2.1:4711"), address_of("[2001:db8::1]:4711"), address_of("2001:db8::1"), address_of("[x")
    ('192.0.2.1', '2001:db8::1', '2001:db8::1', '')
    """
    if node[:1] == "[":
        address, bracket, rest = node[1:].partition("]")
        return address if bracket and (not rest or (rest[0] == ":" and _PORT.fullmatch(rest[1:]))) else ""
    if node.count(":") == 1:
        address, _, port = node.partition(":")
        return address if _PORT.fullmatch(port) else ""
    return node


def read_forwarded(value: bytes) -> tuple[bytes, bytes] | None:
    """The `for` nodes of a Forwarded header, joined by commas, and the `proto` of its last element (b"" without one).

    None for what is no such header: of a list that can't be read nothing can be believed.

    >>> read_forwarded(b'for=192.0.2.1;proto=https, for="[2001:db8::1]:80";Proto=http')
    (b'192.0.2.1,[2001:db8::1]:80', b'http')
    """
    nodes: list[bytes] = []
    pairs: dict[bytes, bytes] = {}
    position = 0
    while True:
        match = _PAIR.match(value, position)
        if match is None:
            return None
        name, text = match[1].lower(), match[2]
        if name in pairs:
            return None
        pairs[name] = _ESCAPED.sub(rb"\1", text[1:-1]) if text[:1] == b'"' else text
        position = match.end()
        following = value[position : position + 1]
        if following in (b"", b","):
            nodes.append(pairs.get(b"for", b"unknown").replace(b",", b" "))
            if not following:
                return b",".join(nodes), pairs.get(b"proto", b"").lower()
            pairs = {}
        elif following != b";":
            return None
        position += 1
