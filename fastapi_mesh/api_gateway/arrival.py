"""What every request that has a route goes through first, whether it asks for an answer or for a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import RequestNames, read_request
from fastapi_mesh.api_gateway.request_id import accept
from fastapi_mesh.api_gateway.target import strip
from fastapi_mesh.core.context import CallContext, current_inbound

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.forwarded import Forwarding, Origin
    from fastapi_mesh.api_gateway.headers import Head
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.api_gateway.target import Place
    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.instance import Message as Scope
    from fastapi_mesh.core.state import ServiceState
    from fastapi_mesh.service_mesh.mesh import ServiceMesh


def own_context(route: Route, state: ServiceState) -> CallContext:
    """The context where the gateway answers itself: there is no service that discovery would have to look for."""
    assert route.policy is not None, "a route with a state has a policy too"
    inbound = current_inbound.get()
    context = CallContext(route.policy, state, template=route.path, inbound=inbound)
    if inbound is not None:
        context.request_id = inbound.request_id
    return context


class Arrivals:
    """Checks requests, and says to the service what it may know of the client. Learns names of headers and hosts."""

    __slots__ = ("_forwarding", "_mesh", "_names")

    def __init__(self, mesh: ServiceMesh, forwarding: Forwarding) -> None:
        self._mesh = mesh
        self._forwarding = forwarding
        self._names = RequestNames()

    def read(self, scope: Scope, route: Route, place: Place) -> tuple[Head, Origin, bytes]:
        """The checked headers with ours added, where the request came from, and the target at the service.

        Raises InvalidRequestError.
        """
        path, prefix = place.path, place.prefix
        if route.strip:
            prefix += strip(path, route.strip)[0]
        target = route.target(path, scope["query_string"])
        head = read_request(scope["headers"], scope["http_version"], self._names, place.authority)
        return head, self._forwarding.append(head, scope, prefix), target

    def context(self, route: Route, policy: CallPolicy | None, head: Head, origin: Origin) -> CallContext:
        """The context of the call; request id and deadline are taken over from a trusted proxy only. A client that
        gives a service a few milliseconds must not be able to make it look dead.
        """
        if route.state is None:
            context = self._mesh.new_context(route.service, template=route.path, policy=policy)
        else:
            context = own_context(route, route.state)
        if context.inbound is not None and not origin.trusted:  # in an application that is a node itself
            context.inbound.deadline = None
        if not context.request_id and origin.trusted:
            context.request_id = accept(head.request_id)
        return context
