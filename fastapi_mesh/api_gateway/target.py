"""Where in the gateway a request points: its raw path, what lies before it, and what goes to the service as target."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi_mesh.api_gateway import paths
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.config.edge.routing import PLACEHOLDER, REST
from fastapi_mesh.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.core.instance import Message as Scope

_SENDABLE = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
"""A request target has no space, control, fragment or non-ASCII byte (RFC 9112 section 3.2)."""
_KEPT = "%/-._~!$&'()*+,=:@"
"""What a template's own text may have besides letters and digits; everything else is percent-encoded."""
_CLIMBS = "the path leads above what this route may reach ('..')"


class Place:
    """`path` is the raw path below the gateway; `prefix` what stood before it; `authority` that of an absolute form.

    `route` is what the gateway's table has there: a route, a reason to refuse, or None.
    """

    __slots__ = ("authority", "path", "prefix", "route")

    def __init__(self, path: bytes, prefix: bytes = b"", authority: bytes | None = None) -> None:
        self.path = path
        self.prefix = prefix
        self.authority = authority
        self.route: Route | Refusal | None = None

    @property
    def is_other_method(self) -> bool:
        """Whether the path is a route's, and only the method is not."""
        return isinstance(self.route, Refusal) and bool(self.route.allow)


def locate(scope: Scope, prefix: bytes = b"") -> Place | None:
    """Read the raw path of a request; None where it is not below `root_path` and `prefix`, or is no path at all.

    An absolute-form target (`GET http://host/path`; h11 and zttp put all of it into `raw_path`) becomes its path and
    authority. `*` and the authority-form of CONNECT are no path.
    """
    path: bytes | None = scope.get("raw_path")
    if path is None:  # an optional key of the ASGI specification
        path = quote(scope["path"], safe="/:@!$&'()*+,;=-._~").encode()
    root = scope.get("root_path") or ""
    if not root and not prefix and path[:1] == b"/":
        return Place(path)
    return _locate(path, root.encode(), prefix)


def _locate(path: bytes, root: bytes, prefix: bytes) -> Place | None:
    root = root.rstrip(b"/")
    outside = b""
    if root and path.startswith(root):
        rest = path[len(root) :]
        if not rest or rest[:1] == b"/" or b"://" in rest:
            outside, path = root, rest or b"/"
    authority = None
    if path[:1] != b"/":
        scheme, found, rest = path.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            return None
        authority, slash, path = rest.partition(b"/")
        path = slash + path or b"/"
    if prefix:
        rest = path[len(prefix) :]
        if not path.startswith(prefix) or (rest and rest[:1] != b"/"):
            return None
        outside, path = outside + prefix, rest or b"/"
    return Place(path, outside, authority)


def strip(path: bytes, segments: int) -> tuple[bytes, bytes]:
    """Cut the first `segments` segments off a raw path: (what was cut, what is left).

    >>> strip(b"/api/users/7/x", 2)
    (b'/api/users', b'/7/x')
    >>> strip(b"/api/users", 2)
    (b'/api/users', b'/')
    """
    position = 0
    for _ in range(segments):
        position = path.find(b"/", position + 1)
        if position < 0:
            return path, b"/"
    return path[:position], path[position:]


class Stripping:
    """Takes `segments` segments off the front of paths."""

    __slots__ = ("_segments",)

    def __init__(self, segments: int) -> None:
        self._segments = segments

    def __call__(self, path: bytes) -> bytes:
        path = strip(path, self._segments)[1]
        if not paths.is_usual(path) and paths.climbs(paths.split(path)):
            raise InvalidRequestError(_CLIMBS)
        return path


class Rewriting:
    """Makes a path of a template: `{name}` is a segment of the path that came, `*` or `{rest}` what its `*` stood for.

    What is put in stays as it was encoded. A segment that a server further on could take for several, or for a step
    up, is refused (InvalidRequestError), and so is a rest that leads above its beginning.
    """

    __slots__ = ("_parts", "_rest")

    def __init__(self, template: str, path: str) -> None:
        """Both as `config.routes` has checked them."""
        known = positions_of(path)
        self._rest: int | None = None
        if template.endswith(("/*", f"/{{{REST}}}")):
            template = template.rpartition("/")[0]
            self._rest = path.count("/") - 1
        pieces = PLACEHOLDER.split(template)  # text, name, text, name, ..., text
        self._parts: list[bytes | int] = [
            known[piece] if index % 2 else quote(piece, safe=_KEPT).encode() for index, piece in enumerate(pieces)
        ]

    def __call__(self, path: bytes) -> bytes:
        rest = b""
        if self._rest is not None:
            rest = _after(path, self._rest)
            if not paths.is_usual(rest) and paths.climbs(paths.split(rest)):
                raise InvalidRequestError(_CLIMBS)
        segments = path[1:].split(b"/")
        made = b"".join([part if isinstance(part, bytes) else _segment(segments, part) for part in self._parts])
        return made + rest or b"/"


def _segment(segments: list[bytes], position: int) -> bytes:
    if position >= len(segments):
        raise InvalidRequestError("the path is too short for this route")
    segment = segments[position]
    if b"%" in segment or b"." in segment or b";" in segment or b"\\" in segment:
        readings = paths.readings(paths.split(b"/" + segment))
        if any(len(reading) != 1 or reading[0] in paths.DOTS for reading in readings):
            raise InvalidRequestError("a part of the path could be read as several, or as a step up")
    return segment


def _after(path: bytes, segments: int) -> bytes:
    """What is left of a path behind its first segments: b"" or something that begins with a slash."""
    position = 0
    for _ in range(segments):
        position = path.find(b"/", position + 1)
        if position < 0:
            return b""
    return path[position:]


def positions_of(path: str) -> dict[str, int]:
    """The parameters of a route's path, and which segment each one is.

    >>> positions_of("/users/{id}/orders/{order}/*")
    {'id': 1, 'order': 3}
    """
    matches = ((PLACEHOLDER.fullmatch(segment), index) for index, segment in enumerate(path[1:].split("/")))
    return {match[1]: index for match, index in matches if match is not None}


def values_at(positions: dict[str, int], path: bytes) -> dict[str, bytes]:
    """The segments of a raw path at `positions`; b"" where it has none."""
    segments = path[1:].split(b"/")
    return {name: segments[index] if index < len(segments) else b"" for name, index in positions.items()}


def target_of(path: bytes, query: bytes) -> bytes:
    """The origin-form target. Raises InvalidRequestError when it can't be one."""
    target = path + b"?" + query if query else path
    check_sendable(target)
    return target


def check_sendable(target: bytes) -> None:
    """Raises InvalidRequestError for a byte that no request target has."""
    if target.translate(None, _SENDABLE):
        raise InvalidRequestError("the request target has a byte in it that no URL has")
