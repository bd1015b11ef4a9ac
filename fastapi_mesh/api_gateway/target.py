"""Where in the gateway a request points: its raw path, what lies before it, and what goes to the service as target."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.core.instance import Message as Scope

_SENDABLE = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
"""A request target has no space, control, fragment or non-ASCII byte (RFC 9112 section 3.2)."""


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
        return isinstance(self.route, Refusal) and self.route.status == 405


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


def target_of(path: bytes, query: bytes) -> bytes:
    """The origin-form target. Raises InvalidRequestError when it can't be one."""
    target = path + b"?" + query if query else path
    if target.translate(None, _SENDABLE):
        raise InvalidRequestError("the request target has a byte in it that no URL has")
    return target
