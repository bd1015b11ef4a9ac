"""A chat behind a gateway: two instances, a WebSocket through each, close codes of both sides, and a refusal.

Run it: python examples/gateway_websocket.py (needs the extras `server` and `ws`)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
import websockets
from fastapi import FastAPI, WebSocket

from fastapi_mesh import APIGateway


def chat(name: str) -> FastAPI:
    """An instance that says who it is."""
    app = FastAPI()

    @app.websocket("/api/chat/{room}")
    async def talk(client: WebSocket, room: str) -> None:
        await client.accept(subprotocol="chat.v1")
        async for text in client.iter_text():
            if text == "bye":
                await client.close(4000, f"{name} says goodbye")
                return
            await client.send_text(f"{name}, {room}: {text}")

    return app


@contextlib.asynccontextmanager
async def serving(app: object) -> AsyncIterator[int]:
    """Serve an application in this event loop; gives its port. (You would run it by `uvicorn module:app`.)"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", proxy_headers=False))  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
            server.should_exit = True


async def main() -> None:
    async with serving(chat("one")) as first, serving(chat("two")) as second:
        gateway = APIGateway(services={"chat": [f"http://127.0.0.1:{port}" for port in (first, second)]})
        gateway.configure_routes(
            [
                {"path": "/api/chat/private", "service": "chat", "websocket": False},
                {"path": "/api/chat/{room}", "service": "chat", "websocket": {"max_message": 1000}},
            ]
        )
        async with serving(gateway) as port:
            url = f"ws://127.0.0.1:{port}/api/chat"
            offered = ["chat.v2", "chat.v1"]
            async with websockets.connect(f"{url}/trains", subprotocols=offered) as client:
                print("subprotocol:", client.subprotocol)
                await client.send("hello")
                print(await client.recv())
                async with websockets.connect(f"{url}/boats", subprotocols=offered) as other:
                    await other.send("ahoy")
                    print(await other.recv())
                    await other.send("x" * 1001)
                    await other.wait_closed()
                    print("closed:", other.close_code, other.close_reason)
                await client.send("bye")
                await client.wait_closed()
                print("closed:", client.close_code, client.close_reason)
            try:
                await websockets.connect(f"{url}/private")
            except websockets.InvalidStatus as refused:
                print("refused:", refused.response.status_code, refused.response.headers["x-mesh-reason"])


if __name__ == "__main__":
    asyncio.run(main())
