"""Applications that the process tests serve: a node, a mounted one, and two in one process."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from fastapi_mesh.integration import Mesh, ServiceMeshMiddleware
from fastapi_mesh.observability.logging import configure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

configure()


def make(name: str, **settings: object) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.sleep(float(os.environ.get("TEST_SLOW_STARTUP", "0")))
        yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ServiceMeshMiddleware, **{"service_name": name, **settings})

    @app.get("/pid")
    async def pid() -> int:
        return os.getpid()

    @app.get("/slow/{seconds}")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @app.get("/known/{service}")
    async def known(service: str, mesh: Mesh) -> list[str]:
        return [each.id for each in await mesh.discover_services(service)]

    return app


app = make("orders")

outer = FastAPI()
outer.mount("/sub", make("mounted"))


async def _serve_two(ports: tuple[int, int]) -> None:
    servers = [
        uvicorn.Server(uvicorn.Config(make(name, port=port, address="127.0.0.1"), host="127.0.0.1", port=port))
        for name, port in zip(("one", "two"), ports, strict=True)
    ]
    await asyncio.gather(*(server.serve() for server in servers))


if __name__ == "__main__":
    asyncio.run(_serve_two((int(os.environ["TEST_PORT_ONE"]), int(os.environ["TEST_PORT_TWO"]))))
