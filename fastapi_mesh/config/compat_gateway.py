"""The product description's shapes of a gateway's settings, turned into ours. A node without a gateway imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.config.compat import read
from fastapi_mesh.config.fields import Frozen, ServiceName
from fastapi_mesh.config.gateway import GatewayServiceConfig, RouteConfig, Routes
from fastapi_mesh.config.problems import suggestion
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class _RouteList(Frozen, defer_build=True):
    """Routes that were given together."""

    routes: Routes


def routes_from_description(
    given: Iterable[Mapping[str, object] | RouteConfig], source: str = "configure_routes"
) -> tuple[RouteConfig, ...]:
    """`[{"path": "/api/v1/users/*", "service": "user-service", "methods": ["GET"]}]`. Raises ConfigurationError."""
    return read(_RouteList, {"routes": given}, source).routes


def changed_routes(
    routes: Iterable[RouteConfig], which: str, changes: Mapping[str, object], source: str = "change_route"
) -> tuple[RouteConfig, ...]:
    """`routes` with some settings of the one at path `which` changed; None is a setting's default.

    Raises ConfigurationError.
    """
    routes = list(routes)
    places = [index for index, route in enumerate(routes) if which in (route.path, getattr(route, "name", None))]
    if len(places) != 1:
        known = [route.path for route in routes]
        text = f"several routes have the path {which!r}" if places else f"no route {which!r}{suggestion(which, known)}"
        raise ConfigurationError(f"{source}: {text}")
    given = {**routes[places[0]].model_dump(exclude_unset=True), **changes}
    data: list[object] = list(routes)
    unset = {name for name, value in changes.items() if value is None and name in RouteConfig.model_fields}
    data[places[0]] = {name: value for name, value in given.items() if name not in unset}
    return routes_from_description(data, source)  # type: ignore[arg-type]  # they are checked there


def services_from_description(
    given: Mapping[str, object], source: str = "configure_services"
) -> dict[str, GatewayServiceConfig]:
    """`{"user-service": {"instances": [url, ...], "load_balancing": "round_robin"}}`, or just a URL or list of them."""
    return read(dict[ServiceName, GatewayServiceConfig], given, source)
