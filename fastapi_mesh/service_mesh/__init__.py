"""The node's view of the mesh: the ServiceMesh object and the decorators around calls."""

from fastapi_mesh.service_mesh.decorators import circuit_breaker, retry_policy, trace_calls
from fastapi_mesh.service_mesh.fallback import OtherService
from fastapi_mesh.service_mesh.mesh import ServiceMesh

__all__ = ["OtherService", "ServiceMesh", "circuit_breaker", "retry_policy", "trace_calls"]
