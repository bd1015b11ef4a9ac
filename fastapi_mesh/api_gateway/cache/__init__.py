"""The gateway's shared cache (RFC 9111), in memory or in Redis."""

from fastapi_mesh.api_gateway.cache.door import GatewayCache

__all__ = ["GatewayCache"]
