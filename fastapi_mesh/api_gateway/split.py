"""A layer that decides which service answers: a canary for some, a weighted share for the others."""

from __future__ import annotations

import random
from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.conditions import Carries, cookies_of

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.config.edge.traffic import CanaryRule, SplitPolicy
    from fastapi_mesh.core.message import Header, Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

_TICKET_BYTES = 8
_TICKET_RANGE = float(1 << 8 * _TICKET_BYTES)


class Shares:
    """A weighted choice by a number from 0 to 1.

    The services keep their order, so a growing share takes only from its neighbours: whoever had the new version at
    10 % still has it at 20 % if it stands first or last.
    """

    __slots__ = ("_bounds", "_services")

    def __init__(self, policy: SplitPolicy) -> None:
        shares = [(service, weight) for service, weight in policy.services.items() if weight > 0]
        total = sum(weight for _, weight in shares)
        self._services = [service for service, _ in shares]
        self._bounds = list(accumulate(weight / total for _, weight in shares[:-1]))

    def pick(self, number: float) -> str:
        """The service at `number`, which is at least 0 and below 1."""
        return self._services[bisect_right(self._bounds, number)]


class Split:
    """Chooses among the services of a route; the first canary rule that matches decides, else the split.

    It sits outside of the cache, so that no version's answer is given to a client of another. A sticky cookie holds a
    random number, not a service: it says nothing of what is behind the gateway, and whoever makes one up chooses a
    share at random.
    """

    __slots__ = ("_canaries", "_draw", "_mesh", "_policy", "_shares", "inner")

    def __init__(
        self,
        inner: GatewayService,
        policy: SplitPolicy | None,
        canaries: tuple[CanaryRule, ...],
        mesh: ServiceMesh,
        draw: random.Random | None = None,
    ) -> None:
        self.inner = inner
        self._policy = policy
        self._shares = None if policy is None else Shares(policy)
        self._canaries = tuple((Carries(rule.headers, rule.cookies), rule.service) for rule in canaries)
        self._mesh = mesh
        self._draw = draw or random.SystemRandom()

    async def __call__(self, request: Exchange) -> Response:
        for carries, service in self._canaries:
            if carries(request.headers):
                self._send_to(request, service)
                return await self.inner(request)
        if self._shares is None or self._policy is None:
            return await self.inner(request)
        number, cookie = self._number(request, self._policy)
        self._send_to(request, self._shares.pick(number))
        response = await self.inner(request)
        if cookie is not None:
            response.headers.append(cookie)
        return response

    def _number(self, request: Exchange, policy: SplitPolicy) -> tuple[float, Header | None]:
        """Where in the shares this request belongs, and the cookie that makes it stay there."""
        if policy.sticky_header is not None:
            wanted = policy.sticky_header.lower().encode()
            for name, value in request.headers:
                if name == wanted:
                    return _fraction(blake2b(value, digest_size=_TICKET_BYTES).digest()), None
        if policy.sticky_cookie is None:
            return self._draw.random(), None
        wanted = policy.sticky_cookie.encode()
        for name, value in cookies_of(request.headers):
            if name == wanted and (ticket := _ticket(value)) is not None:
                return _fraction(ticket), None
        ticket = self._draw.randbytes(_TICKET_BYTES)
        return _fraction(ticket), _set_cookie(policy, ticket, secure=request.origin.scheme == "https")

    def _send_to(self, request: Exchange, service: str) -> None:
        if service == request.service:
            return
        context, route = request.context, request.route
        policy, streaming = route.policies[service]
        context.policy = streaming if context.policy is route.streaming else policy
        context.state = self._mesh.states.get(service)
        request.service = service


def _fraction(ticket: bytes) -> float:
    return min(int.from_bytes(ticket, "big") / _TICKET_RANGE, 1 - 2**-53)


def _ticket(value: bytes) -> bytes | None:
    """The ticket in a cookie, None where it is not one of ours."""
    try:
        ticket = bytes.fromhex(value.decode("ascii"))
    except ValueError:
        return None
    return ticket if len(ticket) == _TICKET_BYTES else None


def _set_cookie(policy: SplitPolicy, ticket: bytes, *, secure: bool) -> Header:
    text = (
        f"{policy.sticky_cookie}={ticket.hex()}; Path=/; Max-Age={int(policy.cookie_max_age)}; HttpOnly; SameSite=Lax"
    )
    return b"set-cookie", (f"{text}; Secure" if secure else text).encode()
