"""What stands in for a middleware whose keywords are wrong: it tells the server at the start, and answers 500."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

from fastapi_mesh.core.problem import problem
from fastapi_mesh.integration.lifespan import run_lifespan
from fastapi_mesh.integration.pages import send_answer
from fastapi_mesh.service_mesh.doors import explain_start

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_mesh.exceptions import ConfigurationError

logger = logging.getLogger("fastapi_mesh.integration")


class Unusable:
    """Fails the start with `error`.

    Starlette makes middleware while the lifespan begins, and servers take an exception there for an application without
    lifespan: they would start, and answer every request with an error and a traceback.
    """

    def __init__(self, app: ASGIApp, service_name: str | None, error: ConfigurationError) -> None:
        self._app = app
        self._service_name = service_name
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(self._app, scope, receive, send, self._fail, self._service_name)
        elif scope["type"] == "http":
            logger.error("%s", explain_start(self._service_name, self._error))
            await send_answer(scope, send, problem(self._error))
        else:
            await self._fail()

    async def _fail(self) -> NoReturn:
        raise self._error
