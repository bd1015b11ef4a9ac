"""The product description's middleware objects: each switches on, and sets up, a layer that the gateway has.

    gateway.add_middleware([CORSMiddleware(allow_origins=["https://shop.example.com"]), LoggingMiddleware()])

They are settings and wrap nothing, so their order in a list means nothing: the layers' own order does (`pipeline`).
Foreign ASGI middleware, as `starlette.middleware.Middleware(cls, ...)` or `(cls, {...})`, does wrap the whole gateway,
the first of a list outermost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar

from starlette.middleware import Middleware

from fastapi_mesh.api_gateway.ratelimit.configure import rate_limit_changes
from fastapi_mesh.config.layers import plain
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.extensions import Extensions
    from fastapi_mesh.core.instance import ASGIApp

__all__ = [
    "AuthenticationMiddleware",
    "CORSMiddleware",
    "CachingMiddleware",
    "LoggingMiddleware",
    "RateLimitingMiddleware",
]

logger = logging.getLogger("fastapi_mesh.gateway")

Code = dict[str, object]
Foreign = Callable[["ASGIApp"], "ASGIApp"]


class _Spec:
    """What the five have in common: where its layer stands among theirs, None where that makes no difference."""

    place: ClassVar[int | None] = None
    row: ClassVar[str] = ""

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        """The settings given in code, and the extensions, with this in them."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CORSMiddleware(_Spec):
    """Lets pages of other origins call the gateway. The arguments are those of Starlette's class of that name, except
    that `allow_methods` are those of the routes where none are given; see `config.edge.cors.CorsConfig`.
    """

    place = 0
    row = "Cors"

    allow_origins: Iterable[str] = ()
    allow_methods: Iterable[str] | None = None
    allow_headers: Iterable[str] = ()
    allow_credentials: bool = False
    allow_origin_regex: str | None = None
    expose_headers: Iterable[str] = ()
    max_age: int = 600
    allow_private_network: bool = False

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        return {**code, "cors": {each.name: _plain(getattr(self, each.name)) for each in fields(self)}}, extensions


@dataclass(frozen=True, slots=True)
class AuthenticationMiddleware(_Spec):
    """Checks bearer tokens that are JWTs: one JWTAuthProvider after those of `configure_auth`. Routes ask for it with
    `auth_required`.
    """

    place = 1
    row = "Authenticate"

    jwt_secret: str = field(repr=False)
    jwt_algorithm: str = "HS256"
    issuer: str | None = None
    audience: str | None = None

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        from fastapi_mesh.api_gateway.auth import JWTAuthProvider  # imported late: it brings all of cryptography

        provider = JWTAuthProvider(self.jwt_secret, self.jwt_algorithm, issuer=self.issuer, audience=self.audience)
        return code, replace(extensions, middleware_provider=provider)


@dataclass(frozen=True, slots=True)
class RateLimitingMiddleware(_Spec):
    """Counts each client's requests on all routes together, in `storage`: "memory" or a Redis URL."""

    place = 2
    row = "RateLimit"

    default_rate_limit: str | None = None
    storage: str | None = field(default=None, repr=False)

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        storage = {} if self.storage is None else {"storage": self.storage}
        return rate_limit_changes(code, extensions, self.default_rate_limit, None, None, None, storage)


@dataclass(frozen=True, slots=True)
class CachingMiddleware(_Spec):
    """Caches answers of all routes, `default_ttl` seconds where the service says nothing, in `cache_backend`: "memory"
    or a Redis URL.
    """

    place = 3
    row = "Cache"

    cache_backend: str | None = field(default=None, repr=False)
    default_ttl: float | None = 300.0

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        cache = _table(code, "cache")
        if self.cache_backend is not None:
            cache["backend"] = self.cache_backend
        return {**code, "cache": cache, "cache_ttl": self.default_ttl}, extensions


@dataclass(frozen=True, slots=True)
class LoggingMiddleware(_Spec):
    """Writes the access log: one line per request at its end, with what is known of the request (`log_requests`) and of
    its answer (`log_responses`), at `log_level`.
    """

    row = "AccessLog"

    log_requests: bool = True
    log_responses: bool = True
    log_level: str = "INFO"

    def changes(self, code: Code, extensions: Extensions) -> tuple[Code, Extensions]:
        if not (self.log_requests or self.log_responses):
            return {**code, "access_log": False}, extensions
        said = {"requests": self.log_requests, "responses": self.log_responses, "level": self.log_level}
        return {**code, "access_log": {**_table(code, "access_log"), **said}}, extensions


def with_middleware(code: Code, extensions: Extensions, given: object) -> tuple[Code, Extensions]:
    """The settings and extensions with one middleware or a list of them. Raises ConfigurationError for what is none."""
    is_one = isinstance(given, (Middleware, str)) or _is_pair(given)  # of which the first two can be iterated over
    listed = list(given) if isinstance(given, Iterable) and not is_one else [given]
    read = [_read(index, each) for index, each in enumerate(listed)]
    specs = [each for each in read if isinstance(each, _Spec)]
    for spec in specs:
        code, extensions = spec.changes(code, extensions)
    _say_order(specs)
    foreign = tuple(each for each in read if not isinstance(each, _Spec))
    return code, replace(extensions, foreign=(*extensions.foreign, *foreign))


def _read(index: int, given: object) -> _Spec | Foreign:
    if isinstance(given, _Spec):
        return given
    if isinstance(given, Middleware):
        return _foreign(given.cls, given.args, given.kwargs)
    if isinstance(given, tuple) and _is_pair(given):
        return _foreign(given[0], (), given[1])
    where = f"add_middleware: [{index}]: "
    if isinstance(given, type):
        if issubclass(given, _Spec):
            raise ConfigurationError(f"{where}{given.__name__} is a class; give an object: {given.__name__}(...)")
        ours = f", or {__name__}.{given.__name__}(...)" if given.__name__ in __all__ else ""
        raise ConfigurationError(
            f"{where}{given.__module__}.{given.__name__} is a class; write starlette.middleware.Middleware("
            f"{given.__name__}, ...) or ({given.__name__}, {{...}}){ours}"
        )
    if callable(given):
        raise ConfigurationError(
            f"{where}a {type(given).__name__} is made already, around another application; write "
            f"starlette.middleware.Middleware({type(given).__name__}, ...), so that the gateway makes it"
        )
    raise ConfigurationError(f"{where}a value of type {type(given).__name__} is no middleware")


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and callable(given[0]) and isinstance(given[1], Mapping)


def _foreign(cls: Callable[..., ASGIApp], arguments: Iterable[object], keywords: Mapping[str, object]) -> Foreign:
    positional, named = tuple(arguments), dict(keywords)
    return lambda app: cls(app, *positional, **named)


def _plain(value: object) -> object:
    """What may be any iterable, as a list."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _say_order(specs: list[_Spec]) -> None:
    ordered = [each for each in specs if each.place is not None]
    ours = sorted(ordered, key=lambda each: each.place or 0)
    if ordered != ours:
        logger.info(
            "add_middleware: these are settings of layers, whose own order counts: %s (the list had %s)",
            " > ".join(each.row for each in ours),
            " > ".join(each.row for each in ordered),
        )


def _table(code: Mapping[str, object], name: str) -> Code:
    """What code has set for a table of settings so far."""
    before = plain(code.get(name))
    return dict(before) if isinstance(before, dict) else {}
