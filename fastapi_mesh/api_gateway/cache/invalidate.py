"""A layer that forgets answers when something was changed: unsafe methods invalidate (RFC 9111 section 4.4)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from fastapi_mesh.api_gateway.cache.freshness import values
from fastapi_mesh.api_gateway.cache.key import Scope
from fastapi_mesh.exceptions import DeadlineExceededError, UpstreamConnectionError, UpstreamTimeoutError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.engine import CacheEngine
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.core.tasks import Supervisor

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH", b"QUERY"})
"""Methods registered as safe; one that nobody has heard of is unsafe."""


class Invalidate:
    """After a successful unsafe request the answers for its path are gone: with every query, for every client.

    So are those for the Location and Content-Location in its answer, if they are of the same authority. This happens
    before the client sees the answer. When nobody can know whether the service did it (no answer came in time, the
    client went away), it counts as done.
    """

    __slots__ = ("_engine", "_supervisor", "inner")

    def __init__(self, inner: GatewayService, engine: CacheEngine, *, supervisor: Supervisor) -> None:
        self.inner = inner
        self._engine = engine
        self._supervisor = supervisor

    async def __call__(self, request: Exchange) -> Response:
        if request.method in SAFE:
            return await self.inner(request)
        path, target = request.path, request.target
        try:
            response = await self.inner(request)
        except BaseException as error:
            if _may_have_happened(error):
                self._later(Scope("path", path))
            raise
        if response.status < 400:
            try:
                for scope in _scopes(request, path, target, response):
                    await self._engine.purge(scope)
            except BaseException:
                await response.aclose()
                raise
        return response

    def _later(self, scope: Scope) -> None:
        """Without waiting, as this request may be cancelled."""
        try:
            self._supervisor.start(self._engine.purge(scope), name="gateway-cache-invalidate")
        except RuntimeError:  # this process ends, and its memory with it
            return


def _may_have_happened(error: BaseException) -> bool:
    if isinstance(error, (UpstreamConnectionError, UpstreamTimeoutError)):
        return error.request_sent
    return isinstance(error, (DeadlineExceededError, asyncio.CancelledError))


def _scopes(request: Exchange, path: bytes, target: bytes, response: Response) -> set[Scope]:
    """What a successful request makes invalid.

    A service behind `strip_prefix` may name itself by its own paths or by the client's, so both are meant.
    """
    found = {path}
    inside = target.partition(b"?")[0]
    cut = path[: len(path) - len(inside)] if path.endswith(inside) else b""
    for name in (b"location", b"content-location"):
        for value in values(response.headers, name):
            other = _path_of(value, request, path)
            if other is not None:
                found.update((other, cut + other))
    return {Scope("path", each) for each in found}


def _path_of(location: bytes, request: Exchange, path: bytes) -> bytes | None:
    """The path of a URL in a header, None for one of another authority or none at all."""
    base = f"{request.origin.scheme}://{request.host.decode('latin-1')}{path.decode('latin-1')}"
    try:
        url = urlsplit(urljoin(base, location.decode("latin-1")))
    except ValueError:
        return None
    hosts = {request.host.lower(), *(value.lower() for value in values(request.headers, b"x-forwarded-host"))}
    if url.scheme not in ("http", "https") or url.netloc.lower().encode("latin-1") not in hosts:
        return None
    return url.path.encode("latin-1") or b"/"
