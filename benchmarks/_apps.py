"""The ASGI applications that benchmarks/gateway.py measures; each is imported in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SECRET = "a-secret-of-the-benchmark-that-is-long-enough"
UPSTREAM = os.environ.get("BENCH_UPSTREAM", "")
BODY = os.environ.get("BENCH_BODY", "").encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def static(scope: Message, receive: Receive, send: Send) -> None:
    """The floor: an ASGI application that answers from memory."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def _guarded(*, cached: bool) -> object:
    """Authentication by JWT, two rate limits, metrics, and 1 % of traces sampled (and thrown away); also the cache."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from fastapi_mesh import APIGateway
    from fastapi_mesh.api_gateway.auth import JWTAuthProvider

    trace.set_tracer_provider(TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.01))))
    made = APIGateway(services={"upstream": UPSTREAM}, rate_limit="1000000/second;1000000000/hour")
    made.configure_auth([JWTAuthProvider(secret_key=SECRET, algorithm="HS256")])
    route: dict[str, object] = {"path": "/api/*", "service": "upstream", "auth_required": True}
    if cached:
        route |= {"cache_ttl": 3600, "cache": {"force": True, "grace": 0}}
    made.configure_routes([route])
    return made


def __getattr__(name: str) -> object:
    """Applications that need a package are made when they are asked for."""
    if name == "gateway":
        from fastapi_mesh import APIGateway

        made = APIGateway(services={"upstream": UPSTREAM})
        made.configure_routes([{"path": "/api/*", "service": "upstream"}])
        return made
    if name in ("guarded", "cached"):
        return _guarded(cached=name == "cached")
    if name == "proxy_lib":
        from fastapi_proxy_lib.fastapi.app import reverse_http_app

        return reverse_http_app(base_url=f"{UPSTREAM}/")
    raise AttributeError(name)
