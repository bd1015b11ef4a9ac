"""Gateways for tests that need a process of their own: an ASGI application, one included in an app, one that serves."""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI

from fastapi_mesh.api_gateway import APIGateway

gateway = APIGateway(
    "127.0.0.1",
    int(os.environ.get("WS_PORT", "0")),
    services={"up": os.environ.get("WS_UPSTREAM", "http://127.0.0.1:9")},
)
gateway.configure_routes([{"path": "/api/*", "service": "up"}])

app = FastAPI()
app.include_router(gateway.router)

if __name__ == "__main__":
    asyncio.run(gateway.start())
