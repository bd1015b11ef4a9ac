"""The gateway's own cookies: read from a request and taken out of it, and written, in parts where one is too small.

Over https their names begin with `__Host-` (RFC 6265bis section 4.1.3.2), and only those count there: no other host,
and nobody on a plain connection, can plant one.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.api_gateway.exchange import Exchange
    from fastapi_mesh.config.edge.login import LoginConfig
    from fastapi_mesh.core.message import Header

PART = 3600
"""Characters of a cookie's value; browsers keep 4096 bytes of name, value and attributes (RFC 6265 section 6.1)."""
MOST_PARTS = 4
"""All of them come with every request, and servers take 16 KiB and more of headers."""
_HOST = b"__Host-"
_PARTS = re.compile(r"([1-9])~(.*)", re.DOTALL)

Sent = dict[str, str]
"""Cookies of ours in a request, by their name without `__Host-`."""


def https_of(config: LoginConfig) -> bool | None:
    """Whether browsers come over https; None where each request says so."""
    return None if config.public_url is None else config.public_url.startswith("https:")


class Jar:
    """Takes the cookies of `logins` out of requests, whatever part, purpose and prefix they have."""

    __slots__ = ("_https", "_ours", "_words")

    def __init__(self, logins: Iterable[LoginConfig]) -> None:
        self._https = {config.cookie: https_of(config) for config in logins}
        self._words = tuple(name.encode() for name in self._https)
        listed = "|".join(re.escape(name) for name in self._https)
        self._ours = re.compile(rf"(__Host-)?(({listed})(?:-login-[0-9a-f]+|\.[0-9]+)?)".encode())

    def take(self, request: Exchange) -> Sent:
        """The cookies that count, given how the browser came here. One that comes twice does not."""
        headers = request.headers
        if not any(name == b"cookie" and self._concerns(value) for name, value in headers):
            return {}
        found: Sent = {}
        doubled: set[str] = set()
        kept: list[Header] = []
        for header in headers:
            if header[0] != b"cookie":
                kept.append(header)
                continue
            others = []
            for pair in header[1].split(b";"):
                pair = pair.strip(b" \t")
                name, _, value = pair.partition(b"=")
                match = self._ours.fullmatch(name.strip(b" \t"))
                if match is None:
                    others.append(pair)
                elif (match[1] is not None) is self._is_secure(match[3].decode(), request):
                    key = match[2].decode()
                    if key in found:
                        doubled.add(key)
                    found[key] = value.strip(b'" \t').decode("latin-1")
            if others:
                kept.append((b"cookie", b"; ".join(others)))
        request.headers = kept
        for key in doubled:
            del found[key]
        return found

    def _is_secure(self, name: str, request: Exchange) -> bool:
        https = self._https[name]
        return request.origin.scheme == "https" if https is None else https

    def _concerns(self, value: bytes) -> bool:
        return any(word in value for word in self._words)


class Cookies:
    """Reads and writes the cookies of one login, whose base `name` is without prefix."""

    __slots__ = ("_login", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._login = f"{name}-login-"

    def session(self, sent: Mapping[str, str]) -> str | None:
        """The session, put together from its parts; None where there is none, or a part is missing."""
        first = _PARTS.fullmatch(sent.get(self._name, ""))
        if first is None:
            return None
        parts = [first[2], *(sent.get(f"{self._name}.{number}") for number in range(1, int(first[1])))]
        return "".join(part for part in parts if part is not None) if None not in parts else None

    def fits(self, session: str) -> bool:
        """Whether there is room for it."""
        return len(session) <= PART * MOST_PARTS

    def keep_session(self, session: str, sent: Mapping[str, str], *, secure: bool, age: float) -> list[Header]:
        """What makes the browser keep a session for `age` seconds, and forget parts of the one before."""
        parts = [session[start : start + PART] for start in range(0, len(session), PART)]
        names = [self._name, *(f"{self._name}.{number}" for number in range(1, len(parts)))]
        values = [f"{len(parts)}~{parts[0]}", *parts[1:]]
        kept = [_kept(name, value, secure=secure, age=age) for name, value in zip(names, values, strict=True)]
        return kept + [_gone(name, secure=secure) for name in self._of_session(sent) if name not in names]

    def forget_session(self, sent: Mapping[str, str], *, secure: bool) -> list[Header]:
        """What makes the browser forget the session, and logins under way."""
        names = {self._name, *self._of_session(sent), *self.logins(sent)}
        return [_gone(name, secure=secure) for name in sorted(names)]

    def login(self, state: str) -> str:
        """The name of the cookie of one login: several tabs may be at it at once."""
        return self._login + sha256(state.encode()).hexdigest()[:16]

    def logins(self, sent: Mapping[str, str]) -> list[str]:
        """The names of logins under way."""
        return [name for name in sent if name.startswith(self._login)]

    def keep_login(self, state: str, value: str, *, secure: bool, age: float) -> Header:
        """What makes the browser remember a login for `age` seconds."""
        return _kept(self.login(state), value, secure=secure, age=age)

    def forget(self, name: str, *, secure: bool) -> Header:
        """What makes the browser forget a cookie of ours."""
        return _gone(name, secure=secure)

    def _of_session(self, sent: Mapping[str, str]) -> list[str]:
        return [name for name in sent if name == self._name or name.startswith(f"{self._name}.")]


def _kept(name: str, value: str, *, secure: bool, age: float) -> Header:
    return _set_cookie(name, value, f"Max-Age={max(1, int(age))}", secure=secure)


def _gone(name: str, *, secure: bool) -> Header:
    return _set_cookie(name, "", "Max-Age=0", secure=secure)


def _set_cookie(name: str, value: str, age: str, *, secure: bool) -> Header:
    """`Lax`, because the browser comes back from the authorization server by a link of another site."""
    prefix, mark = (_HOST.decode(), "; Secure") if secure else ("", "")
    return b"set-cookie", f"{prefix}{name}={value}; Path=/; {age}; HttpOnly; SameSite=Lax{mark}".encode()
