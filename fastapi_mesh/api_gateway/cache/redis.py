"""A backend that keeps answers in Redis, through aiocache: bytes in, bytes out, for all processes of a gateway.

Of each URL and partition there is one small value with the list of its variants, and one value for each variant. Two
reads find an answer. A version is made of random marks, one for the path and one for each purge that covers it: an
invalidation writes a new mark, and answers that were asked for under another one are not found any more. So nothing has
to be searched for or deleted, and an answer that is on its way in another process can't come back to life.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, TypeVar

try:
    from aiocache.backends.redis import RedisCache
    from aiocache.serializers import NullSerializer
except ImportError as missing:  # aiocache is there, so it is redis-py that is not
    raise ImportError("a cache in Redis needs its client: pip install 'fastapi-mesh[redis]'") from missing

from fastapi_mesh.api_gateway.cache.entry import GARBAGE, DamagedError, Entry, decode, encode
from fastapi_mesh.api_gateway.cache.key import Scope
from fastapi_mesh.api_gateway.cache.store import RETENTION, Found
from fastapi_mesh.config.edge.redis import redis_address
from fastapi_mesh.wire.redis import connect, failures, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.api_gateway.cache.key import Key, Kind
    from fastapi_mesh.api_gateway.cache.vary import Selecting, Selectors
    from fastapi_mesh.config.edge.cache import CacheConfig

logger = logging.getLogger("fastapi_mesh.gateway")

T = TypeVar("T")

MARKS = RETENTION + 3600.0
"""Seconds that a mark lives: longer than any answer that was stored before it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds for which a Redis that failed is not asked; doubled each time."""
MAX_PURGES = 32
"""Purges that are told apart; when there are more, they become one of everything."""
MAX_OWED = 256
"""Invalidations that are remembered while Redis is away; when there are more, everything is purged."""
_FAILURES = failures()


class _Client(RedisCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's, on a connection of ours, and without the commands that redis-py has deprecated.

    Bytes in, bytes out: what is read is never unpickled.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        # Without a timeout of its own: ours is around several calls.
        super().__init__(namespace=namespace, serializer=NullSerializer(encoding=None), timeout=0)
        self.client: Any = client  # redis-py's; aiocache calls it by this name

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> object:
        return await self.client.set(key, value, px=None if ttl is None else int(ttl * 1000))


class RedisStore:
    """Never raises for a Redis that fails: it is left alone for a while, and `find` says None.

    Invalidations that could not be written are made up for before anything is read again.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        failed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        client, self._closing = connect(redis_address(config.backend), config.timeout)
        self._client = _Client(client, config.namespace)
        self._timeout = config.timeout
        self._max_variants = config.max_variants
        self._failed = failed
        self._clock = clock
        self._closed_until = 0.0
        self._pause = 0.0
        self._owed: dict[Scope, object] = {}
        self._errors = 0

    def statistics(self) -> dict[str, int]:
        """Calls that failed, invalidations still to be written, and whether Redis is left alone at the moment."""
        return {"errors": self._errors, "owed": len(self._owed), "away": int(self._is_away())}

    async def find(self, key: Key, selecting: Selecting) -> Found | None:
        return await self.lookup(key, selecting, None)

    async def lookup(self, key: Key, selecting: Selecting, known: Entry | None) -> Found | None:
        """`find`; the body of an entry that is `known` already is not read again."""
        return await self._guarded(lambda: self._find(key, selecting, known), None)

    async def put(self, key: Key, entry: Entry) -> bool:
        return await self._guarded(lambda: self._put(key, entry), False)

    async def remove(self, key: Key, entry: Entry) -> None:
        await self._guarded(lambda: self._client.delete(_variant(key, entry)), None)

    async def drop(self, scope: Scope) -> None:
        self._owe(scope)
        await self._guarded(self._settle, None)

    async def claim(self, key: Key, entry: Entry, seconds: float) -> bool:
        return await self._guarded(lambda: self._claim(_name("c", _variant(key, entry).encode()), seconds), False)

    async def aclose(self) -> None:
        if self._owed:
            await self._guarded(self._settle, None)
        for each in self._closing:
            await each.aclose()

    # What is said to Redis.

    async def _find(self, key: Key, selecting: Selecting, known: Entry | None) -> Found:
        if self._owed:
            await self._settle()
        lists = [_list(key, partition) for partition in key.partitions]
        first, second, mark, purges = await self._client.multi_get([*lists, _mark(key.path), "purges"])
        version = _version(key, mark, _purges(purges))
        fitting = [
            (received, partition, wanted)
            for partition, listed in zip(key.partitions, (first, second), strict=True)
            for received, wanted in _variants(listed)
            if selecting.matches(wanted)
        ]
        names = {name for listed in (first, second) for _, wanted in _variants(listed)[:1] for name, _ in wanted}
        varies = tuple(sorted(names))
        if not fitting:
            return Found(None, varies, version)
        received, partition, wanted = max(fitting, key=lambda each: each[0])
        if known is not None and (known.received, known.partition, known.selectors) == (received, partition, wanted):
            return Found(known if known.version == version else None, varies, version)
        data = await self._value(_variant_of(key, partition, wanted))
        return Found(_usable(data, key, selecting, version), varies, version)

    async def _put(self, key: Key, entry: Entry) -> bool:
        seconds = min(RETENTION, entry.keep)
        if seconds < 1.0:
            return False
        await self._client.set(_variant(key, entry), encode(entry), ttl=seconds)
        name = _list(key, entry.partition)
        listed = [each for each in _variants(await self._value(name)) if each[1] != entry.selectors]
        listed = [(entry.received, entry.selectors), *listed][: self._max_variants]
        await self._client.set(name, _encode_variants(listed), ttl=RETENTION)
        return True

    async def _value(self, name: str) -> bytes | None:
        """By MGET, to which a foreign value of another type (a hash...) is none; SET then puts ours in its place."""
        (value,) = await self._client.multi_get([name])
        return None if value is None else bytes(value)

    async def _settle(self) -> None:
        """Write the marks of all invalidations that are owed."""
        for scope, debt in list(self._owed.items()):
            mark = secrets.token_hex(8).encode()
            if scope.kind == "path":
                await self._client.set(_mark(scope.value), mark, ttl=MARKS)
            else:
                await self._purge(scope, mark.decode())
            if self._owed.get(scope) is debt:  # else it was invalidated once more meanwhile
                del self._owed[scope]

    async def _purge(self, scope: Scope, mark: str) -> None:
        """Add a purge to the list. Somebody else may write at the same time, so see whether ours is there."""
        for _ in range(8):
            known = _purges(await self._value("purges"))
            if (scope, mark) in known:
                return
            known = [each for each in known if each[0] != scope]
            if scope.kind == "all" or len(known) >= MAX_PURGES:
                scope, known = Scope("all"), []
            await self._client.set("purges", _encode_purges([*known, (scope, mark)]), ttl=MARKS)
        raise TimeoutError("others changed the list of purges again and again")

    async def _claim(self, name: str, seconds: float) -> bool:
        try:
            await self._client.add(name, b"1", ttl=float(seconds))
        except ValueError:  # it is there already
            return False
        return True

    # When Redis fails.

    def _is_away(self) -> bool:
        return self._clock() < self._closed_until

    def _owe(self, scope: Scope) -> None:
        if len(self._owed) >= MAX_OWED:
            self._owed = {Scope("all"): object()}
        else:
            self._owed[scope] = object()

    async def _guarded(self, call: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """The result of `call` within the timeout; `otherwise` when Redis fails or is being left alone."""
        if self._is_away():
            return otherwise
        try:
            async with within(self._timeout):
                result = await call()
        except _FAILURES as error:
            self._errors += 1
            self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, self._pause * 2))
            self._closed_until = self._clock() + self._pause
            if self._pause == FIRST_PAUSE:
                logger.warning("the cache's Redis failed (%s); requests go on without it", type(error).__name__)
            self._failed()
            return otherwise
        if self._pause:
            self._pause = 0.0
            logger.info("the cache's Redis works again")
        return result


