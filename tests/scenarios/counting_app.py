"""An instance that writes down the id of each request it executes; started by the scenarios on a fixed port.

GET /item?size=N answers N bytes, POST /order executes one order, GET /blob streams SIZE bytes, PUT /blob counts what it
gets. The journal is one file per process, appended to with single writes, so a kill can't tear a line.
"""

from __future__ import annotations

import asyncio
import os
from urllib.parse import parse_qs

JOURNAL = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
CHUNK = b"\xa5" * 65536


async def app(scope, receive, send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    query = parse_qs(scope["query_string"].decode())
    match scope["method"], scope["path"]:
        case "GET", "/health":
            await answer(send, b"ok")
        case "GET", "/item":
            await answer(send, b"i" * int(query["size"][0]))
        case "POST", "/order":
            body = await read(receive)
            os.write(JOURNAL, query["id"][0].encode() + b"\n")
            await answer(send, body)
        case "GET", "/blob":
            await blob(send, int(query["size"][0]))
        case "PUT", "/blob":
            await answer(send, str(await count(receive, float(query.get("pause", ["0"])[0]))).encode())
        case _:
            await answer(send, b"nothing here", 404)


async def read(receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def count(receive, pause: float) -> int:
    """Bytes of the request's body, read as slowly as `pause` says (seconds after each 8 MiB)."""
    total, mark = 0, 0
    while True:
        message = await receive()
        total += len(message.get("body", b""))
        if pause and total - mark > 8 << 20:
            mark = total
            await asyncio.sleep(pause)
        if not message.get("more_body"):
            return total


async def blob(send, size: int) -> None:
    headers = [(b"content-length", str(size).encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while size > 0:
        part = CHUNK[: min(size, len(CHUNK))]
        size -= len(part)
        await send({"type": "http.response.body", "body": part, "more_body": size > 0})


async def answer(send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"x-instance", os.environ["INSTANCE"].encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
