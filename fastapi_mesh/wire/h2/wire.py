"""A wire that speaks HTTP/2, over TLS (`h2`) or plain with prior knowledge (`h2c`), to the instance in the context."""

from __future__ import annotations

import asyncio
import re
import ssl
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from fastapi_mesh.core.message import Response
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import (
    ConfigurationError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.fields import content_length, end_to_end
from fastapi_mesh.wire.h2.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.message import Header, Request
    from fastapi_mesh.wire.h2.connection import H2Connection

T = TypeVar("T")

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token, RFC 9110 section 5.6.2
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_TARGET = re.compile(rb"/[!-~\x80-\xff]*|\*")
TIMEOUT = "timeout"
_LENGTH_EXPECTED = frozenset({b"POST", b"PUT", b"PATCH"})


class Http2Wire:
    """Sends requests to instances of the schemes `h2` and `h2c`; many calls share one connection.

    A connection carries at most 100 calls, or as many as the instance allows; more open another one. It is closed
    `keepalive_expiry` seconds after its last call. `ssl_context` is used for `h2`, by default the system's trust
    store; it must be this wire's alone, because ALPN is set on it. The certificate must be valid for the instance's
    address, or for `server_name` in its metadata. Raises ConfigurationError without the extra `http2`.
    """

    def __init__(
        self,
        *,
        keepalive_expiry: float = 30.0,
        ssl_context: ssl.SSLContext | None = None,
        observer: Observer | None = None,
    ) -> None:
        try:
            from fastapi_mesh.wire.h2.connection import H2Connection as Connection  # an extra
        except ImportError as error:
            raise ConfigurationError(str(error)) from error
        self._new_connection = Connection
        self._keepalive_expiry = keepalive_expiry
        self._ssl_context = ssl_context
        if ssl_context is not None:
            ssl_context.set_alpn_protocols(["h2"])
        self._observer = observer
        self._supervisor = Supervisor()
        self._pools: dict[tuple[str, str, int, str | None], _Pool] = {}
        self._closed = False

    def statistics(self) -> dict[str, int]:
        pools = self._pools.values()
        return {
            "open": sum(len(pool.connections) for pool in pools),
            "in_use": sum(connection.in_use for pool in pools for connection in pool.connections),
            "waiting": sum(len(pool.waiters) for pool in pools),
        }

    async def __call__(self, request: Request) -> Response:
        context = request.context
        state = context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        instance = state.instance
        headers, stated = request_head(request, instance)
        connection = await self._connection(request, instance)
        deadline = context.attempt_deadline
        timeout = None if deadline is None else deadline - monotonic()
        if timeout is not None and timeout <= 0:
            raise _no_time(request.service)
        stream = Stream(request, asyncio.get_running_loop())
        body = request.body
        try:
            connection.open(stream, headers, end=body == b"")
        except UpstreamConnectionError as error:
            error.service = request.service
            raise
        if body != b"":
            stream.sender = self._supervisor.start(stream.send_body(body, stated), name="request body")
        await stream.wait_head(timeout)
        if context.policy.max_stream_duration is not None:
            stream.limit_duration(context.policy.max_stream_duration)
        return Response(stream.status, stream.headers, stream)

    async def aclose(self) -> None:
        """Close every connection and wait until they are gone; calls in progress fail."""
        self._closed = True
        for pool in self._pools.values():
            for connection in tuple(pool.connections):
                if connection.in_use:
                    connection.abort(UpstreamConnectionError("the wire is closed"))
                else:
                    connection.close()
        await self._supervisor.aclose()
        for pool in tuple(self._pools.values()):
            await pool.wait_empty()

    async def _connection(self, request: Request, instance: Instance) -> H2Connection:
        """A connection with room for one more call: the first that has, else a new one.

        Raises UpstreamTimeoutError(phase="connect") and UpstreamConnectionError, both with `request_sent` False.
        """
        pool = self._pool(instance)
        while (connection := pool.take()) is None:
            if self._closed:
                raise UpstreamConnectionError("the wire is closed", service=request.service)
            if not pool.connecting:
                pool.connecting = True
                timeout = request.context.policy.connect_timeout
                self._supervisor.start(self._connect(pool, instance, timeout), name=f"connect {instance.service}")
            await self._wait_connection(pool, request)
        return connection

    async def _wait_connection(self, pool: _Pool, request: Request) -> None:
        """Wait for the connection that is being made, bounded by this call's own limits."""
        loop = asyncio.get_running_loop()
        context = request.context
        timeout = context.policy.connect_timeout
        if context.attempt_deadline is not None:
            timeout = min(timeout, context.attempt_deadline - monotonic())
        waiter: asyncio.Future[str] = loop.create_future()
        timer = loop.call_later(timeout, partial(_settle, waiter, TIMEOUT))
        pool.waiters.add(waiter)
        try:
            problem = await waiter
        finally:
            pool.waiters.discard(waiter)
            pool.forget_if_unused()
            timer.cancel()
        if problem == TIMEOUT:
            raise _no_time(request.service)
        if problem:
            raise UpstreamConnectionError(problem, service=request.service)

    async def _connect(self, pool: _Pool, instance: Instance, timeout: float) -> None:
        """Make one connection for `pool` and tell whoever waits for it."""
        problem = ""
        connection: H2Connection | None = None
        try:
            async with asyncio.timeout(timeout):
                connection = await self._open(pool, instance)
                await connection.ready
            if not connection.free:
                raise UpstreamConnectionError("the instance allows no streams")
        except TimeoutError:
            problem = TIMEOUT
        except (OSError, UpstreamConnectionError) as error:
            problem = f"no HTTP/2 connection to {instance.address}:{instance.port}: {error}"
        finally:
            pool.connecting = False
            if connection is not None and (problem or not connection.ready.done()):
                connection.abort(UpstreamConnectionError("the connection could not be made"))
            pool.tell(problem)

    async def _open(self, pool: _Pool, instance: Instance) -> H2Connection:
        secure = instance.scheme == "h2"
        _, connection = await asyncio.get_running_loop().create_connection(
            partial(self._new_connection, self._rest, pool.lost, self._observer),
            instance.address,
            instance.port,
            ssl=self._tls() if secure else None,
            server_hostname=instance.metadata.get("server_name", instance.address) if secure else None,
        )
        if not connection.lost:
            pool.connections.append(connection)
        return connection

    def _rest(self, connection: H2Connection) -> None:
        """A connection has nothing to do: close it after a while."""
        if connection.idle_timer is not None:
            connection.idle_timer.cancel()
        loop = asyncio.get_running_loop()
        connection.idle_timer = loop.call_later(self._keepalive_expiry, self._expire, connection)

    def _expire(self, connection: H2Connection) -> None:
        if not connection.in_use:
            connection.close()

    def _pool(self, instance: Instance) -> _Pool:
        name = instance.metadata.get("server_name") if instance.scheme == "h2" else None
        key = (instance.scheme, instance.address, instance.port, name)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(partial(self._pools.pop, key, None))
        return pool

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["h2"])
        return self._ssl_context


