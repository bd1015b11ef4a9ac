"""A wire that calls an ASGI application of the same process, without a socket (ASGI 3.0, HTTP and WebSocket 2.4).

The application runs in a task of its own, in a context where it can't see the request that its caller is answering.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import (
    ConfigurationError,
    InvalidRequestError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from fastapi_mesh.wire.asgi_exchange import Exchange
from fastapi_mesh.wire.asgi_lifespan import AsgiLifespan
from fastapi_mesh.wire.asgi_websocket import open_websocket
from fastapi_mesh.wire.fields import content_length, end_to_end

if TYPE_CHECKING:
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.instance import ASGIApp, Instance, Message
    from fastapi_mesh.core.message import Header, Request
    from fastapi_mesh.core.tasks import Supervisor

__all__ = ["AsgiLifespan", "AsgiWire"]


class AsgiWire:
    """Calls `instance.app` of instances with the scheme `asgi`.

    An exception of the application before its response head is an UpstreamConnectionError(request_sent=True), after it
    the body fails. When the caller is cancelled, times out or closes the response early, the application gets
    `http.disconnect` and its task is cancelled; work after a complete response (background tasks) goes on.
    """

    __slots__ = ("_clock", "_exchanges", "_lifespans", "_supervisor")

    def __init__(self, supervisor: Supervisor, *, clock: Clock | None = None) -> None:
        self._supervisor = supervisor
        self._clock: Clock = clock or SystemClock()
        self._exchanges: set[Exchange] = set()
        self._lifespans: dict[int, tuple[ASGIApp, AsgiLifespan]] = {}

    def statistics(self) -> dict[str, int]:
        return {"running": len(self._exchanges), "lifespans": len(self._lifespans)}

    def lifespan(self, app: ASGIApp, *, name: str = "app") -> AsgiLifespan:
        """The lifespan of `app`, always the same one; its state is in the scope of each later request to `app`."""
        known = self._lifespans.get(id(app))
        if known is None:
            known = self._lifespans[id(app)] = (app, AsgiLifespan(app, self._supervisor, name=name))
        return known[1]

    async def __call__(self, request: Request) -> Response:
        state = request.context.instance
        assert state is not None, "Balance sets the instance before the wire is asked"
        instance = state.instance
        app = instance.app
        if app is None:
            raise ConfigurationError(f"instance {instance.id!r} of {instance.service!r} is `asgi` without an `app`")
        deadline = request.context.attempt_deadline
        timeout = None if deadline is None else deadline - self._clock.now()
        if timeout is not None and timeout <= 0:
            raise UpstreamTimeoutError(
                f"no time was left to call {request.service}",
                service=request.service,
                phase="connect",
                request_sent=False,
            )
        known = self._lifespans.get(id(app))
        scope = http_scope(request, instance, known[1].state if known is not None else {})
        exchange: Exchange | Response
        if _wants_websocket(request):
            exchange = open_websocket(request, scope, self._clock)
            if isinstance(exchange, Response):
                return exchange
        else:
            exchange = Exchange(request, scope, self._clock)
        self._start(exchange, app)
        return await exchange.respond(timeout)

    def _start(self, exchange: Exchange, app: ASGIApp) -> None:
        token = current_inbound.set(None)
        try:
            task = self._supervisor.start(exchange.run(app), name=f"call {exchange.service}")
        except RuntimeError as error:  # the supervisor is closed
            raise UpstreamConnectionError(
                f"{exchange.service} can't be called any more: {error}", service=exchange.service
            ) from error
        finally:
            current_inbound.reset(token)
        exchange.task = task
        self._exchanges.add(exchange)
        task.add_done_callback(partial(self._ended, exchange))

    def _ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._exchanges.discard(exchange)
        if task.cancelled():
            exchange.app_ended(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            exchange.app_ended(error)

    async def aclose(self) -> None:
        """Disconnect from every application that is still answering."""
        for exchange in tuple(self._exchanges):
            exchange.abandon()


def http_scope(request: Request, instance: Instance, state: dict[str, object]) -> Message:
    """The ASGI scope of `request`. Raises InvalidRequestError for what no HTTP server would have let through."""
    target = request.target
    if target[:1] != b"/" and target != b"*":
        raise InvalidRequestError("the target is not valid: it must start with '/'", service=request.service)
    raw_path, _, query = target.partition(b"?")
    if raw_path != b"*":
        raw_path = instance.base_path + raw_path
    path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method.decode("latin-1"),
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": _scope_headers(request, instance),
        "client": ("127.0.0.1", 0),
        "server": (instance.address, instance.port or None),
        "state": dict(state),
        "extensions": {},
    }


def _scope_headers(request: Request, instance: Instance) -> list[Header]:
    """The headers as a server would hand them on: lower case, one `host`, framing that fits the body."""
    try:
        fields = end_to_end(request.headers)
        stated = content_length(fields)
    except ValueError as error:
        raise InvalidRequestError(str(error), service=request.service) from error
    headers: list[Header] = []
    hosts = 0
    for field in fields:
        name = field[0]
        if name == b"host":
            hosts += 1
            headers.insert(0, field)
        elif name not in (b"content-length", b"expect"):
            headers.append(field)
    if hosts == 0:
        headers.insert(0, (b"host", instance.authority if instance.port else instance.address.encode()))
    elif hosts > 1:
        raise InvalidRequestError("more than one host header", service=request.service)
    body = request.body
    if isinstance(body, bytes):
        stated = len(body) if body or request.method in (b"POST", b"PUT", b"PATCH") else None
    elif stated is None:
        headers.append((b"transfer-encoding", b"chunked"))  # how an application sees that there is a body
    if stated is not None:
        headers.append((b"content-length", b"%d" % stated))
    return headers


def _wants_websocket(request: Request) -> bool:
    return any(name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)
