"""What a request asks of the cache: one pass over its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.directives import NOTHING, Directives, cache_control

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.core.message import Header

(
    _CONTROL,
    _PRAGMA,
    _RANGE,
    _IF_RANGE,
    _NONE_MATCH,
    _SINCE,
    _BYPASS,
    _HOST,
    _PREFIX,
    AUTHORIZATION,
    CREDENTIAL,
    _KEYED,
) = range(12)

KEYED = frozenset(
    {
        b"front-end-https",
        b"x-envoy-original-path",
        b"x-forwarded-method",
        b"x-forwarded-path",
        b"x-forwarded-port",
        b"x-forwarded-protocol",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-forwarded-uri",
        b"x-host",
        b"x-http-host-override",
        b"x-mesh-shadow",
        b"x-original-host",
        b"x-original-method",
        b"x-url-scheme",
    }
)
"""What frameworks make URLs, redirects and choices of. Proxies in front set some of them on every request, so they are
part of the key instead of a reason to bypass: an answer that one of them was planted in is found by the same one only.
"""

_KINDS: dict[bytes, int] = {
    b"cache-control": _CONTROL,
    b"pragma": _PRAGMA,
    b"range": _RANGE,
    b"if-range": _IF_RANGE,
    b"if-none-match": _NONE_MATCH,
    b"if-modified-since": _SINCE,
    b"x-forwarded-host": _HOST,
    b"x-forwarded-prefix": _PREFIX,
    b"authorization": AUTHORIZATION,
    # A precondition for changing something; a stored answer can't tell whether it holds (RFC 9111 section 4.3.2).
    b"if-match": _BYPASS,
    b"if-unmodified-since": _BYPASS,
    # Frameworks take these for the real method or path, and no cache key has them: a door for cache poisoning.
    b"x-http-method": _BYPASS,
    b"x-http-method-override": _BYPASS,
    b"x-method-override": _BYPASS,
    b"x-original-url": _BYPASS,
    b"x-rewrite-url": _BYPASS,
}
_KINDS |= dict.fromkeys(KEYED, _KEYED)
_NO_CACHE = cache_control([b"no-cache"])


def kinds_of(credentials: tuple[str, ...], *, cookies: bool) -> Mapping[bytes, int]:
    """What each request header is to the cache; `credentials` names those that say who asks, beside Authorization."""
    named = {name.lower().encode(): CREDENTIAL for name in credentials}
    return {**named, **({b"cookie": CREDENTIAL} if cookies else {}), **_KINDS}


class Asked:
    """`credentials` are all headers that say who asks, in order; `authorization` whether Authorization is one of them.

    `conditional` says whether the client validates something of its own, `host` and `prefix` what the service is told
    that the client used, `keyed` what else is part of the key. `bypass` names what makes the request none for the
    cache, "" for nothing.
    """

    __slots__ = (
        "authorization",
        "bypass",
        "control",
        "credentials",
        "host",
        "if_range",
        "keyed",
        "none_match",
        "prefix",
        "range",
        "since",
    )

    def __init__(self, headers: list[Header], kinds: Mapping[bytes, int], *, obeys: bool) -> None:
        self.authorization = False
        self.bypass = ""
        self.control: Directives = NOTHING
        self.credentials: list[bytes] | None = None
        self.host = b""
        self.if_range: bytes | None = None
        self.keyed: list[bytes] | None = None
        self.none_match: list[bytes] | None = None
        self.prefix = b""
        self.range: bytes | None = None
        self.since: bytes | None = None
        control: list[bytes] | None = None
        pragma = False
        for header in headers:
            kind = kinds.get(header[0])
            if kind is None:
                continue
            value = header[1]
            if kind == _HOST:
                self.host = value
            elif kind in (CREDENTIAL, AUTHORIZATION):
                self.authorization = self.authorization or kind == AUTHORIZATION
                self.credentials = [*(self.credentials or ()), header[0], value]
            elif kind == _CONTROL:
                control = [*(control or ()), value]
            elif kind == _PRAGMA:
                pragma = pragma or b"no-cache" in value.lower()
            elif kind == _NONE_MATCH:
                self.none_match = [*(self.none_match or ()), value]
            elif kind == _SINCE:
                self.since = value
            elif kind == _RANGE:
                self.range = value if self.range is None else b""  # two of them: no range that could be read
            elif kind == _IF_RANGE:
                self.if_range = value
            elif kind == _PREFIX:
                self.prefix = value
            elif kind == _KEYED:
                self.keyed = [*(self.keyed or ()), header[0], value]
            else:
                self.bypass = header[0].decode("latin-1")
        if obeys and control is not None:
            self.control = cache_control(control)
        elif obeys and pragma:
            self.control = _NO_CACHE

    @property
    def partial(self) -> bool:
        """Whether the service, asked the same, may answer with less than the whole: nothing that could be stored."""
        return self.range is not None or self.none_match is not None or self.since is not None