class _Pool:
    """The connections to one address, and the calls that wait for one."""

    def __init__(self, on_empty: Callable[[], object]) -> None:
        self._on_empty = on_empty
        self._empty: asyncio.Future[None] | None = None
        self.connections: list[H2Connection] = []
        self.waiters: set[asyncio.Future[str]] = set()
        self.connecting = False

    def take(self) -> H2Connection | None:
        """The first connection that takes one more call."""
        for connection in self.connections:
            if connection.free > 0:
                return connection
        return None

    def tell(self, problem: str) -> None:
        """The attempt to connect has ended: with "" (look again), TIMEOUT, or the text of an error."""
        for waiter in self.waiters:
            _settle(waiter, problem)

    def lost(self, connection: H2Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
        self.forget_if_unused()
        if self._empty is not None and not self.connections:
            _settle(self._empty, None)

    def forget_if_unused(self) -> None:
        """An instance that is gone leaves nothing behind."""
        if not (self.connections or self.connecting or self.waiters):
            self._on_empty()

    async def wait_empty(self) -> None:
        if self.connections:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty


def request_head(request: Request, instance: Instance) -> tuple[list[Header], int | None]:
    """The head of `request` as HTTP/2 has it (RFC 9113 section 8.3.1), and the stated length of a streamed body.

    Raises InvalidRequestError for what could be read as something else: once `h2` has begun to compress a head, it
    must not fail.
    """
    service = request.service
    try:
        fields = end_to_end(request.headers)
        stated = content_length(fields)
    except ValueError as error:
        raise InvalidRequestError(str(error), service=service) from error
    if any(name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers):
        raise ConfigurationError(
            f"{service}: WebSockets need HTTP/1.1, and the instance's scheme is {instance.scheme!r}"
        )
    target = request.target
    if _TARGET.fullmatch(target) is None or _METHOD.fullmatch(request.method) is None:
        raise InvalidRequestError("the method or the target is not valid in HTTP", service=service)
    host: bytes | None = None
    headers: list[Header] = []
    for name, value in fields:
        if name == b"host":
            if host is not None:
                raise InvalidRequestError("more than one host header", service=service)
            host = value
        elif _NAME.fullmatch(name) is None:
            raise InvalidRequestError(f"{name[:64]!r} is not a header name", service=service)
        elif name not in (b"content-length", b"expect"):
            headers.append((name, value))
    body = request.body
    if isinstance(body, bytes):
        stated = len(body) if body or request.method in _LENGTH_EXPECTED else None
    if stated is not None:
        headers.append((b"content-length", b"%d" % stated))
    pseudo = [
        (b":method", request.method),
        (b":scheme", b"https" if instance.scheme == "h2" else b"http"),
        (b":authority", instance.authority if host is None else host),
        (b":path", target if target == b"*" else instance.base_path + target),
    ]
    return pseudo + headers, stated


def _settle(waiter: asyncio.Future[T], value: T) -> None:
    if not waiter.done():
        waiter.set_result(value)


def _no_time(service: str) -> UpstreamTimeoutError:
    return UpstreamTimeoutError("no connection in time", service=service, phase="connect", request_sent=False)
