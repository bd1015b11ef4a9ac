"""One request on its way through the cache, and the answers that are made for it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.cache.ranges import ByteRange, byte_range
from fastapi_mesh.api_gateway.cache.serving import not_modified
from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.message import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.cache.asked import Asked
    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.key import Key
    from fastapi_mesh.api_gateway.cache.vary import Selecting
    from fastapi_mesh.api_gateway.exchange import Exchange
    from fastapi_mesh.core.message import Header

DATE = b"date"
STATUS = b"cache-status"


class OnlyIfCachedError(GatewayRefusalError):
    """The client wants an answer from the cache or none (RFC 9111 section 5.2.1.7), and there is none."""

    status: ClassVar[int] = 504
    reason: ClassVar[str] = "only-if-cached"


class Visit:
    """A request with what it asks of the cache, its key, and what its headers select."""

    __slots__ = ("asked", "key", "request", "selecting")

    def __init__(self, request: Exchange, asked: Asked, key: Key, selecting: Selecting) -> None:
        self.request = request
        self.asked = asked
        self.key = key
        self.selecting = selecting

    def again(self) -> Visit:
        """The same as a GET of its own: another call, with all its time and attempts."""
        return Visit(again(self.request), self.asked, self.key, self.selecting)


def again(request: Exchange) -> Exchange:
    """`request` for another call: its own headers, and a context that no call was made with."""
    other = copy.copy(request)
    other.method = b"GET"
    other.headers = list(request.headers)
    before = request.context
    other.context = CallContext(before.policy, before.state, template=before.template)
    other.context.request_id = before.request_id
    other.context.principal = before.principal
    return other


def outgoing(headers: Sequence[Header], *, keep_date: bool) -> list[Header]:
    """Headers of a response for the client: the server in front writes a Date of its own, unless it was told not to."""
    return list(headers) if keep_date else [header for header in headers if header[0] != DATE]


def answer(entry: Entry, visit: Visit, now: float, *, keep_date: bool, status: bytes | None) -> Response:
    """The response that `entry` makes for a request: whole, a part of it (206), or that the client has it (304)."""
    headers = outgoing(entry.head, keep_date=keep_date)
    headers.append((b"age", b"%d" % entry.age(now)))
    if status is not None:
        headers.append((STATUS, status))
    asked = visit.asked
    body = entry.body
    if entry.status == 200 and (asked.none_match is not None or asked.since is not None) and not_modified(asked, entry):
        return Response.of(304, [header for header in headers if header[0] != b"content-length"], b"")
    if visit.request.method == b"HEAD":
        return Response.of(entry.status, headers, b"")
    if entry.status == 200 and asked.range is not None:
        part = byte_range(asked.range, asked.if_range, total=len(body), etag=entry.etag, modified=entry.modified)
        if part is not None:
            return _partial(headers, body, part if isinstance(part, ByteRange) else None)
    return Response.of(entry.status, headers, body)


def _partial(headers: list[Header], body: bytes, part: ByteRange | None) -> Response:
    """206 with one range, 416 without."""
    data = b"" if part is None else body[part.start : part.end]
    described = b"bytes */%d" % len(body) if part is None else part.content_range
    kept = [header for header in headers if header[0] != b"content-length"]
    kept += [(b"content-length", b"%d" % len(data)), (b"content-range", described)]
    return Response.of(416 if part is None else 206, kept, data)
