"""A layer that gives clients the cookie that sticky sessions go by (`session_affinity_cookie`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastapi_mesh.balancing.hash_key import cookie_of, header_reader

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.config.balancing import BalancingPolicy
    from fastapi_mesh.core.message import Header, Response

_TICKET_BYTES = 8


class Affinity:
    """Sets it with the first answer that an instance gave, and lets that instance be picked by the same value.

    It holds a random number and no instance, so it says nothing of what is behind the gateway, is good at every
    gateway, and needn't be set anew when an instance leaves. It lasts as long as the browser's session.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: GatewayService) -> None:
        self.inner = inner

    async def __call__(self, request: Exchange) -> Response:
        context = request.context
        name = _cookie_needed(request, context.policy.balancing)
        if name is None:
            return await self.inner(request)
        ticket = os.urandom(_TICKET_BYTES).hex()
        context.affinity = ticket.encode()
        response = await self.inner(request)
        if context.instance is not None:  # else it came from the cache, or no instance was asked
            response.headers.append(_set_cookie(name, ticket, secure=request.origin.scheme == "https"))
        return response


def _cookie_needed(request: Exchange, policy: BalancingPolicy) -> str | None:
    """The name of the cookie where sticky sessions need one that this client doesn't have."""
    name, header = policy.session_affinity_cookie, policy.session_affinity_header
    if name is None or not policy.sticky_sessions or cookie_of(request, name.encode()) is not None:
        return None
    return None if header is not None and header_reader(header)(request) is not None else name


def _set_cookie(name: str, ticket: str, *, secure: bool) -> Header:
    text = f"{name}={ticket}; Path=/; HttpOnly; SameSite=Lax"
    return b"set-cookie", (f"{text}; Secure" if secure else text).encode()
