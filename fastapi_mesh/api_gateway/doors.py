"""The paths that a gateway answers itself, as part of its routes: where browsers log in, come back, and log out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.pipeline import compile_own
from fastapi_mesh.api_gateway.routes import Route, with_streaming
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.balancing import new_picker
from fastapi_mesh.config.edge.websocket import WebSocketPolicy
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.config.routes import RouteConfig
from fastapi_mesh.core.instance import InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.state import ServiceState

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.pipeline import Parts
    from fastapi_mesh.config.gateway import GatewayConfig

SERVICE = "gateway-login"
"""What logs and problem documents call the service that answers there."""


class Doors:
    """Asked before the table of routes: its paths are the gateway's, whatever a route says."""

    __slots__ = ("_found",)

    def __init__(self, config: GatewayConfig, parts: Parts) -> None:
        self._found: dict[bytes, tuple[tuple[str, ...], Route]] = {}
        policy = ServicePolicy()
        state = ServiceState(
            SERVICE, instances=Live[tuple[InstanceState, ...]](), picker=new_picker(policy.load_balancing)
        )
        logins = None if parts.auth is None else parts.auth.logins
        for path, (methods, door) in () if logins is None else logins.doors(parts.meter).items():
            route = Route(RouteConfig(path=path, service=SERVICE, methods=methods), config)
            route.chain = compile_own(door, route, parts)
            route.websocket = WebSocketPolicy(enabled=False)
            route.state = state
            route.set_policy(SERVICE, with_streaming(CallPolicy.compile(policy)))
            self._found[path.encode()] = (methods, route)

    def __bool__(self) -> bool:
        return bool(self._found)

    def find(self, path: bytes, method: str) -> Route | Refusal | None:
        """What answers at the raw `path`; None where it is not one of ours."""
        found = self._found.get(path)
        if found is None:
            return None
        methods, route = found
        if method in methods:
            return route
        return Refusal(405, "method-not-allowed", f"This path answers {', '.join(methods)}.", methods)
