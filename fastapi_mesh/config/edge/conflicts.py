"""Routes of a configuration that stand in each other's way."""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi_mesh.config.edge.routing import ValueMatch
    from fastapi_mesh.config.routes import RouteConfig

_PARAMETER = re.compile(r"\{[A-Za-z_]\w*\}", re.ASCII)


def duplicate_routes(routes: Sequence[RouteConfig]) -> list[tuple[tuple[str | int, ...], str]]:
    """Routes that can't be told apart: same path, conditions and priority, and a method and host in common; and names
    that are given twice. (index,) and a text for each.
    """
    claims: dict[tuple[object, ...], int] = {}
    names: dict[str, int] = {}
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, route in enumerate(routes):
        if route.name is not None and (other := names.setdefault(route.name, index)) != index:
            problems.append(((index, "name"), f"{route.name!r} is the name of routes[{other}] already"))
        conditions = (_PARAMETER.sub("{}", route.path), route.priority, _fixed(route.headers), _fixed(route.query))
        taken = {
            (other, method)
            for method in route.methods or ("any method",)
            for host in route.host or ("",)
            if (other := claims.setdefault((*conditions, method, host), index)) != index
        }
        if taken:
            other = min(taken)[0]
            shared = ", ".join(sorted({method for each, method in taken if each == other}))
            called = "" if routes[other].name is None else f" ({routes[other].name!r})"
            claimed = f"{route.label!r} with {shared} is already routes[{other}]{called}, under the same conditions"
            problems.append(((index,), f"{claimed}; remove one, split methods or give one a priority"))
    return problems


def _fixed(matches: Mapping[str, ValueMatch]) -> tuple[tuple[str, ValueMatch], ...]:
    return tuple(sorted(matches.items(), key=itemgetter(0)))
