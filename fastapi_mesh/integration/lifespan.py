"""The door that is an ASGI lifespan: the mesh starts before the application and ends after it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_mesh.service_mesh.mesh import ServiceMesh

logger = logging.getLogger("fastapi_mesh.integration")

ENDED = frozenset({"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"})


async def run_lifespan(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    start: Callable[[], Awaitable[tuple[ServiceMesh, bool]]],
    service_name: str | None,
) -> None:
    """Run `app`'s lifespan inside that of the mesh; `start` opens it and says whether we own it.

    Order: mesh started, application's startup, server told, registration begun; at the end: left the registry,
    application's shutdown, mesh stopped, server told. A failed start is answered with `lifespan.startup.failed`, whose
    message has the reason in a few lines, and then raised: only raising would make uvicorn serve errors for ever, and
    only answering would make a test client wait for the end of the application.
    """
    first = [await receive()]
    try:
        mesh, owner = await start()
    except Exception as error:  # whatever it is, the server must be told
        if not isinstance(error, MeshError):
            logger.error("starting the mesh failed", exc_info=error)
        await send({"type": "lifespan.startup.failed", "message": explain_start(service_name, error)})
        raise
    if "state" in scope:
        scope["state"]["mesh"] = mesh

    async def listen() -> Message:
        if first:
            return first.pop()
        message = await receive()
        if message["type"] == "lifespan.shutdown" and owner:
            await mesh.life.leave()
        return message

    async def tell(message: Message) -> None:
        if owner and message["type"] in ENDED:
            await mesh.life.close()
        await send(message)
        if message["type"] == "lifespan.startup.complete":
            mesh.life.serving()

    try:
        await app(scope, listen, tell)
    finally:
        if owner:
            await mesh.life.close()
