"""A node with an endless event stream and a slow download; `gateway` is a gateway over the instance UPSTREAM names."""

import asyncio
import os

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_mesh import APIGateway, ServiceMeshMiddleware

app = FastAPI()
app.add_middleware(ServiceMeshMiddleware, service_name="streams", enable_service_discovery=False)


@app.get("/events")
async def events() -> StreamingResponse:
    async def endless():
        while True:
            yield b"data: tick\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(endless(), media_type="text/event-stream")


@app.get("/download")
async def download() -> StreamingResponse:
    async def slow():
        for _ in range(20):
            yield b"x" * 1000
            await asyncio.sleep(0.05)

    return StreamingResponse(slow(), headers={"content-length": "20000"}, media_type="application/octet-stream")


gateway = APIGateway(services={"streams": os.environ.get("UPSTREAM", "http://127.0.0.1:1")})
gateway.configure_routes([{"path": "/*", "service": "streams"}])
