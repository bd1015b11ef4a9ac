"""The address under which a client knows the gateway, as far as trusted proxies and its request say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import check_host
from fastapi_mesh.api_gateway.target import strip
from fastapi_mesh.config.edge.login import is_local
from fastapi_mesh.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def origin_of(request: Exchange) -> str:
    """The origin of the gateway as the browser knows it, as browsers write it: no default port, lower case."""
    host = _host(request).decode("latin-1").lower()
    scheme = request.origin.scheme
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS[scheme])}"


def prefix_of(request: Exchange) -> str:
    """What stands before the gateway's paths: its own prefix, and that of trusted proxies; "" for nothing."""
    said = next((value for name, value in request.headers if name == b"x-forwarded-prefix"), b"")
    cut = strip(request.path, request.route.strip)[0] if request.route.strip else b""
    if cut and said.endswith(cut):
        said = said[: -len(cut)]
    prefix = said.decode("latin-1").rstrip("/")
    return prefix if is_local(prefix) and "?" not in prefix else ""


def _host(request: Exchange) -> bytes:
    """The host of a trusted proxy's `X-Forwarded-Host`, which `forwarded` has set, else our own."""
    said = next((value for name, value in request.headers if name == b"x-forwarded-host"), request.host)
    try:
        check_host(said)
    except InvalidRequestError:
        return request.host
    return said
