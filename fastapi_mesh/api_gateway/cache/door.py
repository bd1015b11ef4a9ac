"""`gateway.cache`: purging, and what the cache has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.key import Scope
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.cache.engine import CacheEngine


class GatewayCache:
    """The cache of a gateway, open or not."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Callable[[], CacheEngine | None]) -> None:
        self._engine = engine

    async def purge(
        self,
        *,
        route: str | None = None,
        path: str | None = None,
        prefix: str | None = None,
        key: str | None = None,
        everything: bool = False,
    ) -> None:
        """Forget answers, those on their way too. Give exactly one of:

        `route`, the path of a route as it is configured; `path`, a path below the gateway's own prefix, with all its
        queries; `prefix`, a path and all below it; `key`, a URL as Cache-Status shows it; or `everything`.

        With Redis this holds for all processes (within `recheck` seconds), else for this one. Does nothing where no
        route is cached. Raises ConfigurationError for anything but one of them.
        """
        scope = scope_of(route=route, path=path, prefix=prefix, key=key, everything=everything)
        engine = self._engine()
        if engine is not None:
            await engine.purge(scope)

    def statistics(self) -> dict[str, int]:
        """`entries`, `bytes`, `evicted`: the memory; `flights`, `waits`; with Redis `errors`, `owed` and `away`."""
        engine = self._engine()
        return {} if engine is None else engine.statistics()


def scope_of(*, route: str | None, path: str | None, prefix: str | None, key: str | None, everything: bool) -> Scope:
    """The one scope that is meant. Raises ConfigurationError."""
    scopes = [Scope("all")] if everything else []
    if route is not None:
        scopes.append(Scope("route", route.encode()))
    if path is not None:
        scopes.append(Scope("path", _path(path)))
    if prefix is not None:
        scopes.append(Scope("prefix", _path(prefix)))
    if key is not None:
        scopes.append(Scope("key", key.encode("latin-1", "replace")))
    if len(scopes) != 1:
        raise ConfigurationError("a purge is about exactly one of: a route, a path, a prefix, a key, or everything")
    return scopes[0]


def _path(text: str) -> bytes:
    if not text.startswith("/") or "?" in text:
        raise ConfigurationError(f"{text!r} is not a path: it starts with '/' and has no query")
    return text.encode()
