"""The API gateway: one ASGI callable over the mesh, mountable in any application."""

from fastapi_mesh.api_gateway.gateway import APIGateway
from fastapi_mesh.api_gateway.router import GatewayMiddleware, GatewayRouter

__all__ = ["APIGateway", "GatewayMiddleware", "GatewayRouter"]
