"""`get_client`: an httpx2.AsyncClient whose transport is the mesh. Imported late, because httpx2 costs 0.17 s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.wire.http import EXTENSION, Answer, MeshTransport, new_client

if TYPE_CHECKING:
    import httpx2

    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh


def new_mesh_client(mesh: ServiceMesh, service: str) -> httpx2.AsyncClient:
    """A client for `service`; see `ServiceMesh.get_client`."""

    async def send(request: Request) -> Response:
        return await mesh.send(request)

    def new_context(name: str, template: str) -> CallContext:
        return mesh.new_context(name, template=template)

    return new_client(MeshTransport(send, new_context, service=service), f"http://{service}")


def as_httpx(response: Response, content: bytes, context: CallContext) -> httpx2.Response:
    """The answer of a finished call as what httpx2 users know; `content` is its body, decoded by httpx2."""
    mark = {"record": context.record, "attempts": context.attempt, "service": context.state.name}
    return Answer(response.status, headers=response.headers, content=content, extensions={EXTENSION: mark})
