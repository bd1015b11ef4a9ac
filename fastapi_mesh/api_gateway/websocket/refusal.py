"""The refusal of a WebSocket's handshake: an HTTP answer where the server can send one, else a close code."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.websocket.closes import of_refusal
from fastapi_mesh.core.problem import document
from fastapi_mesh.exceptions import ServiceUnavailableError

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Message, Send
    from fastapi_mesh.core.message import Header, Response

EXTENSION = "websocket.http.response"
"""ASGI's Websocket Denial Response, which uvicorn, hypercorn and granian have."""
MAX_BODY = 64 * 1024
BODY_TIMEOUT = 5.0
_STATUSES = frozenset(status.value for status in HTTPStatus)
_OF_THE_BODY = frozenset({b"content-length", b"content-type", b"content-encoding", b"content-range", b"etag"})


async def send_refusal(scope: Message, send: Send, response: Response) -> None:
    """Answer the handshake with `response`; its body is passed on complete, or not at all."""
    if EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": of_refusal(response.status)})
        return
    status = response.status
    if status not in _STATUSES:
        status = (
            status // 100 * 100
        )  # what it stands for (RFC 9110 section 15); one of uvicorn's protocols knows no other
    headers, body = await _complete(response)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _complete(response: Response) -> tuple[list[Header], bytes]:
    """Headers and body: those servers collect it, so one that is long, endless or broken is replaced."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return response.headers, await response.read_all(MAX_BODY)
    except (ValueError, TimeoutError, ServiceUnavailableError):
        await response.aclose()
    kept = [header for header in response.headers if header[0] not in _OF_THE_BODY]
    _, headers, body = document(
        response.status, "invalid-response", "the service refused the handshake with an answer that can't be passed on"
    )
    return [*kept, *headers], body
