"""The route table: finds the route of a path in time that depends on the path's length, not on how many routes exist.

Paths are written with literal segments, `{param}` (exactly one non-empty segment) and a last `*`, which stands for
"this and everything below": `/users/*` matches `/users`, `/users/` and `/users/1/x`, never `/usersX`. Where several
match, segments are compared from the left: literal before `{param}` before `*`; those of one path are in the order that
`choice` describes. Of the routes so ordered, the first one wins that has the method and whose conditions hold (as in
YARP); only if there is none, and some lack nothing but the method, is the method refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

from fastapi_mesh.api_gateway import paths
from fastapi_mesh.api_gateway.choice import ALWAYS, Asked, Choice, Conditions, settle
from fastapi_mesh.api_gateway.paths import is_usual
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from fastapi_mesh.core.instance import Message as Scope

R = TypeVar("R")

ANY_METHOD = "*"
USUAL_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_ONLY_WHEN_NAMED = frozenset({"CONNECT", "TRACE"})
"""A route for any method doesn't mean these: they show or tunnel what lies behind the gateway."""
_NOTHING: Scope = {"headers": [], "query_string": b""}
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the gateway itself answers where a path belongs to a route: why it is refused, or 204 for an OPTIONS that no
    route has. `allow` lists methods, for 405 and 204.
    """

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

OUTSIDE = Refusal(400, "ambiguous-path", "The path leads above its root ('..'), which servers read in different ways.")

Found: TypeAlias = R | Refusal | None

_UNMET = Refusal(404, "no-route", "")
"""What a table says to itself: the path is a route's, whose conditions do not hold. To others it is None."""


class Entry(NamedTuple, Generic[R]):
    """A route as the table takes it. `methods` is None for any."""

    path: str
    methods: Collection[str] | None
    route: R
    conditions: Conditions = ALWAYS


class _Node(Generic[R]):
    """A place in the trie; `exact` and `tail` map a method to what ends here, or starts its `*` here."""

    __slots__ = ("exact", "literals", "parameter", "tail")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node[R]] = {}
        self.parameter: _Node[R] | None = None
        self.exact: dict[str, R | Choice[R]] = {}
        self.tail: dict[str, R | Choice[R]] = {}


_Leaf: TypeAlias = dict[str, R | Choice[R]]


class RouteTable(Generic[R]):
    """Immutable. Two routes may not claim the same path and method under the same conditions.

    Where no route has a path, `fallback` is asked: its routes are others' rivals in nothing, so whatever path a route
    of this table has, with whatever method and under whatever conditions, is not theirs. (Conditions protect: a client
    that leaves out the header that a route asks for must not get around it.)
    """

    __slots__ = ("_fallback", "_root", "routes")

    def __init__(self, entries: Iterable[Entry[R]] = (), *, fallback: RouteTable[R] | None = None) -> None:
        self._root: _Node[R] = _Node()
        self._fallback: RouteTable[R] | None = fallback
        listed = tuple(entries)
        self.routes: tuple[R, ...] = tuple(entry.route for entry in listed)
        builder = _Builder(self._root)
        problems = []
        for entry in listed:
            try:
                builder.add(entry)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError(problems=problems, source="routes")
        builder.settle()
        if fallback is not None:
            self.routes += fallback.routes

    def over(self, fallback: RouteTable[R] | None) -> RouteTable[R]:
        """The same routes over another fallback; costs nothing."""
        own = self.routes if self._fallback is None else self.routes[: -len(self._fallback.routes) or None]
        table: RouteTable[R] = RouteTable()
        table._root, table._fallback = self._root, fallback
        table.routes = own if fallback is None else own + fallback.routes
        return table

    def __len__(self) -> int:
        return len(self.routes)

    def find(self, path: bytes, method: str, scope: Scope | None = None, authority: bytes | None = None) -> Found[R]:
        """The route for raw `path` (no query) and `method`; None where the path is no route's.

        `scope` is read by conditions on headers, query and host; `authority`, that of an absolute-form target, is the
        host before `Host` is.
        """
        if is_usual(path):
            parts = path.split(b"/")
            found = self._find(parts, method, scope, authority)
            if found is None and self._fallback is not None:
                found = self._fallback._find(parts, method, scope, authority)
            return None if found is _UNMET else found
        return self._find_unusual(path, method, scope, authority)

    def _find_unusual(self, path: bytes, method: str, scope: Scope | None, authority: bytes | None) -> Found[R]:
        segments = paths.split(path)
        found = self._look(segments, method, scope, authority)
        if found is None or isinstance(found, Refusal):
            return found
        if any(b"\0" in segment for segment in segments):
            return AMBIGUOUS
        if paths.has_one_reading(segments):
            return found
        if len(path) > paths.MAX_AMBIGUOUS_LENGTH:
            return AMBIGUOUS
        readings = paths.readings(segments)
        if not all(self._look(reading, method, scope, authority) is found for reading in readings):
            return AMBIGUOUS
        return OUTSIDE if paths.climbs(segments) else found

    def _look(self, segments: Sequence[bytes], method: str, scope: Scope | None, authority: bytes | None) -> Found[R]:
        parts = (b"", *segments)
        found = self._find(parts, method, scope, authority)
        if found is None and self._fallback is not None:
            found = self._fallback._find(parts, method, scope, authority)
        return None if found is _UNMET else found

    def _find(self, parts: Sequence[bytes], method: str, scope: Scope | None, authority: bytes | None) -> Found[R]:
        """Depth first, most specific branch first; `later` holds the branches not taken, the best last.

        `parts` is the path cut at its slashes: what is before the first one, then the segments.
        """
        count = len(parts)
        node = self._root
        index = 1
        later: list[tuple[_Node[R], int]] = []
        refused: list[_Leaf[R]] = []
        while True:
            routes = node.tail
            if index < count:
                segment = parts[index]
                if routes:
                    later.append((node, -1))
                if node.parameter is not None and segment:
                    later.append((node.parameter, index + 1))
                child = node.literals.get(segment)
                if child is not None:
                    node = child
                    index += 1
                    continue
            elif node.exact:
                if routes:  # `/users` itself belongs to `/users/*`, unless a route ends here
                    later.append((node, -1))
                later.append((node, -2))
            elif routes:
                later.append((node, -1))
            while later:
                node, index = later.pop()
                if index >= 0:
                    break
                routes = node.tail if index == -1 else node.exact
                found = routes.get(method)
                if found is None and method not in _ONLY_WHEN_NAMED:
                    found = routes.get(ANY_METHOD)
                if found.__class__ is Choice:
                    found = _chosen(found, scope, authority)
                if found is not None:
                    return found  # type: ignore[return-value]  # mypy narrows by isinstance only, which is slower
                refused.append(routes)
            else:
                return _not_allowed(refused, method, scope, authority) if refused else None


