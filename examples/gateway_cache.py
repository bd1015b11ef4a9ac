"""A gateway that keeps answers: fresh ones, one for each user, changes that are seen, and a service that is gone.

    python examples/gateway_cache.py [redis://127.0.0.1:6379/0]

With the address of a Redis, answers are kept there, for all gateways that share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from fastapi import FastAPI, Header, Response

from fastapi_mesh import APIGateway

books = FastAPI()
prices = {7: 12}
asked = 0


@books.get("/books/{number}")
async def book(number: int, response: Response) -> dict[str, int]:
    """The same for everybody, and good for ten minutes; an old price is better than none."""
    global asked  # noqa: PLW0603  # an example's count of how often the service was asked
    asked += 1
    response.headers["Cache-Control"] = "public, max-age=600, stale-if-error=3600"
    return {"price": prices[number], "read": asked}


@books.put("/books/{number}")
async def change(number: int, price: int) -> None:
    prices[number] = price


@books.get("/basket")
async def basket(cookie: str = Header()) -> dict[str, str]:
    """A service that forgets to say that this is for one user alone."""
    return {"basket of": cookie}


def new_gateway(url: str, backend: str) -> APIGateway:
    gateway = APIGateway(services={"books": url}, cache={"backend": backend, "namespace": "books-example"})
    gateway.configure_routes(
        [
            {"path": "/books/*", "service": "books", "cache": True},
            {"path": "/basket", "service": "books", "cache_ttl": 60},
        ]
    )
    return gateway


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Run `app` on a free port of this machine; gives its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True


async def show(client: httpx2.AsyncClient, what: str, path: str, **headers: str) -> None:
    response = await client.get(path, headers=headers)
    cache = response.headers.get("cache-status", "").split("; ")[1]
    print(f"{what}: {response.text} (cache: {cache})")


async def main(backend: str) -> None:
    async with contextlib.AsyncExitStack() as open_gateway:
        async with served(books) as url:
            gateway = new_gateway(url, backend)
            await open_gateway.enter_async_context(gateway.opened({}))
            await gateway.cache.purge(everything=True)
            transport = httpx2.ASGITransport(gateway)
            client = await open_gateway.enter_async_context(
                httpx2.AsyncClient(transport=transport, base_url="http://shop")
            )
            await show(client, "a book", "/books/7")
            await show(client, "again", "/books/7")
            await show(client, "by another user", "/books/7", cookie="ben")

            await client.put("/books/7?price=9")
            await show(client, "after its price was changed", "/books/7")

            await show(client, "ana", "/basket", cookie="ana")
            await show(client, "ana", "/basket", cookie="ana")
            await show(client, "ben", "/basket", cookie="ben")
        await show(client, "with the service gone", "/books/7", **{"cache-control": "max-age=0"})
        await gateway.cache.purge(prefix="/books")
        response = await client.get("/books/7")
        print(f"and purged: {response.status_code} {response.headers['x-mesh-reason']}")


if __name__ == "__main__":
    logging.getLogger("fastapi_mesh").setLevel(logging.ERROR)  # that a service is gone is no news here
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory"))
