"""How long a response is fresh, and how old it is already: pure functions of RFC 9111 section 4.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.dates import http_date
from fastapi_mesh.api_gateway.cache.directives import LONG, Directives, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.message import Header

HEURISTIC = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that may be stored without the service saying so (RFC 9110 section 15.1); 206 is never stored here."""
FALLBACK = frozenset({200, 203, 204, 300, 301, 308, 410})
"""Of these, the ones that `cache_ttl` gives a lifetime to: an error without a word on caching is not kept."""
KNOWN = HEURISTIC | {302, 303, 307, 400, 401, 403, 451, 500, 502, 503, 504}
"""Statuses whose rules on caching this cache knows, for `must-understand` (RFC 9111 section 5.2.2.3)."""
LONGEST_GUESS = 86400.0
"""Seconds that a heuristic lifetime has at most (RFC 9111 section 4.2.2 asks for a bound)."""


def values(headers: Sequence[Header], name: bytes) -> list[bytes]:
    """All values of a field; `name` in lower case, as all names here are."""
    return [value for each, value in headers if each == name]


def first(headers: Sequence[Header], name: bytes) -> bytes | None:
    """The first value of a field."""
    for each, value in headers:
        if each == name:
            return value
    return None


def explicit_lifetime(
    headers: Sequence[Header], directives: Directives, *, targeted: bool, received: float
) -> float | None:
    """Seconds that the service gave (section 4.2.1, shared cache): s-maxage, max-age, Expires; None: it gave none.

    An Expires that is no date, or given twice, is in the past (section 5.3).
    """
    for name in ("s-maxage", "max-age"):
        if (lifetime := seconds(directives, name)) is not None:
            return lifetime
    if targeted or not (expires := values(headers, b"expires")):
        return None
    end = http_date(expires[0]) if len(expires) == 1 else None
    if end is None:
        return 0.0
    date = http_date(first(headers, b"date") or b"")
    return max(0.0, end - (received if date is None else date))


def heuristic_lifetime(
    status: int, headers: Sequence[Header], *, public: bool, fraction: float, now: float
) -> float | None:
    """A share of the time since Last-Modified, at most a day (section 4.2.2); None where there is nothing to go by."""
    modified = http_date(first(headers, b"last-modified") or b"")
    if not fraction or modified is None or not (public or status in HEURISTIC):
        return None
    return min(max(0.0, now - modified) * fraction, LONGEST_GUESS)


def initial_age(headers: Sequence[Header], requested: float, received: float) -> float:
    """Seconds that the response was old when it came (section 4.2.3).

    Of several Age values the first counts; one that is no number is ignored, but a number with parameters was meant as
    an age by somebody, so the response is taken for very old.
    """
    said = b",".join(values(headers, b"age")).split(b",")[0].strip()
    unreadable = LONG if b";" in said or said.isdigit() else 0
    age = min(int(said), LONG) if said.isdigit() and len(said) <= 18 else unreadable
    date = http_date(first(headers, b"date") or b"")
    apparent = 0.0 if date is None else max(0.0, received - date)
    return max(apparent, age + (received - requested))
