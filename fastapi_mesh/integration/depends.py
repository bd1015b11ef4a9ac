"""The dependency that gives a path operation its mesh."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads the annotation when the app is built

from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.service_mesh.mesh import ServiceMesh


def get_service_mesh(connection: HTTPConnection) -> ServiceMesh:
    """The mesh of the request or WebSocket, for `Depends(get_service_mesh)`; in tests, replace it through
    `app.dependency_overrides`.

    Raises ConfigurationError when the application has none.
    """
    mesh = connection.scope.get("state", {}).get("mesh")
    if mesh is None:
        mesh = getattr(connection.app.state, "mesh", None)
    if isinstance(mesh, ServiceMesh):
        return mesh
    raise ConfigurationError(
        "this application has no mesh: add app.add_middleware(ServiceMeshMiddleware, service_name=...) or "
        "FastAPI(lifespan=mesh.lifespan); with TestClient and a lifespan, use it as `with TestClient(app) as client`"
    )


Mesh = Annotated[ServiceMesh, Depends(get_service_mesh)]
"""`async def endpoint(mesh: Mesh)` is short for `mesh: ServiceMesh = Depends(get_service_mesh)`."""
