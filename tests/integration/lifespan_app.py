"""An application whose mesh comes in by its lifespan alone."""

from __future__ import annotations

from fastapi import FastAPI

from fastapi_mesh.service_mesh import ServiceMesh

mesh = ServiceMesh("orders")
app = FastAPI(lifespan=mesh.lifespan)
