"""A service mesh and API gateway in process for FastAPI: the public names, and nothing else."""

from typing import TYPE_CHECKING

from fastapi_mesh.config.policies import (
    AdaptiveLimit,
    BalancingPolicy,
    BreakerPolicy,
    BulkheadPolicy,
    LoadBalancingStrategy,
    OutlierPolicy,
    RetryPolicy,
    ServicePolicy,
    TimeoutPolicy,
)
from fastapi_mesh.core.context import generate_request_id
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    ConfigurationError,
    MeshError,
    ServiceDiscoveryError,
    ServiceResponseError,
    ServiceUnavailableError,
)
from fastapi_mesh.integration import Mesh, RequestPriority, ServiceMeshMiddleware, get_service_mesh
from fastapi_mesh.service_mesh import ServiceMesh, circuit_breaker, retry_policy, trace_calls

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway import APIGateway

__all__ = [
    "APIGateway",
    "AdaptiveLimit",
    "BalancingPolicy",
    "BreakerPolicy",
    "BulkheadPolicy",
    "CircuitBreakerOpenError",
    "ConfigurationError",
    "Instance",
    "LoadBalancingStrategy",
    "Mesh",
    "MeshError",
    "OutlierPolicy",
    "RequestPriority",
    "RetryPolicy",
    "ServiceDiscoveryError",
    "ServiceMesh",
    "ServiceMeshMiddleware",
    "ServicePolicy",
    "ServiceResponseError",
    "ServiceUnavailableError",
    "TimeoutPolicy",
    "circuit_breaker",
    "generate_request_id",
    "get_service_mesh",
    "retry_policy",
    "trace_calls",
]


def __getattr__(name: str) -> object:
    """A gateway is imported when it is asked for: a node has none, and it is half of what importing all would cost."""
    if name == "APIGateway":
        from fastapi_mesh.api_gateway import APIGateway

        return APIGateway
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
