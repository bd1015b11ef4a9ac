"""A pytest plugin that runs the tests of `httpx` on httpx2, with every AsyncClient going through a mesh.

`nox -s httpx -- CHECKOUT` runs them. Nothing of theirs is in this repository. httpx2 is httpx under another name, so
the tests find it as `httpx`; a client that a test gives a transport of its own keeps that.
"""

from __future__ import annotations

import sys

import httpx2
import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.wire.http import MeshTransport

for name, module in list(sys.modules.items()):
    if name == "httpx2" or name.startswith("httpx2."):
        sys.modules["httpx" + name.removeprefix("httpx2")] = module

SERVICE = "target"
NAMES = "httpx2 names itself, and codecs, in its own way; fails without us too"
TIMEOUTS = "a timeout is a MeshError and a TimeoutError, not httpx2's (A3); there is no pool of this client to wait for"
DIFFERENT = {
    "test_async_client.py::test_server_extensions": "an answer does not say its `http_version`",
    "test_timeouts.py::test_read_timeout": TIMEOUTS,
    "test_timeouts.py::test_write_timeout": TIMEOUTS,
    "test_timeouts.py::test_connect_timeout": TIMEOUTS,
    "test_timeouts.py::test_pool_timeout": TIMEOUTS,
    "test_timeouts.py::test_async_client_new_request_send_timeout": TIMEOUTS,
    "test_client.py::test_raw_client_header": NAMES,
    "test_client.py::test_client_decode_text_using_": NAMES,
    "test_event_hooks.py": NAMES,
    "test_headers.py::test_client_header": NAMES,
    "test_headers.py::test_header_merge_conflicting_headers": NAMES,
    "test_headers.py::test_header_update": NAMES,
    "test_headers.py::test_host_with_": NAMES,
    "test_asgi.py::test_asgi_headers": NAMES,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expect the differences above, and leave trio out: the mesh runs on asyncio."""
    ours, others = [], []
    for item in items:
        (others if "[trio" in item.name else ours).append(item)
        for name, reason in DIFFERENT.items():
            if name in item.nodeid:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
    items[:] = ours
    config.hook.pytest_deselected(items=others)


class AnyHostTransport(httpx2.AsyncBaseTransport):
    """Takes each host and port for a service of one instance. Each has a mesh, opened when it is first asked."""

    def __init__(self) -> None:
        self._meshes: dict[str, ServiceMesh] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx2.UnsupportedProtocol("a service is called over http or https")
        mesh = await self._mesh(f"{url.scheme}://{url.netloc.decode('ascii')}")
        inner = MeshTransport(
            mesh.send, lambda name, template: mesh.new_context(name, template=template), service=SERVICE
        )
        request.url = url.copy_with(host=SERVICE, port=None)  # to the mesh a host is a service; `Host` stays what it is
        try:
            return await inner.handle_async_request(request)
        finally:
            request.url = url

    async def _mesh(self, origin: str) -> ServiceMesh:
        if origin not in self._meshes:
            mesh = ServiceMesh("httpx-tests", services={SERVICE: origin}, discovery_backend="static")
            self._meshes[origin] = await mesh.__aenter__()
        return self._meshes[origin]

    async def aclose(self) -> None:
        for mesh in self._meshes.values():
            await mesh.__aexit__(None, None, None)


def _init_transport(self: httpx2.AsyncClient, *args: object, transport: object = None, **kwargs: object) -> object:
    return AnyHostTransport() if transport is None else transport


httpx2.AsyncClient._init_transport = _init_transport
