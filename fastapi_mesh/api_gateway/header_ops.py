"""A layer that adds, sets and removes headers, and decides which Host the service sees."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi_mesh.config.edge.routing import REQUEST_ID

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.edge.routing import HeaderOperations
    from fastapi_mesh.core.message import Header, Response

_TOKEN = re.compile(r"(\{\{|\}\}|\{\w+\})")


class HeaderOps:
    """The operations of one direction, worked out beforehand. The names of all headers are in lower case."""

    __slots__ = ("_fixed", "_gone", "_templates")

    def __init__(self, operations: HeaderOperations) -> None:
        pairs = [*operations.set.items(), *((name, value) for name, each in operations.add.items() for value in each)]
        self._gone = frozenset(
            [*(name.encode() for name in operations.remove), *(name.lower().encode() for name in operations.set)]
        )
        compiled = [(name.lower().encode(), _parts(value)) for name, value in pairs]
        self._fixed: list[Header] = []
        self._templates: list[tuple[bytes, list[bytes | str]]] = []
        for name, parts in compiled:
            if all(isinstance(part, bytes) for part in parts):
                self._fixed.append((name, b"".join(part for part in parts if isinstance(part, bytes))))
            else:
                self._templates.append((name, parts))

    def __call__(self, headers: list[Header], request: Exchange) -> list[Header]:
        """`headers` after the operations."""
        gone = self._gone
        changed = [header for header in headers if header[0] not in gone] if gone else list(headers)
        changed += self._fixed
        if self._templates:
            values = request.route.values(request.path)
            values[REQUEST_ID] = request.context.request_id.encode()
            for name, parts in self._templates:
                changed.append((name, b"".join([part if isinstance(part, bytes) else values[part] for part in parts])))
        return changed


def _parts(text: str) -> list[bytes | str]:
    """A template's own text as bytes, and the names in it as texts."""
    parts: list[bytes | str] = []
    for piece in _TOKEN.split(text):
        if piece in ("{{", "}}"):
            parts.append(piece[:1].encode())
        elif piece.startswith("{"):
            parts.append(piece[1:-1])
        elif piece:
            parts.append(piece.encode())
    return parts


class Headers:
    """Changes the headers of requests on their way to the service, and those of its answers.

    What a placeholder puts in is a segment of the raw path, or an id: neither can hold a line break. Host goes where
    `route.host` says: the client's, nobody's (the wire then writes the instance's own), or a fixed one.
    """

    __slots__ = ("_host", "_request", "_response", "inner")

    def __init__(self, inner: GatewayService, route: Route) -> None:
        self.inner = inner
        self._host = route.host
        to_service, to_client = route.config.request_headers, route.config.response_headers
        self._request = None if to_service is None else HeaderOps(to_service)
        self._response = None if to_client is None else HeaderOps(to_client)

    @staticmethod
    def used_by(route: Route) -> bool:
        """Whether there is anything to do for requests of `route`."""
        config = route.config
        return not (route.host is True and config.request_headers is None and config.response_headers is None)

    async def __call__(self, request: Exchange) -> Response:
        if self._host is not True:
            headers = [header for header in request.headers if header[0] != b"host"]
            if self._host:
                headers.insert(0, (b"host", self._host))
            request.headers = headers
        if self._request is not None:
            request.headers = self._request(request.headers, request)
        response = await self.inner(request)
        if self._response is not None:
            response.headers = self._response(response.headers, request)
        return response
