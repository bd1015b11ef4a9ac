"""Whose pages may open a WebSocket: what keeps others from doing it in their visitor's name (RFC 6455 section 10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.public import origin_of
from fastapi_mesh.config.edge.websocket import SELF

if TYPE_CHECKING:
    from collections.abc import Collection

    from fastapi_mesh.api_gateway.exchange import Exchange


def may_open(request: Exchange, allowed: Collection[str]) -> bool:
    """Whether the page that a handshake comes from is of one of the origins in `allowed`; empty allows all.

    Browsers send exactly one `Origin`, and pages can't change it (RFC 6454 section 7.3). A client without one is no
    browser, and could send any.
    """
    if not allowed:
        return True
    named = [value.decode("latin-1") for name, value in request.headers if name == b"origin"]
    if not named:
        return True
    return len(named) == 1 and (named[0] in allowed or (SELF in allowed and named[0] == origin_of(request)))
