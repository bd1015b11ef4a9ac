"""A layer that gives calls of a route the circuit, the seats and the retry budget of that route alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.engines import Engines
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.core.state import ServiceState
    from fastapi_mesh.service_mesh.state import StateTable

STATEFUL = frozenset({"circuit_breaker", "bulkhead", "retry"})
"""The sections of a policy that remember something between calls."""


class RouteState:
    """What one route remembers of each service that answers for it: an engine, so that it survives reloads.

    Instances, their health and the statistics are the service's; only the machines of the sections that the route sets
    itself are its own. One is replaced when what counts for it has changed.
    """

    __slots__ = ("_label", "_sections", "_states", "_variants")

    def __init__(self, states: StateTable, label: str, sections: frozenset[str]) -> None:
        self._states = states
        self._label = label
        self._sections = sections
        self._variants: dict[str, tuple[ServiceState, ServiceState, CallPolicy]] = {}
        """Service to its state, the variant of it, and the policy that the variant was equipped for."""

    def of(self, shared: ServiceState, policy: CallPolicy) -> ServiceState:
        """This route's variant of a service's state."""
        entry = self._variants.get(shared.name)
        if entry is None or entry[0] is not shared:  # the mesh forgets a service that nobody calls for long
            self._drop(shared.name)
            variant = shared.variant(self._sections)
            self._states.equip_variant(variant, None, policy, f"{shared.name} {self._label}")
            self._variants[shared.name] = (shared, variant, policy)
            return variant
        variant, known = entry[1], entry[2]
        if not (known.breaker is policy.breaker and known.bulkhead is policy.bulkhead and known.retry is policy.retry):
            self._states.equip_variant(variant, known, policy, f"{shared.name} {self._label}")
            self._variants[shared.name] = (shared, variant, policy)
        return variant

    def _drop(self, service: str) -> None:
        entry = self._variants.pop(service, None)
        if entry is not None:
            entry[0].family.remove(entry[1])

    async def aclose(self) -> None:
        for service in tuple(self._variants):
            self._drop(service)


def own_states(routes: Iterable[Route], engines: Engines, states: StateTable) -> dict[Route, RouteState]:
    """The state of each route that sets a section with memory; the same one as before a reload, for the same route."""
    found: dict[Route, RouteState] = {}
    for route in routes:
        sections = route.config.overrides & STATEFUL
        if sections:
            label, identity = route.config.label, route.config.identity
            found[route] = engines.kept(
                f"route-state:{identity}", sections, partial(RouteState, states, label, sections)
            )
    return found


class OwnState:
    """Puts the route's state in the place of the service's."""

    __slots__ = ("_state", "inner")

    def __init__(self, inner: GatewayService, state: RouteState) -> None:
        self.inner = inner
        self._state = state

    async def __call__(self, request: Exchange) -> Response:
        context = request.context
        context.state = self._state.of(context.state, context.policy)
        return await self.inner(request)