class _Builder(Generic[R]):
    """Puts routes into a trie, and works out the order of those that share a path once all are in."""

    def __init__(self, root: _Node[R]) -> None:
        self._root = root
        self._leaves: dict[int, tuple[_Leaf[R], list[Entry[R]]]] = {}
        self._claims: set[tuple[object, ...]] = set()

    def add(self, entry: Entry[R]) -> None:
        """Raises ValueError for a path that can't be, and for a route that another one hides completely."""
        segments, tail = _parse(entry.path)
        node = self._root
        for segment in segments:
            if segment is None:
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        leaf = node.tail if tail else node.exact
        methods = (ANY_METHOD,) if entry.methods is None else sorted({method.upper() for method in entry.methods})
        for method in methods:
            for host in entry.conditions.hosts or (b"",):
                claim = (id(leaf), method, host, entry.conditions.key)
                if claim in self._claims:
                    every = "any method" if method == ANY_METHOD else method
                    raise ValueError(
                        f"{entry.path}: another route has the same path, conditions and {every}; remove one or split "
                        "methods"
                    )
                self._claims.add(claim)
        self._leaves.setdefault(id(leaf), (leaf, []))[1].append(entry)

    def settle(self) -> None:
        """Fill the leaves. HEAD is allowed where GET is (RFC 9110 section 9.3.2); TRACE and CONNECT only where a route
        names them.
        """
        for leaf, entries in self._leaves.values():
            by_method: dict[str, list[tuple[int, Conditions, R]]] = {}
            named = {method.upper() for entry in entries for method in entry.methods or ()}
            if "GET" in named:
                named.add("HEAD")
            for entry in entries:
                own = None if entry.methods is None else {method.upper() for method in entry.methods}
                for method in named - _ONLY_WHEN_NAMED | {ANY_METHOD} if own is None else own:
                    distance = 2 if own is None else 0
                    by_method.setdefault(method, []).append((distance, entry.conditions, entry.route))
                if own is not None and "GET" in own and "HEAD" not in own:
                    by_method.setdefault("HEAD", []).append((1, entry.conditions, entry.route))
            for method, candidates in by_method.items():
                leaf[method] = settle(candidates)


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
    if not paths.has_one_reading(literal):
        raise ValueError(f"{path}: no empty or dot segments, '%2F', backslashes or ';' in a route's path")
    return segments, tail


def _chosen(choice: Choice[R], scope: Scope | None, authority: bytes | None) -> R | None:
    return choice.pick(Asked(_NOTHING if scope is None else scope, authority))


def _not_allowed(refused: list[_Leaf[R]], method: str, scope: Scope | None, authority: bytes | None) -> Refusal:
    """Which methods a route would have answered; _UNMET where there is none, whatever the method."""
    methods = {
        each
        for routes in refused
        for each, found in routes.items()
        if not isinstance(found, Choice) or _chosen(found, scope, authority) is not None
    }
    if not methods:
        return _UNMET
    if ANY_METHOD in methods:
        methods = methods - {ANY_METHOD} | set(USUAL_METHODS)
    allow = tuple(sorted(methods | {"OPTIONS"}))
    if method == "OPTIONS":  # RFC 9110 section 9.3.7
        return Refusal(204, "options", "", allow)
    return Refusal(405, "method-not-allowed", f"This path answers {', '.join(allow)}.", allow)
