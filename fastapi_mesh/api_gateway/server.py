"""Runs a gateway as a process of its own, on uvicorn with httptools."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

    from fastapi_mesh.core.instance import ASGIApp

NEEDS_SERVER = "running a gateway by itself needs uvicorn: pip install 'fastapi-mesh[server]'"


class _NoTruncations(logging.Filter):
    """Leaves out uvicorn's traceback for a service that died in the middle of an answer: we have logged that line."""

    def filter(self, record: logging.LogRecord) -> bool:
        from fastapi_mesh.api_gateway.forward import TruncatedResponseError

        return record.exc_info is None or not isinstance(record.exc_info[1], TruncatedResponseError)


def new_server(app: ASGIApp, host: str, port: int) -> uvicorn.Server:
    """A server for `app`: the peer's address stays what it is, bodies and headers as strict as they come.

    Raises ImportError without the `server` extra.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(NEEDS_SERVER) from error
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="httptools",
        lifespan="on",
        proxy_headers=False,  # who is trusted is decided by `trusted_proxies`, from the transport's own peer
        access_log=False,  # 30 us per request
        server_header=False,
    )
    return uvicorn.Server(config)


async def serve(server: uvicorn.Server) -> None:
    """Run until a signal, or `server.should_exit`."""
    truncations = _NoTruncations()
    log = logging.getLogger("uvicorn.error")
    log.addFilter(truncations)
    try:
        await server.serve()
    finally:
        log.removeFilter(truncations)
