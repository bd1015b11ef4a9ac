"""A service mesh and API gateway in process for FastAPI: the public names, and nothing else."""

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.config.policies import (
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
from fastapi_mesh.integration import Mesh, ServiceMeshMiddleware, get_service_mesh
from fastapi_mesh.service_mesh import ServiceMesh, circuit_breaker, retry_policy, trace_calls

__all__ = [
    "APIGateway",
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
