"""Integration with FastAPI: the middleware that makes an application a node, and the dependency that finds the mesh."""

from fastapi_mesh.integration.depends import Mesh, get_service_mesh
from fastapi_mesh.integration.middleware import ServiceMeshMiddleware
from fastapi_mesh.integration.priority import RequestPriority

__all__ = ["Mesh", "RequestPriority", "ServiceMeshMiddleware", "get_service_mesh"]
