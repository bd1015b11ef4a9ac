"""One application as a node: what each of its requests gets, and what becomes of an error of the mesh."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.core.problem import problem
from fastapi_mesh.exceptions import ConfigurationError, DeadlineExceededError, MeshError
from fastapi_mesh.integration.admission import Admission
from fastapi_mesh.integration.exchange import SAFE_METHODS, Exchange
from fastapi_mesh.integration.inbound import read_inbound
from fastapi_mesh.integration.pages import Pages, answer_where_missing, paths_of, send_answer
from fastapi_mesh.integration.streams import Streams
from fastapi_mesh.observability.server import measure_server
from fastapi_mesh.observability.tracing import current_trace_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_mesh.core.context import Inbound
    from fastapi_mesh.integration.pages import Answer
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.integration")


class Node:
    """Wraps `app` for HTTP and WebSocket: counted, with the inbound request set, and errors answered.

    With `SERVICE_MESH_ENABLED=false` requests only find the mesh and pass straight through (X-58).
    """

    def __init__(
        self, app: ASGIApp, mesh: ServiceMesh, *, trust_request_id: bool, cancel_on_disconnect: bool = False
    ) -> None:
        self.mesh = mesh
        self._app = app
        self._trust_request_id = trust_request_id
        self._cancel_on_disconnect = cancel_on_disconnect
        self._pages = Pages(mesh)
        self._streams = Streams(mesh.life, mesh.clock, mesh.supervisor, mesh.observers)
        self._saw_server = False
        self._http: ASGIApp = Admission(mesh, self._serve, paths_of(mesh))
        if mesh.metrics is not None and mesh.enabled:
            try:
                self._http = measure_server(self._http, mesh.metrics.registry, exclude=paths_of(mesh))
            except ConfigurationError as error:  # right for a mounted application: the outer one counts it already
                logger.warning("%s: HTTP requests of this application are not counted: %s", mesh.service_name, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mesh = self.mesh
        state = scope.get("state")
        if state is None:
            scope["state"] = {"mesh": mesh}
        elif state.get("mesh") is not mesh:  # a mounted application may have one of its own
            scope["state"] = {**state, "mesh": mesh}
        if not mesh.enabled:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            if not self._saw_server:
                self._saw_server = True
                mesh.life.saw_server(scope.get("server"))
            await self._http(scope, receive, send)
        else:
            token = current_inbound.set(self._inbound_socket(scope))
            try:
                await self._app(scope, receive, send)
            finally:
                current_inbound.reset(token)

    def _inbound(self, scope: Scope) -> Inbound:
        now = self.mesh.clock.now()
        return read_inbound(self.mesh, scope["headers"], now, trust_request_id=self._trust_request_id)

    def _inbound_socket(self, scope: Scope) -> Inbound:
        """A WebSocket's: its deadline was the handshake's, and uvicorn leaves the names of its headers as they came."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        inbound = read_inbound(self.mesh, headers, self.mesh.clock.now(), trust_request_id=self._trust_request_id)
        inbound.deadline = None
        return inbound

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        inbound = self._inbound(scope)
        token = current_inbound.set(inbound)
        exchange = Exchange(
            self._streams,
            scope,
            receive,
            send,
            inbound,
            heeds=self._cancel_on_disconnect or scope["method"] in SAFE_METHODS,
            answer_late=self._answer_late,
        )
        try:
            if inbound.deadline is not None and inbound.deadline <= self.mesh.clock.now():
                raise DeadlineExceededError("the deadline of this request had passed when it arrived")
            page = self._pages.find(scope)
            if page is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await answer_where_missing(self._app, scope, exchange.receive, exchange.send, page)
        except asyncio.CancelledError:
            if not exchange.was_cancelled():
                raise
        except (MeshError, ExceptionGroup) as raised:
            error = _mesh_error(raised)
            if error is not None and exchange.answering is not None:
                pass  # one of its calls failed by the same deadline, which has been answered
            elif exchange.started or error is None:
                raise
            else:
                exchange.finish()
                await send_answer(scope, send, self._answer(scope, inbound, error))
        finally:
            current_inbound.reset(token)
            await exchange.release()
        if exchange.ended:
            await exchange.close()

    async def _answer_late(self, scope: Scope, inbound: Inbound, send: Send) -> None:
        """The deadline passed before the handler had an answer."""
        error = DeadlineExceededError("the deadline of this request passed before its handler had an answer")
        await send_answer(scope, send, self._answer(scope, inbound, error))

    def _answer(self, scope: Scope, inbound: Inbound, error: MeshError) -> Answer:
        """The problem document for `error`, and a log line with what it must not say."""
        path = scope.get("raw_path") or scope["path"].encode()
        ours = error.status == 500
        logger.log(
            logging.ERROR if ours else logging.WARNING,
            "%s %s: %s (%s): %s",
            scope["method"],
            path.decode("latin-1"),
            error.reason,
            error.service or "-",
            error,
            exc_info=error if ours else None,
        )
        return problem(error, current_trace_id(inbound) or inbound.request_id)


def _mesh_error(error: MeshError | ExceptionGroup[Exception]) -> MeshError | None:
    """The error to answer for: itself, or the first of a group (`asyncio.TaskGroup` around several calls) in which
    there is nothing else.
    """
    if isinstance(error, MeshError):
        return error
    first: MeshError | None = None
    for inner in error.exceptions:
        found = _mesh_error(inner) if isinstance(inner, MeshError | ExceptionGroup) else None
        if found is None:
            return None
        first = first or found
    return first
