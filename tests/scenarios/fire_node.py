"""A node of the mesh that answers `/item`; started by the scenarios with faults in front of it."""

from __future__ import annotations

from fastapi import FastAPI

from fastapi_mesh import ServiceMeshMiddleware

app = FastAPI()
app.add_middleware(ServiceMeshMiddleware, service_name="items", discovery_backend="memory")


@app.get("/item")
async def item(size: int) -> dict[str, str]:
    return {"item": "i" * size}
