"""A layer that reads a small request body whole, so that the mesh can send it a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.client import Client
from fastapi_mesh.config.policies import REPLAY_LIMIT

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.core.message import Response

WITHOUT_LIMIT = 60.0
"""Seconds for a small body to come where the policy has no timeout."""


def is_buffered(client: Client) -> bool:
    """Whether the body has a Content-Length of at most 64 KiB. Everything else streams.

    A client that says `Expect: 100-continue` waits for the service's word, so its body is not asked for beforehand.
    """
    return 0 <= client.length <= REPLAY_LIMIT and not client.expects_continue


class Buffer:
    """Reads the bodies that are buffered, within the call's timeout."""

    __slots__ = ("inner",)

    def __init__(self, inner: GatewayService) -> None:
        self.inner = inner

    async def __call__(self, request: Exchange) -> Response:
        body = request.body
        if isinstance(body, Client) and is_buffered(body):
            request.body = await body.read_all(request.context.policy.timeout or WITHOUT_LIMIT)
        return await self.inner(request)
