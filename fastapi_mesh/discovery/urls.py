"""A reader of addresses: "http://host:port/base" or an ASGI application, to an Instance."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple, cast

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import ASGIApp, Scheme

DEFAULT_PORTS: dict[str, int] = {"http": 80, "https": 443, "h2": 443, "h2c": 80}
"""Schemes of URLs, with the port of those that name none (RFC 9110 section 4.2)."""

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
_PATH = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
"""RFC 3986 section 3.3: pchar and "/"."""


class _Problem(Exception):
    """What is wrong with an address, before it is known under which key it stands."""


class _Place(NamedTuple):
    scheme: str
    address: str
    port: int
    base_path: bytes


def parse(target: str | ASGIApp, *, service: str, id: str, key: str | None = None) -> Instance:
    """The instance at `target`.

    A URL is `scheme://host:port/base` with scheme http (also when there is none), https, h2 or h2c; an IPv6 address
    stands in brackets; `/base` is put before every request's path. A target that can be called is an ASGI application
    of this process. Of an address alone nobody has said how it is: its health is `unknown`, which calls take for
    healthy. Raises ConfigurationError that names `key` (default `services.SERVICE`), never with a password.

    >>> parse("https://[::1]:8443/api/", service="users", id="users-1").base_path
    b'/api'
    >>> parse("10.0.0.7:8000", service="users", id="users-1").port
    8000
    """
    if not isinstance(target, str):
        if not callable(target):
            raise ConfigurationError(
                f"{key or f'services.{service}'}: {target!r} is neither a URL nor an ASGI application"
            )
        return Instance(service, id, address=service, port=80, scheme="asgi", app=target)
    try:
        place = _read(target.strip())
    except _Problem as problem:
        raise ConfigurationError(f"{key or f'services.{service}'}: {_shown(target)!r} {problem}") from None
    scheme = cast("Scheme", place.scheme)
    return Instance(service, id, place.address, place.port, scheme=scheme, health="unknown", base_path=place.base_path)


def _read(text: str) -> _Place:
    if not text:
        raise _Problem("is empty; write scheme://host:port")
    if not text.isascii() or any(character <= " " or character == "\x7f" for character in text):
        raise _Problem("contains a space, a control character or a letter outside ASCII (use the xn-- form of names)")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in DEFAULT_PORTS:
        hint = " (a WebSocket is reached through the same http:// or https:// URL)" if scheme in ("ws", "wss") else ""
        raise _Problem(f"has an unknown scheme; use one of {', '.join(DEFAULT_PORTS)}{hint}")
    if "?" in rest or "#" in rest:
        raise _Problem("has a query or a fragment; an address is only scheme://host:port/base")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise _Problem("carries a user or password; send credentials as a header instead")
    address, port = _authority(authority)
    return _Place(scheme, address, port or DEFAULT_PORTS[scheme], _base_path(slash + path))


def _authority(authority: str) -> tuple[str, int | None]:
    if authority.startswith("["):
        inner, closed, after = authority[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise _Problem("has an IPv6 address without its closing bracket; write [::1]:8000")
        return _ipv6(inner), _port(after[1:]) if after else None
    host, colon, port = authority.partition(":")
    if ":" in port:
        raise _Problem("has more than one ':' in its host; an IPv6 address stands in brackets, like [::1]:8000")
    if not host:
        raise _Problem("has no host")
    if len(host) > 253 or not _HOST.fullmatch(host) or ".." in host:
        raise _Problem("has an invalid host name")
    if host.replace(".", "").isdigit():
        host = _ipv4(host)
    return host.lower(), _port(port) if colon else None


def _ipv6(text: str) -> str:
    if "%" in text:
        raise _Problem("has an IPv6 zone, which means nothing on another machine; use an address without one")
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise _Problem("has an invalid IPv6 address") from None


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise _Problem("has an invalid IPv4 address") from None


def _port(text: str) -> int:
    if not (text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise _Problem("has an invalid port; it is a number between 1 and 65535")
    return int(text)


def _base_path(path: str) -> bytes:
    if not _PATH.fullmatch(path):
        raise _Problem("has a character in its path that must be percent-encoded")
    if any(part in (".", "..") for part in path.lower().replace("%2e", ".").split("/")):
        raise _Problem("has '.' or '..' in its path")
    return path.rstrip("/").encode()


def _shown(text: str) -> str:
    """`text` for a message: without user, password, query and fragment, and not longer than a line."""
    head = re.split(r"[?#]", text, maxsplit=1)[0]
    mark = text[len(head) : len(head) + 1]
    if "@" in head:
        scheme = head.partition("://")[0]
        start = f"{scheme}://" if scheme.lower() in DEFAULT_PORTS else ""
        head = f"{start}***@{head.rpartition('@')[2]}"
    return (f"{head}{mark}***" if mark else head)[:200]
