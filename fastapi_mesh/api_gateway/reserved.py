"""The paths that a standalone gateway answers itself, before its routes: health and metrics (DESIGN: B40)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import CLOSE, expects_continue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_mesh.core.instance import Message, Send
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

    Page = Callable[[str], Awaitable[tuple[int, bytes, bytes]]]
    Answer = Callable[[ServiceMesh, str], Awaitable[tuple[int, bytes, bytes]]]

JSON = b"application/json"


async def _live(mesh: ServiceMesh, accept: str) -> tuple[int, bytes, bytes]:
    return 200, JSON, mesh.health.live().as_json()


async def _ready(mesh: ServiceMesh, accept: str) -> tuple[int, bytes, bytes]:
    report = await mesh.life.readiness()
    return report.http_status, JSON, report.as_json()


async def _health(mesh: ServiceMesh, accept: str) -> tuple[int, bytes, bytes]:
    report = await mesh.life.health()
    return report.http_status, JSON, report.as_json()


async def _metrics(mesh: ServiceMesh, accept: str) -> tuple[int, bytes, bytes]:
    assert mesh.metrics is not None, "the path is reserved only where there are metrics"
    body, content_type = mesh.metrics.render(accept)
    return 200, content_type.encode(), body


def reserved_paths(mesh: ServiceMesh, *, metrics: bool) -> dict[str, Answer]:
    """Path to what answers there."""
    health = mesh.config.health_path
    found: dict[str, Answer] = {health: _health, f"{health}/live": _live, f"{health}/ready": _ready}
    if metrics and mesh.metrics is not None:
        found[mesh.config.metrics_path] = _metrics
    return found


async def serve(answer: Answer, mesh: ServiceMesh, scope: Message, send: Send) -> None:
    """Answer GET and HEAD with what `answer` gives; another method is a 405."""
    await respond(partial(answer, mesh), scope, send)


async def respond(answer: Page, scope: Message, send: Send) -> None:
    """The same for an answer that needs no mesh."""
    headers = [(b"cache-control", b"no-store")]
    status, content_type, body = 405, b"text/plain", b""
    if scope["method"] in ("GET", "HEAD"):
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        status, content_type, body = await answer(accept)
    else:
        headers.append((b"allow", b"GET, HEAD"))
    if expects_continue(scope["headers"]):
        headers.append(CLOSE)
    headers += [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
