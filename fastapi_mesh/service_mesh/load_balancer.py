"""The balancing strategies by name, where the product description has them."""

from fastapi_mesh.config.policies import LoadBalancingStrategy

__all__ = ["LoadBalancingStrategy"]
