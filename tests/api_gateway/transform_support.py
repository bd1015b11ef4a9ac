"""What the transformers' tests share: a service that says what it got, and a client of a gateway in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from fastapi_mesh.api_gateway import APIGateway


class Echo:
    """An ASGI application: answers with what it got as JSON, or with `status`, `headers` and `body`."""

    def __init__(self, body: bytes | None = None, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.status = status
        self.headers = headers or {}
        self.body = body
        self.requests: list[dict[str, object]] = []

    @property
    def last(self) -> dict[str, object]:
        return self.requests[-1]

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests.append(
            {
                "method": scope["method"],
                "path": scope["raw_path"].decode(),
                "query": scope["query_string"].decode(),
                "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
                "body": body,
            }
        )
        said = {**self.requests[-1], "body": body.decode("latin-1")}
        content = json.dumps(said).encode() if self.body is None else self.body
        headers = {"content-type": "application/json", "content-length": str(len(content)), **self.headers}
        fields = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": fields})
        sent = b"" if scope["method"] == "HEAD" else content
        await send({"type": "http.response.body", "body": sent})

    def header(self, name: str) -> str | None:
        """The value of a header of the last request."""
        values = [value for each, value in self.last["headers"] if each == name]  # type: ignore[attr-defined]
        assert len(values) <= 1, values
        return values[0] if values else None


def new_gateway(
    service: object,
    request: object = None,
    response: object = None,
    *,
    route: dict[str, object] | None = None,
    **options: object,
) -> APIGateway:
    gateway = APIGateway(services={"up": service}, **options)  # type: ignore[dict-item]
    gateway.configure_routes([{"path": "/api/*", "service": "up", **(route or {})}])
    if request is not None or response is not None:
        gateway.add_transformers(request, response)
    return gateway


@asynccontextmanager
async def client_of(gateway: APIGateway) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=gateway, client=("192.0.2.7", 1234))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        try:
            yield client
        finally:
            await gateway.aclose()
