"""What of a request decides where it goes: the value of a header, a cookie, a query parameter, or the path."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.message import Request

    KeyOf = Callable[[Request], bytes | None]
    """The key of a request, None where it has none."""


def key_reader(setting: str) -> KeyOf:
    """The reader for `hash_on`: "path", or "header:", "cookie:" or "query:" and a name."""
    source, _, name = setting.partition(":")
    if source == "header":
        return header_reader(name)
    if source == "cookie":
        return cookie_reader(name)
    return _query_reader(name) if source == "query" else path_of


def path_of(request: Request) -> bytes | None:
    """The path as it is sent, without query."""
    return request.target.partition(b"?")[0]


def header_reader(name: str) -> KeyOf:
    """The first value of a header, None where it is missing or empty."""
    wanted = name.lower().encode()

    def read(request: Request) -> bytes | None:
        for key, value in request.headers:
            if key == wanted or key.lower() == wanted:
                return value or None
        return None

    return read


def cookie_reader(name: str) -> KeyOf:
    """The value of a cookie, or what a gateway is about to set as its value; None where there is neither."""
    wanted = name.encode()

    def read(request: Request) -> bytes | None:
        value = cookie_of(request, wanted)
        return request.context.affinity if value is None else value

    return read


def cookie_of(request: Request, name: bytes) -> bytes | None:
    """The value of the first cookie of that name, None where it is missing or empty."""
    for key, value in request.headers:
        if key == b"cookie" or key.lower() == b"cookie":
            for pair in value.split(b";"):
                found, _, text = pair.partition(b"=")
                if found.strip(b" \t") == name:
                    return text.strip(b" \t") or None
    return None


def _query_reader(name: str) -> KeyOf:
    prefix = name.encode() + b"="

    def read(request: Request) -> bytes | None:
        for part in request.target.partition(b"?")[2].split(b"&"):
            if part.startswith(prefix):
                return part[len(prefix) :] or None
        return None

    return read
