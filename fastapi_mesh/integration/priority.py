"""How important a request is to a node: what its caller says, and what the route says that it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Match

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.core.priority import NAMES, NORMAL, PriorityName, agreed_priority
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute
    from starlette.types import Scope


class RequestPriority:
    """A dependency that says how important a route is.

        @app.get("/report", dependencies=[Depends(RequestPriority("low"))])

    Where a node has an `inbound_limit`, low ones are refused first and high ones wait least; that is decided from the
    route before the body is read. The calls made in the request carry the priority on. A caller's `x-mesh-priority`
    lowers it and does not raise it. Raises ConfigurationError for another word than low, normal and high.
    """

    def __init__(self, priority: PriorityName) -> None:
        if priority not in NAMES:
            raise ConfigurationError(f"RequestPriority: {priority!r} is none of {', '.join(NAMES)}")
        self.value = NAMES.index(priority)

    async def __call__(self) -> None:
        inbound = current_inbound.get()
        if inbound is not None:
            said = inbound.priority
            inbound.priority = self.value if said == NORMAL else min(said, self.value)


class RoutePriorities:
    """Finds the priority of a request before it is routed."""

    def __init__(self) -> None:
        self._routes: list[tuple[BaseRoute, int | None]] = []
        self._known: tuple[object, int] | None = None

    def of(self, scope: Scope) -> int:
        """The header's, at most the route's; where there is no header the route's, else normal."""
        return agreed_priority(scope["headers"], self._of_route(scope))

    def _of_route(self, scope: Scope) -> int | None:
        routes: list[BaseRoute] = getattr(getattr(scope.get("app"), "router", None), "routes", [])
        if self._known is None or self._known[0] is not routes or self._known[1] != len(routes):
            self._known = (routes, len(routes))
            found = [(route, _priority_of(route)) for route in _flat(routes)]
            self._routes = found if any(priority is not None for _, priority in found) else []
        for route, priority in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return priority
        return None


def _flat(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """All routes in the order in which they are asked; a router that was included (FastAPI) has its own."""
    for route in routes:
        included = getattr(route, "effective_candidates", None)
        if included is None:
            yield route
        else:
            yield from _flat(included())


def _priority_of(route: BaseRoute) -> int | None:
    dependant = getattr(route, "dependant", None)
    return None if dependant is None else _first(dependant.dependencies)


def _first(dependencies: Iterable[object]) -> int | None:
    for each in dependencies:
        call = getattr(each, "call", None)
        if isinstance(call, RequestPriority):
            return call.value
        if (found := _first(getattr(each, "dependencies", ()))) is not None:
            return found
    return None
