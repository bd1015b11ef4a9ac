"""Takes credentials out of a request: from headers, query and cookies, in one pass, and out of what goes on.

Whatever a client sends in the headers by which services learn who it is goes too, in every spelling that a service
could take for them.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from fastapi_mesh.api_gateway.auth.base import FromCookie, FromHeader, FromQuery

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.auth.base import Place
    from fastapi_mesh.api_gateway.exchange import Exchange
    from fastapi_mesh.core.message import Header

_COOKIE = b"cookie"


class DoubleCredentialError(ValueError):
    """A credential came twice: two readers could take a different one of them."""


def spellings(names: Iterable[bytes]) -> frozenset[bytes]:
    """Header names with each `-` also as `_`: CGI, WSGI and their kin can't tell these apart."""
    found = set()
    for name in names:
        words = name.split(b"-")
        for marks in product((b"-", b"_"), repeat=len(words) - 1):
            found.add(b"".join(part for pair in zip(words, (*marks, b""), strict=True) for part in pair))
    return frozenset(found)


Found = dict[int, str]
"""Credentials of a request, by the slot of their place."""


class Reader:
    """Reads `places`. `keep` leaves the credentials in the request; `never` are headers that always go.

    Each place has a slot, a number: numbers are found faster than places, and providers of one place share it.
    """

    __slots__ = ("_cookies", "_headers", "_keep", "_never", "_queries", "_slots", "_special")

    def __init__(self, places: Iterable[Place], *, keep: bool, never: frozenset[bytes]) -> None:
        self._keep = keep
        self._never = never
        self._slots: dict[Place, int] = {}
        self._headers: dict[bytes, dict[bytes, int]] = {}
        self._queries: dict[str, int] = {}
        self._cookies: dict[bytes, int] = {}
        for place in places:
            slot = self._slots.setdefault(place, len(self._slots))
            if isinstance(place, FromHeader):
                self._headers.setdefault(place.name, {})[place.scheme] = slot
            elif isinstance(place, FromQuery):
                self._queries[place.name] = slot
            elif isinstance(place, FromCookie):
                self._cookies[place.name] = slot
        self._special = never | set(self._headers) | ({_COOKIE} if self._cookies else set())

    def slots(self, places: Iterable[Place]) -> tuple[int, ...]:
        """The slots of places that it reads."""
        return tuple(self._slots[place] for place in places)

    def take(self, request: Exchange) -> Found:
        """The credentials of a request. Raises DoubleCredentialError, after all were taken out."""
        found: Found = {}
        special = self._special
        headers = request.headers
        doubled = False
        if not special.isdisjoint([name for name, _ in headers]):
            kept: list[Header] = []
            seen: set[bytes] = set()
            for header in headers:
                name = header[0]
                if name not in special:
                    kept.append(header)
                elif name in self._headers:
                    doubled |= name in seen
                    seen.add(name)
                    if self._is_not_ours(name, header[1], found) or self._keep:
                        kept.append(header)
                elif name == _COOKIE:
                    value, again = self._from_cookies(header[1], found)
                    doubled |= again
                    if value:
                        kept.append((name, value))
            request.headers = kept
        if self._queries and b"?" in request.target:
            doubled |= self._from_query(request, found)
        if doubled:
            raise DoubleCredentialError
        return found

    def _is_not_ours(self, name: bytes, value: bytes, found: Found) -> bool:
        """Whether a header belongs to the service, like a scheme of `Authorization` that no provider reads."""
        places = self._headers[name]
        bare = places.get(b"")
        if bare is not None:
            found[bare] = value.strip(b" \t").decode("latin-1")
            return False
        scheme, _, rest = value.strip(b" \t").partition(b" ")
        slot = places.get(scheme.lower())
        if slot is None:
            return True
        found[slot] = rest.strip(b" ").decode("latin-1")
        return False

    def _from_cookies(self, value: bytes, found: Found) -> tuple[bytes, bool]:
        """What is left of a Cookie header, and whether one of ours came twice."""
        doubled = False
        others = []
        for pair in value.split(b";"):
            name, _, text = pair.strip(b" \t").partition(b"=")
            slot = self._cookies.get(name)
            if slot is not None:
                doubled |= slot in found
                found[slot] = text.strip(b'" \t').decode("latin-1")
            if slot is None or self._keep:
                others.append(pair.strip(b" \t"))
        return b"; ".join(others), doubled

    def _from_query(self, request: Exchange, found: Found) -> bool:
        """Names are compared decoded: a service decodes them too, and would see what was not taken out.

        The query of the ASGI scope is changed as well, since the server's own access log writes that one.
        """
        path, _, query = request.target.partition(b"?")
        doubled = False
        others = []
        for pair in query.split(b"&"):
            name, _, text = pair.partition(b"=")
            slot = self._queries.get(unquote_plus(name.decode("latin-1")))
            if slot is None:
                others.append(pair)
            else:
                doubled |= slot in found
                found[slot] = unquote_plus(text.decode("latin-1"))
        if len(others) <= query.count(b"&") and not self._keep:
            rest = b"&".join(others)
            request.target = path + b"?" + rest if rest else path
            request.scope["query_string"] = rest
        return doubled