def _name(kind: str, *parts: bytes) -> str:
    """A key of Redis: of bounded length, and without anything that a client could choose."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return f"{kind}:{digest.hexdigest()}"


def _list(key: Key, partition: bytes) -> str:
    return _name("l", key.place, partition)


def _mark(path: bytes) -> str:
    return _name("p", path)


def _variant(key: Key, entry: Entry) -> str:
    return _variant_of(key, entry.partition, entry.selectors)


def _variant_of(key: Key, partition: bytes, wanted: Selectors) -> str:
    return _name("v", key.place, partition, _encode_variants([(0.0, wanted)]))


def _usable(data: bytes | None, key: Key, selecting: Selecting, version: str) -> Entry | None:
    """The entry in `data`, if it is whole, not invalidated, and really for this request."""
    if data is None:
        return None
    try:
        entry = decode(data)
    except DamagedError as error:
        logger.warning("the cache's Redis has what this version can't read: %s", error)
        return None
    fits = entry.version == version and entry.partition in key.partitions and selecting.matches(entry.selectors)
    return entry if fits else None


def _version(key: Key, mark: bytes | None, purges: list[tuple[Scope, str]]) -> str:
    return ".".join(["r", (mark or b"").decode("latin-1"), *(each for scope, each in purges if scope.covers(key))])


def _variants(data: bytes | None) -> list[tuple[float, Selectors]]:
    """The list of variants; what can't be read is an empty one."""
    try:
        return [
            (
                float(received),
                tuple(
                    (name.encode("latin-1"), None if said is None else said.encode("latin-1")) for name, said in wanted
                ),
            )
            for received, wanted in json.loads(data or b"[]")
        ]
    except GARBAGE:
        return []


def _encode_variants(variants: list[tuple[float, Selectors]]) -> bytes:
    return json.dumps(
        [
            (
                received,
                [(name.decode("latin-1"), None if said is None else said.decode("latin-1")) for name, said in wanted],
            )
            for received, wanted in variants
        ]
    ).encode()


def _purges(data: bytes | None) -> list[tuple[Scope, str]]:
    try:
        return [
            (Scope(_kind(kind), value.encode("latin-1")), str(mark)) for kind, value, mark in json.loads(data or b"[]")
        ]
    except GARBAGE:
        return []


def _kind(text: str) -> Kind:
    kinds: dict[str, Kind] = {"all": "all", "route": "route", "path": "path", "prefix": "prefix", "key": "key"}
    if text not in kinds:
        raise ValueError(f"{text!r} is no kind of purge")
    return kinds[text]


def _encode_purges(purges: list[tuple[Scope, str]]) -> bytes:
    return json.dumps([(scope.kind, scope.value.decode("latin-1"), mark) for scope, mark in purges]).encode()
