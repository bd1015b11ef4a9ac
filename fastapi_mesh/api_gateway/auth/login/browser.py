"""What can be told of a browser's request: what it wants, from which page it comes, and where it wanted to go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.public import prefix_of
from fastapi_mesh.config.edge.login import is_local

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from fastapi_mesh.api_gateway.exchange import Exchange

SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
LONGEST_RETURN = 1500
"""Characters of an address that a login remembers; a browser that wants to go back to a longer one gets to "/"."""


def is_navigation(request: Exchange) -> bool:
    """Whether a person waits for a page, so that a redirect leads somewhere.

    Browsers say it by `Sec-Fetch-Mode` (W3C Fetch Metadata), old ones, and all on plain HTTP, by asking for HTML. A
    page that is fetched ahead is for nobody yet.
    """
    if request.method not in (b"GET", b"HEAD") or request.scope["type"] != "http":
        return False
    mode = accept = None
    for name, value in request.headers:
        if name == b"sec-fetch-mode":
            mode = value
        elif name == b"accept":
            accept = value if accept is None else accept + b"," + value
        elif name in (b"sec-purpose", b"purpose") and b"prefetch" in value:
            return False
    if mode is not None:
        return mode == b"navigate"
    return accept is not None and b"text/html" in accept.lower()


def comes_from(request: Exchange, own: AbstractSet[str]) -> bool:
    """Whether the page that sent this is of one of the origins in `own`; False where nothing says so.

    Browsers set `Sec-Fetch-Site` and `Origin`, and no page can. `none` is the person: a bookmark, the address line.
    """
    origin = site = None
    for name, value in request.headers:
        if name == b"origin":
            origin = value.decode("latin-1") if origin is None else "null"
        elif name == b"sec-fetch-site":
            site = value
    if site in (b"same-origin", b"none"):  # a form of a page without referrer has the Origin "null"
        return True
    return origin is not None and origin in own


def is_cross_site(request: Exchange) -> bool:
    """Whether the browser says that a page of another site has led here."""
    return any(name == b"sec-fetch-site" and value == b"cross-site" for name, value in request.headers)


def address_of(request: Exchange) -> str:
    """The path and query that the browser has asked for; "/" where it can't be sent back there."""
    path = prefix_of(request) + request.path.decode("latin-1")
    query = request.query.decode("latin-1")
    address = f"{path}?{query}" if query else path
    return address if is_local(address) and len(address) <= LONGEST_RETURN else "/"
