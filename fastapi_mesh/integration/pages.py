"""The pages a node answers itself where its application has none: metrics and health."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_mesh.core.message import Header
    from fastapi_mesh.health.checks import HealthReport
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

    Answer = tuple[int, list[Header], bytes]
    Page = Callable[[Scope], Awaitable[Answer]]

LIVE, READY = "/live", "/ready"


def paths_of(mesh: ServiceMesh) -> tuple[str, ...]:
    """The paths of the pages, which aren't counted as requests."""
    health = mesh.config.health_path.rstrip("/")
    return (mesh.config.metrics_path, health or "/", health + LIVE, health + READY)


class Pages:
    """Answers `/metrics`, `/health`, `/health/live` and `/health/ready` (B20, B40), or whatever the settings call them.

    `/health` runs the registered checks; `/health/ready` also says whether the mesh is ready; both are 503 while the
    node drains. `/health/live` only says that the process answers.
    """

    def __init__(self, mesh: ServiceMesh) -> None:
        self._mesh = mesh
        metrics, health, live, ready = paths_of(mesh)
        self._pages: dict[str, Page] = {health: self._health, live: self._live, ready: self._ready}
        if mesh.metrics is not None:
            self._pages[metrics] = self._metrics

    def find(self, scope: Scope) -> Page | None:
        """The page a GET or HEAD request may be for."""
        path: str = scope["path"]
        page = self._pages.get(path)
        if page is None and (root := scope.get("root_path")) and path.startswith(root):
            page = self._pages.get(path[len(root) :])  # in a mounted application the path includes the mount's
        return page if scope["method"] in ("GET", "HEAD") else None

    async def _metrics(self, scope: Scope) -> Answer:
        assert self._mesh.metrics is not None, "the page exists with metrics only"
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        body, content_type = self._mesh.metrics.render(accept.decode("latin-1"))
        return _answer(200, content_type, body)

    async def _live(self, scope: Scope) -> Answer:
        return _json(self._mesh.health.live())

    async def _health(self, scope: Scope) -> Answer:
        return _json(await self._mesh.life.health())

    async def _ready(self, scope: Scope) -> Answer:
        return _json(await self._mesh.life.readiness())


async def answer_where_missing(app: ASGIApp, scope: Scope, receive: Receive, send: Send, page: Page) -> None:
    """Ask the application; where it answers 404, answer with `page` instead. Anything else passes as it comes."""
    missing = False

    async def decide(message: Message) -> None:
        nonlocal missing
        if message["type"] == "http.response.start" and message["status"] == 404:
            missing = True
        elif not missing:
            await send(message)

    await app(scope, receive, decide)
    if missing:
        await send_answer(scope, send, await page(scope))


async def send_answer(scope: Scope, send: Send, answer: Answer) -> None:
    """Send a complete response; HEAD gets its headers only."""
    status, headers, body = answer
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _json(report: HealthReport) -> Answer:
    return _answer(report.http_status, "application/json", report.as_json())


def _answer(status: int, content_type: str, body: bytes) -> Answer:
    return (
        status,
        [
            (b"content-type", content_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ],
        body,
    )
