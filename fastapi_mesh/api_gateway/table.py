"""The route table: finds the route of a path in time that depends on the path's length, not on how many routes exist.

Paths are written with literal segments, `{param}` (exactly one non-empty segment) and a last `*`, which stands for
"this and everything below": `/users/*` matches `/users`, `/users/` and `/users/1/x`, never `/usersX`. Where several
match, segments are compared from the left: literal before `{param}` before `*`. Of the routes so ordered, the first one
that has the method wins (as in YARP); only if none has it is the method refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi_mesh.api_gateway import paths
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

R = TypeVar("R")

ANY_METHOD = "*"
USUAL_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_ONLY_WHEN_NAMED = frozenset({"CONNECT", "TRACE"})
"""A route for any method doesn't mean these: they show or tunnel what lies behind the gateway."""
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a path that belongs to a route gets no answer from it. `allow` lists methods, for 405 only."""

    status: int
    reason: str
    detail: str
    allow: tuple[str, ...] = ()


AMBIGUOUS = Refusal(
    400,
    "ambiguous-path",
    "The path can be read in more than one way (encoded slash or backslash, empty, dot or ';' segments), and these "
    "lead to different routes.",
)


class _Node(Generic[R]):
    """A place in the trie; `exact` and `tail` map a method to the route that ends here, or starts its `*` here."""

    __slots__ = ("exact", "literals", "parameter", "tail")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node[R]] = {}
        self.parameter: _Node[R] | None = None
        self.exact: dict[str, R] = {}
        self.tail: dict[str, R] = {}


class RouteTable(Generic[R]):
    """Immutable. Made of (path, methods or None for any, route); two routes may not claim the same path and method."""

    __slots__ = ("_root", "routes")

    def __init__(self, entries: Iterable[tuple[str, Collection[str] | None, R]] = ()) -> None:
        self._root: _Node[R] = _Node()
        listed = tuple(entries)
        self.routes = tuple(route for _, _, route in listed)
        problems = []
        for path, methods, route in listed:
            try:
                self._add(path, methods, route)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError(problems=problems, source="routes")
        _complete(self._root)

    def __len__(self) -> int:
        return len(self.routes)

    def find(self, path: bytes, method: str) -> R | Refusal | None:
        """The route for raw `path` (no query) and `method`; None where the path is no route's."""
        if paths.is_usual(path):
            return self._find(path[1:].split(b"/"), method)
        return self._find_unusual(path, method)

    def _find_unusual(self, path: bytes, method: str) -> R | Refusal | None:
        segments = paths.split(path)
        found = self._find(segments, method)
        if found is None or isinstance(found, Refusal):
            return found
        if any(b"\0" in segment for segment in segments):
            return AMBIGUOUS
        if paths.has_one_reading(segments):
            return found
        if len(path) > paths.MAX_AMBIGUOUS_LENGTH:
            return AMBIGUOUS
        same = all(self._find(reading, method) is found for reading in paths.readings(segments))
        return found if same else AMBIGUOUS

    def _find(self, segments: Sequence[bytes], method: str) -> R | Refusal | None:
        """Depth first, most specific branch first; `later` holds the branches not taken, the best last."""
        count = len(segments)
        node = self._root
        index = 0
        later: list[tuple[_Node[R], int]] = []
        refused: list[dict[str, R]] = []
        while True:
            if index < count:
                segment = segments[index]
                if node.tail:
                    later.append((node, -1))
                if node.parameter is not None and segment:
                    later.append((node.parameter, index + 1))
                child = node.literals.get(segment)
                if child is not None:
                    node = child
                    index += 1
                    continue
            else:
                # `/users` itself belongs to `/users/*`, unless a route ends here.
                for routes in (node.exact, node.tail):
                    if routes:
                        route = _pick(routes, method)
                        if route is not None:
                            return route
                        refused.append(routes)
            while later:
                node, index = later.pop()
                if index >= 0:
                    break
                route = _pick(node.tail, method)
                if route is not None:
                    return route
                refused.append(node.tail)
            else:
                return _not_allowed(refused) if refused else None

    def _add(self, path: str, methods: Collection[str] | None, route: R) -> None:
        segments, tail = _parse(path)
        node = self._root
        for segment in segments:
            if segment is None:
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        routes = node.tail if tail else node.exact
        for method in (ANY_METHOD,) if methods is None else sorted({method.upper() for method in methods}):
            if method in routes:
                every = "any method" if method == ANY_METHOD else method
                raise ValueError(f"{path}: another route has the same path and {every}; remove one or split methods")
            routes[method] = route


def _parse(path: str) -> tuple[list[bytes | None], bool]:
    """The segments of a route's path (None for `{param}`) and whether it ends in `*`. Raises ValueError."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r}: a route's path starts with '/'")
    if "?" in path or "#" in path:
        raise ValueError(f"{path}: a route's path has no query and no fragment")
    parts = path[1:].split("/")
    tail = parts[-1] == "*"
    if tail:
        parts.pop()
    segments: list[bytes | None] = []
    for part in parts:
        if _PARAMETER.fullmatch(part):
            segments.append(None)
        elif any(each in part for each in "{}*"):
            raise ValueError(
                f"{path}: {part!r} is neither text nor '{{name}}'; a parameter is a whole segment, and '*' stands "
                "alone at the end"
            )
        else:
            segments.extend(paths.split(b"/" + part.encode()))
    literal = tuple(b"x" if segment is None else segment for segment in segments) or (b"",)
    if len(paths.readings(literal)) > 1:
        raise ValueError(f"{path}: no empty or dot segments, '%2F', backslashes or ';' in a route's path")
    return segments, tail


def _complete(node: _Node[R]) -> None:
    """HEAD is allowed where GET is (RFC 9110 section 9.3.2); TRACE and CONNECT only where a route names them."""
    pending = [node]
    while pending:
        node = pending.pop()
        for routes in (node.exact, node.tail):
            if "GET" in routes:
                routes.setdefault("HEAD", routes["GET"])
        pending.extend(node.literals.values())
        if node.parameter is not None:
            pending.append(node.parameter)


def _pick(routes: dict[str, R], method: str) -> R | None:
    route = routes.get(method)
    if route is None and method not in _ONLY_WHEN_NAMED:
        return routes.get(ANY_METHOD)
    return route


def _not_allowed(refused: list[dict[str, R]]) -> Refusal:
    methods = {method for routes in refused for method in routes}
    if ANY_METHOD in methods:
        methods = methods - {ANY_METHOD} | set(USUAL_METHODS)
    allow = tuple(sorted(methods))
    return Refusal(405, "method-not-allowed", f"This path answers {', '.join(allow)}.", allow)
