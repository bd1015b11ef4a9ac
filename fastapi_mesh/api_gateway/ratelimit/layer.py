"""A layer that refuses requests over their rate limits with 429, and tells clients how they stand (X-25, B13).

A request counts in all windows of all its limits or in none, so a refused one costs nothing. What was counted stays
counted: also when the client goes away or the service fails, for the work was asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol

from fastapi_mesh.api_gateway.problems import GatewayRefusalError
from fastapi_mesh.api_gateway.ratelimit.headers import NAMES, shown_rate, standing_headers
from fastapi_mesh.wire.redis import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.ratelimit.engine import RateLimitEngine
    from fastapi_mesh.api_gateway.ratelimit.limits import Limit
    from fastapi_mesh.api_gateway.ratelimit.windows import Charge, Verdict
    from fastapi_mesh.core.message import Header, Response


class RateLimitedError(GatewayRefusalError):
    """A rate limit is used up."""

    status: ClassVar[int] = 429
    reason: ClassVar[str] = "rate-limited"


class RateLimitUnavailableError(GatewayRefusalError):
    """The counts can't be had, and `on_failure` is "closed"."""

    status: ClassVar[int] = 503
    reason: ClassVar[str] = "rate-limit-unavailable"


class RateLimitMeter(Protocol):
    """Where it is counted; `observability.gateway_metrics.GatewayMetrics` is one."""

    def rate_limited(self, path: str, limit: str) -> None: ...

    def rate_limit_failed(self, outcome: str) -> None: ...


class RateLimit:
    """Counts a request in the windows of `limits`. `policy` is the constant header, None to tell clients nothing.

    `merges`: two of the windows may have one count (limits of one name, or both of the key "global"), in which a
    request counts once.
    """

    __slots__ = ("_engine", "_limits", "_merges", "_meter", "_policy", "inner")

    def __init__(
        self,
        inner: GatewayService,
        *,
        limits: tuple[Limit, ...],
        engine: RateLimitEngine,
        policy: Header | None,
        meter: RateLimitMeter | None,
        merges: bool = False,
    ) -> None:
        self.inner = inner
        self._limits = limits
        self._engine = engine
        self._policy = policy
        self._meter = meter
        self._merges = merges

    async def __call__(self, request: Exchange) -> Response:
        charges: list[Charge] = []
        for limit in self._limits:
            identity = limit.identify(request)
            if not isinstance(identity, str):
                identity = await identity
            cost = limit.cost if isinstance(limit.cost, int) else await limit.cost(request)
            if cost:
                for before, window, after in limit.windows:
                    charges.append((before + identity + after, window, cost))
        if not charges:
            return await self.inner(request)
        if self._merges:
            charges = _merged(charges)
        try:
            verdict = await self._engine.charge(charges)
        except StorageUnavailableError:
            return await self._without_storage(request, charges)
        return await self._judged(request, verdict)

    async def _judged(self, request: Exchange, verdict: Verdict) -> Response:
        if not verdict.allowed:
            raise self._refusal(request, verdict)
        response = await self.inner(request)
        if self._policy is not None:
            headers = [header for header in response.headers if header[0] not in NAMES]
            headers.append(self._policy)
            headers.extend(standing_headers(verdict))
            response.headers = headers
        return response

    def _refusal(self, request: Exchange, verdict: Verdict) -> RateLimitedError:
        if self._meter is not None:
            for name in {window.limit for window in verdict.broken}:
                self._meter.rate_limited(request.context.template, name)
        headers = () if self._policy is None else (self._policy, *standing_headers(verdict))
        rate = shown_rate(verdict.window)
        if verdict.wait == math.inf:
            return RateLimitedError(f"This request costs more than the limit of {rate} ever allows.", headers=headers)
        seconds = max(1, math.ceil(verdict.wait))
        text = f"The limit of {rate} is used up; try again in {seconds} s."
        return RateLimitedError(text, headers=headers, retry_after=seconds)

    async def _without_storage(self, request: Exchange, charges: Sequence[Charge]) -> Response:
        """Each limit has its own rule for this; the strictest that says anything counts."""
        rules = {limit.on_failure for limit in self._limits}
        rule = next(each for each in ("closed", "local", "open") if each in rules)
        if self._meter is not None:
            self._meter.rate_limit_failed(rule)
        if rule == "closed":
            raise RateLimitUnavailableError("Rate limits can't be checked at the moment.", retry_after=1)
        own = {limit.name for limit in self._limits if limit.on_failure == "local"}
        counted = [charge for charge in charges if charge[1].limit in own]
        if not counted:
            return await self.inner(request)
        return await self._judged(request, self._engine.memory.charge(counted))


def _merged(charges: Sequence[Charge]) -> list[Charge]:
    """Each count once: with the smallest amount that any limit gives it, and the largest cost."""
    found: dict[str, Charge] = {}
    for key, window, cost in charges:
        other = found.get(key)
        if other is not None:
            window = other[1] if other[1].amount <= window.amount else window
            cost = max(cost, other[2])
        found[key] = (key, window, cost)
    return list(found.values())
