"""A wire that speaks HTTP/1.1, over TCP or TLS, to the instance in the context."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import IDEMPOTENT_METHODS
from fastapi_mesh.core.message import Response
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import UpstreamConnectionError, UpstreamTimeoutError
from fastapi_mesh.wire.h1.body import SWITCHED, Exchange
from fastapi_mesh.wire.h1.connection import CLOSE_TIMEOUT, Counters, Settings
from fastapi_mesh.wire.h1.framing import FieldNames, request_head
from fastapi_mesh.wire.h1.pool import Pool
from fastapi_mesh.wire.h1.sender import SLICE, send_body
from fastapi_mesh.wire.h1.upgrade import UpgradedStream

if TYPE_CHECKING:
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.core.message import Request


class H1Wire:
    """Sends requests to instances of the schemes `http` and `https`, over connections that it keeps and reuses.

    `keepalive_expiry` is seconds that an idle connection is kept (uvicorn closes its side after 5 s; a shorter
    `Keep-Alive: timeout=` of an instance counts). `max_connections` limits the connections to each instance; a call
    then waits for its turn until the deadline of its attempt. `ssl_context` is used for `https`, by default the
    system's trust store; the certificate must be valid for the instance's address, or for `server_name` in its
    metadata. A response head may have `max_header_bytes` (with all 1xx before it) and `max_headers`.
    """

    def __init__(
        self,
        *,
        keepalive_expiry: float = 4.0,
        max_connections: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_header_bytes: int = 64 * 1024,
        max_headers: int = 256,
        observer: Observer | None = None,
    ) -> None:
        self._settings = Settings(
            keepalive_expiry=keepalive_expiry,
            max_connections=max_connections,
            max_header_bytes=max_header_bytes,
            max_headers=max_headers,
            observer=observer,
            counters=Counters(),
        )
        self._ssl_context = ssl_context
        self._names = FieldNames()
        self._pools: dict[tuple[str, int, bool, str | None], Pool] = {}
        self._supervisor = Supervisor()
        self._closed = False
        self._drained: asyncio.Future[None] | None = None

    def statistics(self) -> dict[str, int]:
        """Connections now (`open` includes those being made), and counts since the start."""
        pools = self._pools.values()
        counters = self._settings.counters
        opened = sum(pool.open for pool in pools)
        idle = sum(pool.idle for pool in pools)
        return {
            "open": opened,
            "idle": idle,
            "in_use": opened - idle,
            "waiting": sum(pool.waiting for pool in pools),
            "created": counters.created,
            "reused": counters.reused,
            "stale_retries": counters.stale_retries,
            "trailers_dropped": counters.trailers_dropped,
            "excess_dropped": counters.excess_dropped,
        }

    async def __call__(self, request: Request) -> Response:
        context = request.context
        state = context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        instance = state.instance
        pool = self._pool(instance)
        data, length, expects, upgrade = request_head(request, instance.base_path, pool.host_line, self._names)
        body = request.body
        in_one = False
        if isinstance(body, bytes) and len(body) <= SLICE:
            in_one = True
            data += body
        deadline = context.attempt_deadline
        loop = pool.loop
        fresh = False
        while True:
            left = 0.0 if deadline is None else deadline - monotonic()
            if left < 0.0:
                raise _no_time_left(request)
            connection = None if fresh else pool.take()
            if connection is None:
                connection = await pool.acquire(request)
                left = 0.0 if deadline is None else deadline - monotonic()
            waiter = loop.create_future()
            exchange = Exchange(connection, request, loop, waiter, upgrade)
            connection.begin(exchange, data)
            if in_one:
                timer = None if deadline is None else loop.call_later(left, exchange.expire)
                try:
                    await waiter
                except asyncio.CancelledError:
                    exchange.lose(UpstreamConnectionError("the call was cancelled"))
                    raise
                finally:
                    if timer is not None:
                        timer.cancel()
            else:
                await self._send(exchange, waiter, request, length, expects, left)
            if exchange.error is None:
                if exchange.complete and exchange.status != SWITCHED:
                    return Response(exchange.status, exchange.headers, exchange)
                return _unfinished(exchange, context.policy.max_stream_duration)
            # RFC 9112 section 9.3.1: the instance may have closed an idle connection just as we used it; a request that
            # may be repeated and has no body is sent again. On a new connection (with a limit it takes what there is),
            # so that a request that kills its connection does not kill all of them.
            if not exchange.stale or request.method not in IDEMPOTENT_METHODS or body != b"":
                raise exchange.error
            self._settings.counters.stale_retries += 1
            fresh = self._settings.max_connections is None
            pool = self._pool(instance)

    async def aclose(self) -> None:
        """Close every connection and wait until they are gone, 3 s at most; calls in progress fail."""
        self._closed = True
        for key, pool in list(self._pools.items()):
            pool.close()
            if not pool.open:
                del self._pools[key]
        if self._pools:
            loop = asyncio.get_running_loop()
            if self._drained is None:
                self._drained = loop.create_future()
            timer = loop.call_later(CLOSE_TIMEOUT + 1.0, self._pools_gone)
            try:
                await asyncio.wait((self._drained,))
            finally:
                timer.cancel()
        await self._supervisor.aclose()

    async def _send(
        self,
        exchange: Exchange,
        waiter: asyncio.Future[None],
        request: Request,
        length: int,
        expects: bool,
        left: float,
    ) -> None:
        """Send the body beside waiting for the answer's head; the task that sends has ended when this returns.

        A streamed body comes at its sender's pace, so the attempt's time (`left`) begins when all of it was sent, as
        Envoy's per-try timeout does: a slow client must not look like a slow instance. The call's own deadline stands.
        """
        context = request.context
        deadline = context.attempt_deadline
        if not isinstance(request.body, bytes):
            exchange.answer_within = None if deadline is None else left
            deadline = context.deadline
        loop = asyncio.get_running_loop()
        timer = None if deadline is None else loop.call_later(deadline - monotonic(), exchange.expire)
        exchange.sending = length != 0
        sender = self._supervisor.start(send_body(exchange, request.body, length, expects), name="request body")
        exchange.sender = sender
        try:
            await waiter
            if not sender.done():
                await asyncio.wait((sender,))
        except asyncio.CancelledError:
            exchange.lose(UpstreamConnectionError("the call was cancelled"))
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _pool(self, instance: Instance) -> Pool:
        secure = instance.scheme == "https"
        name = instance.metadata.get("server_name") if secure else None
        key = (instance.address, instance.port, secure, name)
        pool = self._pools.get(key)
        if self._closed:
            raise UpstreamConnectionError("the wire is closed", service=instance.service)
        if pool is None:
            pool = Pool(instance, self._settings, self._tls() if secure else None, partial(self._forget, key))
            self._pools[key] = pool
        return pool

    def _forget(self, key: tuple[str, int, bool, str | None]) -> None:
        self._pools.pop(key, None)
        if not self._pools:
            self._pools_gone()

    def _pools_gone(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context


def _unfinished(exchange: Exchange, duration: float | None) -> Response:
    """The response to an exchange whose body, or other protocol, goes on; for `duration` seconds at most."""
    if duration is not None and not exchange.complete:
        exchange.limit_duration(duration)
    stream = UpgradedStream(exchange) if exchange.status == SWITCHED else None
    return Response(exchange.status, exchange.headers, exchange, stream)


def _no_time_left(request: Request) -> UpstreamTimeoutError:
    text = "no time left for this attempt"
    return UpstreamTimeoutError(text, service=request.service, phase="connect", request_sent=False)
