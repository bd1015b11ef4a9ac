"""A layer that writes the access log: one line per request, when its answer has ended."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway import access_lines
from fastapi_mesh.core.message import Outcome, Response
from fastapi_mesh.exceptions import ClientDisconnectedError
from fastapi_mesh.observability.logging import JsonFormatter, TextFormatter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_mesh.api_gateway.access_lines import AccessLines, Value
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.config.gateway import GatewayConfig
    from fastapi_mesh.core.instance import Message as Scope

DISCONNECTED = "client-disconnected"
_OUTCOMES = {Outcome.ABANDONED: "closed-early", Outcome.FAILED: "truncated-response"}


class Counted:
    """A BodySource that counts what is read of a response."""

    __slots__ = ("bytes", "response")

    def __init__(self, response: Response) -> None:
        self.response = response
        self.bytes = 0

    @property
    def at_end(self) -> bool:
        return self.response.at_end

    async def read(self) -> bytes:
        data = await self.response.read()
        self.bytes += len(data)
        return data

    async def aclose(self) -> None:
        await self.response.aclose()


class AccessLog:
    """Sees what the client sees, refusals too. Requests refused before any route are logged by `early`."""

    __slots__ = ("_lines", "inner")

    def __init__(self, inner: GatewayService, lines: AccessLines) -> None:
        self.inner = inner
        self._lines = lines

    async def __call__(self, request: Exchange) -> Response:
        if not self._lines.is_on:
            return await self.inner(request)
        started = time.monotonic()
        method = request.method  # a transformer may send another one
        try:
            response = await self.inner(request)
        except BaseException as error:
            gone = not isinstance(error, Exception) or isinstance(error, ClientDisconnectedError)
            status, reason = (499, DISCONNECTED) if gone else (500, "internal")
            self._write(request, method, started, {"status": status, "reason": reason})
            raise
        if response.upgrade is not None:  # what is said over it has no length that would mean anything
            self._write(request, method, started, {"status": response.status})
            return response
        counted = Counted(response)
        outer = Response(response.status, response.headers, counted)
        outer.on_close(self._closed, (request, method, started, counted))
        return outer

    def _closed(
        self, argument: tuple[Exchange, bytes, float, Counted], outcome: Outcome, error: BaseException | None
    ) -> None:
        request, method, started, counted = argument
        response = counted.response
        said: dict[str, Value] = {"status": response.status, "bytes": counted.bytes}
        said["reason"] = (response.header(b"x-mesh-reason") or b"").decode("latin-1")
        if not said["reason"] and method != b"HEAD":
            said["reason"] = _OUTCOMES.get(outcome, "")
        self._write(request, method, started, said)

    def _write(self, request: Exchange, method: bytes, started: float, said: dict[str, Value]) -> None:
        context, principal = request.context, request.principal
        instance = context.instance
        record = context.record
        said["duration_ms"] = round((time.monotonic() - started) * 1000, 3)
        said["attempts"] = context.attempt
        said["instance"] = "" if instance is None else instance.instance.id
        self._lines.write(
            {
                "client": request.origin.address,
                "method": method.decode("latin-1"),
                "path": self._lines.target(_path(request.scope, request.path), request.query),
                "route": context.template,
                "service": request.service,
                "principal": "" if principal is None else principal.subject,
                "request_id": context.request_id,
                "trace_id": "" if record is None else record.trace_id,
            },
            said,
        )


def write_early(lines: AccessLines, scope: Scope, route: str, response: Response, seconds: float) -> None:
    """The line for an answer that was given before any layer; who sent it is the transport's peer."""
    if not lines.is_on:
        return
    length = response.header(b"content-length") or b"0"
    lines.write(
        {
            "client": (scope.get("client") or ("",))[0],
            "method": scope.get("method", "GET"),
            "path": lines.target(_path(scope, b""), scope.get("query_string", b"")),
            "route": route,
            "request_id": (response.header(b"x-request-id") or b"").decode("latin-1"),
        },
        {
            "status": response.status,
            "bytes": int(length),
            "duration_ms": round(seconds * 1000, 3),
            "attempts": 0,
            "reason": (response.header(b"x-mesh-reason") or b"").decode("latin-1"),
        },
    )


def _path(scope: Scope, below: bytes) -> bytes:
    """The whole path as the client sent it, without the authority of an absolute form, which may hold a password."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    if raw[:1] == b"/":
        return raw
    return below or b"/" + raw.partition(b"://")[2].partition(b"/")[2]


@contextmanager
def own_handlers(config: GatewayConfig) -> Iterator[None]:
    """Logging of a gateway that runs by itself: where nobody has set up any, lines go to stdout and errors to stderr.

    An application that has handlers, on these loggers or the root, keeps them and gets everything there.
    """
    top, access = logging.getLogger("fastapi_mesh"), access_lines.logger
    undo: list[tuple[logging.Logger, logging.Handler, int, bool]] = []

    def attach(logger: logging.Logger, handler: logging.Handler, level: str) -> None:
        undo.append((logger, handler, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False

    try:
        if not top.hasHandlers():
            errors: logging.Handler = logging.StreamHandler(sys.stderr) if config.error_log else logging.NullHandler()
            is_json = config.access_log is not None and config.access_log.format == "json"
            errors.setFormatter(JsonFormatter() if is_json else TextFormatter())
            attach(top, errors, config.log_level)
            if config.access_log is not None and not access.handlers:
                attach(access, logging.StreamHandler(sys.stdout), config.access_log.level)
        yield
    finally:
        for logger, handler, level, propagate in reversed(undo):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
