"""A client of Redis in all its deployments; the only file that meets the package `redis` (the extra `redis`).

It sends many calls of one script in one round trip, never tries a second time (a script that counts must not count
twice), and gives up after `timeout`, in which a busy event loop of our own is not mistaken for a slow Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi_mesh.config.edge.redis import redis_address
from fastapi_mesh.config.fields import shown
from fastapi_mesh.exceptions import ConfigurationError, MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

    from fastapi_mesh.config.edge.redis import RedisAddress

TICKS = 5
"""Parts that a timeout is waited for in: so often the loop looks at its sockets before it is over."""

Word = str | bytes | int
Reply = Any  # what Redis answers: int, bytes, None, or a list of such


class StorageUnavailableError(MeshError):
    """A shared storage gave no usable answer in time."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = "storage-unavailable"


class Script:
    """A Lua script, which Redis runs as one step. `text` is its source."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Connects when it is used first. `url` is what `config.edge.redis` describes, `timeout` seconds for an answer.

    Raises ConfigurationError when the package `redis` is missing.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        address = redis_address(url)
        self.is_cluster = address.kind == "cluster"
        self._shown = shown(url)
        self._timeout = timeout
        self._patience = timeout * (2 + len(address.hosts))
        self._client, self._closing = connect(address, timeout)

    def __repr__(self) -> str:
        return f"<RedisClient {self._shown}>"

    async def probe(self, *words: Word) -> Reply:
        """Run one command, with time enough to find out that some of several hosts are dead, and to get past them.

        Raises StorageUnavailableError.
        """
        (reply,) = await self._pipeline([words], self._patience)
        if isinstance(reply, Exception):
            raise _unavailable(reply) from reply
        return reply

    async def run(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Reply | StorageUnavailableError]:
        """Run `script` once for each (keys, arguments), in one round trip (one per node in a Cluster).

        A call that failed has its error in place of its answer. Raises StorageUnavailableError when none was answered.
        """
        replies = await self._pipeline(
            [("EVALSHA", script.sha, len(keys), *keys, *arguments) for keys, arguments in calls], self._timeout
        )
        unknown = [index for index, reply in enumerate(replies) if _is_no_script(reply)]
        if unknown:  # a server that restarted, or a replica that took over, doesn't have it; EVAL also stores it
            again = [
                ("EVAL", script.text, len(calls[index][0]), *calls[index][0], *calls[index][1]) for index in unknown
            ]
            for index, reply in zip(unknown, await self._pipeline(again, self._timeout), strict=True):
                replies[index] = reply
        return [_unavailable(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _pipeline(self, commands: Sequence[tuple[Word, ...]], timeout: float) -> list[Reply]:
        import redis.exceptions

        try:
            async with within(timeout):
                pipeline = self._client.pipeline() if self.is_cluster else self._client.pipeline(transaction=False)
                for words in commands:
                    pipeline.execute_command(*words)
                replies: list[Reply] = await pipeline.execute(raise_on_error=False)
        except (redis.exceptions.RedisError, OSError) as error:  # a TimeoutError is an OSError
            raise _unavailable(error) from error
        return replies

    async def aclose(self) -> None:
        """Close all connections."""
        for each in self._closing:
            await each.aclose()


QUIET = 5.0
"""Seconds without a message after which a subscription is asked whether it is still there."""


class RedisChannel:
    """One pub/sub channel. What is published while nobody listens is lost; so is what comes while we are not connected.

    Raises ConfigurationError when the package `redis` is missing, StorageUnavailableError when Redis does not answer.
    """

    def __init__(self, url: str, name: str, *, timeout: float) -> None:
        address = redis_address(url)
        if address.kind == "cluster":  # any of its nodes takes and gives the messages of all
            address = replace(address, kind="single", hosts=address.hosts[:1])
        self._name = name
        self._timeout = timeout
        self._client, self._closing = connect(address, timeout)

    async def publish(self, message: bytes) -> None:
        try:
            async with within(self._timeout):
                await self._client.publish(self._name, message)
        except failures() as error:
            raise _unavailable(error) from error

    async def listen(self) -> AsyncIterator[bytes | None]:
        """None once we are subscribed, then the messages; ends with an error only."""
        subscription = self._client.pubsub()
        try:
            async with within(self._timeout):
                await subscription.subscribe(self._name)
            asked = False
            while True:
                message = await subscription.get_message(timeout=QUIET)
                if message is None:
                    if asked:
                        raise TimeoutError("the subscription does not answer")
                    await subscription.ping()
                elif message["type"] == "subscribe":
                    yield None
                elif message["type"] == "message":
                    yield message["data"]
                asked = message is None
        except failures() as error:
            raise _unavailable(error) from error
        finally:
            await subscription.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for each in self._closing:
            await each.aclose()


@asynccontextmanager
async def within(timeout: float) -> AsyncIterator[None]:
    """Raise TimeoutError when the block takes longer, counted in turns of the loop.

    A loop that was busy for longer than `timeout` would find the timer due and the answer in the socket at once, and
    give up on a Redis that was quick: then a flood of requests would switch its own limits off.
    """
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def tick() -> None:
        if len(timers) < TICKS:
            timers.append(loop.call_later(timeout / TICKS, tick))
        else:
            scope.reschedule(loop.time())

    async with asyncio.timeout(None) as scope:
        tick()
        try:
            yield
        finally:
            timers[-1].cancel()


def connect(address: RedisAddress, timeout: float) -> tuple[Any, list[Any]]:
    """The client of redis-py, and everything that has connections of its own.

    Both kinds of client are untyped enough for Any.
    """
    try:
        from redis.asyncio import Redis, Sentinel
        from redis.asyncio.cluster import ClusterNode, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigurationError(
            "a Redis needs the package redis: pip install 'fastapi-mesh[redis]'", source="redis"
        ) from error
    options: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "socket_timeout": None,  # `within` ends waits, see there
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.tls:
        options |= {"ssl": True, "ssl_ca_certs": address.cafile}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        cluster: RedisCluster = RedisCluster(startup_nodes=nodes, **options)
        return cluster, [cluster]
    if address.kind == "sentinel":
        # Sentinels have no databases, and as a rule no password; they are asked again whenever a connection is made.
        about_sentinels = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call] # redis-py leaves its constructor untyped
            list(address.hosts), sentinel_kwargs=about_sentinels, db=address.db, **options
        )
        primary = sentinel.master_for(address.name)
        return primary, [primary, *sentinel.sentinels]
    if address.kind == "unix":
        client: Redis = Redis(unix_socket_path=address.path, db=address.db, **options)
    else:
        ((host, port),) = address.hosts
        client = Redis(host=host, port=port, db=address.db, **options)
    return client, [client]


def failures() -> tuple[type[Exception], ...]:
    """What a client of `connect` raises where Redis gives no usable answer; OSError has TimeoutError in it."""
    from redis.exceptions import RedisError

    return RedisError, OSError


def _is_no_script(reply: Reply) -> bool:
    return isinstance(reply, Exception) and type(reply).__name__ == "NoScriptError"


def _unavailable(error: Exception) -> StorageUnavailableError:
    text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else "")
    return StorageUnavailableError(f"{type(error).__name__}: {text}" if text else type(error).__name__)
