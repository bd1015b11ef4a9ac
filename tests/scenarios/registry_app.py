"""Nodes that meet in a registry, started by the scenarios: NODE=front (it calls back), back, or gateway (to TARGET).

Where the registry is they learn from MESH_DISCOVERY__*. GET /item?size=N answers N bytes, and which process made them.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Response

from fastapi_mesh import APIGateway, Mesh, ServiceMesh, ServiceMeshMiddleware
from fastapi_mesh.observability.logging import configure

configure()


def node(name: str) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ServiceMeshMiddleware, service_name=name)

    @app.get("/item")
    async def item(size: int, mesh: Mesh) -> Response:
        if name == "front":
            answer = await mesh.call_service("back", "/item", params={"size": size}, raw=True)
            return Response(answer.content, headers={"x-instance": answer.headers["x-instance"]})
        return Response(b"i" * size, headers={"x-instance": str(os.getpid())})

    return app


def gateway() -> APIGateway:
    made = APIGateway(service_mesh=ServiceMesh("gateway", enable_service_discovery=True))
    made.configure_routes([{"path": "/*", "service": os.environ["TARGET"]}])
    return made


app = gateway() if os.environ["NODE"] == "gateway" else node(os.environ["NODE"])
