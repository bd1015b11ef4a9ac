"""May a stored response be served, and how: pure functions of RFC 9111 sections 4 and 5.2.1, and RFC 5861."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.dates import http_date
from fastapi_mesh.api_gateway.cache.directives import seconds
from fastapi_mesh.api_gateway.cache.freshness import first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.cache.asked import Asked
    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.core.message import Header

_TAG = re.compile(rb'(?:W/)?"[^"]*"|[^\s,]+')
_NOT_FROM_304 = frozenset({b"content-encoding", b"content-type", b"content-range", b"content-length", b"etag"})
"""What a 304 must not change in a stored response, as it describes the stored bytes (RFC 9111 section 3.2)."""
CONDITIONS = frozenset({b"if-none-match", b"if-modified-since", b"if-range", b"range"})


class Verdict(Enum):
    """What to do with a stored response."""

    FRESH = "fresh"
    STALE = "max-stale"
    """The client takes it although it is stale."""
    REFRESH = "stale-while-revalidate"
    """Serve it, and get a new one in the background."""
    ASK = "ask"
    """Not before the service has been asked."""


def judge(entry: Entry, asked: Asked, now: float) -> Verdict:
    """Whether `entry`, which fits the request, may be served to it now."""
    control = asked.control
    age = entry.age(now)
    if control:
        if "no-cache" in control or "no-store" in control:
            return Verdict.ASK
        if (limit := seconds(control, "max-age")) is not None and age > limit:
            return Verdict.ASK
        if age + (seconds(control, "min-fresh") or 0) < entry.lifetime:
            return Verdict.FRESH
        if "min-fresh" in control:
            return Verdict.ASK
    elif age < entry.lifetime:
        return Verdict.FRESH
    if entry.strict:
        return Verdict.ASK
    if age < entry.lifetime + entry.while_revalidate:
        return Verdict.REFRESH
    if "max-stale" in control:
        limit = None if control["max-stale"] is None else seconds(control, "max-stale")
        if limit is None or age < entry.lifetime + limit:
            return Verdict.STALE
    return Verdict.ASK


def may_replace_error(entry: Entry, asked: Asked, now: float, *, grace: float) -> bool:
    """Whether `entry` may be served where the service failed.

    `stale-if-error` gives the time (RFC 5861 section 4), else `grace` seconds do (RFC 9111 section 4.2.4).
    """
    if entry.strict or "no-cache" in asked.control or "no-store" in asked.control:
        return False
    window = grace if entry.if_error is None else entry.if_error
    said = seconds(asked.control, "stale-if-error")
    if said is not None and entry.if_error is None:
        window = max(window, said)
    return entry.age(now) < entry.lifetime + window


def validating(headers: Sequence[Header], entry: Entry) -> list[Header]:
    """The headers of a request that asks whether `entry` still holds; the client's own conditions are left out."""
    sent = [header for header in headers if header[0] not in CONDITIONS]
    if entry.etag is not None:
        sent.append((b"if-none-match", entry.etag))
    if entry.modified is not None:
        sent.append((b"if-modified-since", entry.modified))
    return sent


def confirms(headers: Sequence[Header], entry: Entry) -> bool:
    """Whether a 304 with `headers` is about `entry`: if it names an entity tag, then this one (section 4.3.4)."""
    etag = first(headers, b"etag")
    return etag is None or entry.etag is None or _opaque(etag) == _opaque(entry.etag)


def merged(entry: Entry, headers: Sequence[Header]) -> list[Header]:
    """The headers of `entry` after a 304 with `headers` (RFC 9111 section 3.2)."""
    new = [header for header in headers if header[0] not in _NOT_FROM_304]
    names = {name for name, _ in new}
    return [header for header in entry.headers if header[0] not in names] + new


def not_modified(asked: Asked, entry: Entry) -> bool:
    """Whether the client has `entry` already (RFC 9110 section 13.2.2): an answer of 304."""
    if asked.none_match is not None:
        if entry.etag is None:
            return b"*" in asked.none_match
        known = [_opaque(tag) for tag in _TAG.findall(b",".join(asked.none_match))]
        return b"*" in known or _opaque(entry.etag) in known
    if asked.since is None:
        return False
    since = http_date(asked.since)
    modified = http_date(entry.modified or first(entry.headers, b"date") or b"")
    return since is not None and modified is not None and modified <= since


def _opaque(tag: bytes) -> bytes:
    """An entity tag without its mark for weakness: what the weak comparison compares."""
    return tag.removeprefix(b"W/")
