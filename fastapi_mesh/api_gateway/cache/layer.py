"""A layer that answers from the gateway's shared cache (RFC 9111), and fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache import status
from fastapi_mesh.api_gateway.cache.asked import Asked, kinds_of
from fastapi_mesh.api_gateway.cache.fetch import Fetch
from fastapi_mesh.api_gateway.cache.flight import Landing
from fastapi_mesh.api_gateway.cache.key import key_of, route_mark
from fastapi_mesh.api_gateway.cache.serving import Verdict, judge
from fastapi_mesh.api_gateway.cache.vary import Selecting
from fastapi_mesh.api_gateway.cache.visit import STATUS, OnlyIfCachedError, Visit, answer, outgoing

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.engine import CacheEngine
    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.store import Found
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.config.edge.cache import CachePolicy
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.core.tasks import Supervisor


class Cache:
    """Looks up GET and HEAD, and lets everything else pass.

    1. is it a request for a cache at all                                   `asked`
    2. whose answers may it get, and where are they                         `key`, the store
    3. may what was found be served                                         `serving`
    4. if not: is somebody fetching it already                              `flight`
    5. ask the service, validate or store while it streams                  `fetch`, `recording`

    A hit holds nothing of the mesh: no instance, no connection.
    """

    __slots__ = ("_engine", "_fetch", "_kinds", "_mark", "_name", "_policy", "inner")

    def __init__(
        self,
        inner: GatewayService,
        route: Route,
        engine: CacheEngine,
        policy: CachePolicy,
        *,
        name: bytes,
        supervisor: Supervisor,
    ) -> None:
        """`name` is what this cache is called in Cache-Status."""
        self.inner = inner
        self._engine = engine
        self._policy = policy
        self._name = name
        self._mark = route_mark(route)
        self._kinds = kinds_of(policy.credentials, cookies=policy.sharing == "strict")
        self._fetch = Fetch(inner, engine, policy, name=name, supervisor=supervisor)

    async def __call__(self, request: Exchange) -> Response:
        method = request.method
        if method != b"GET" and method != b"HEAD":
            return await self._pass(request, "method", "")
        asked = Asked(request.headers, self._kinds, obeys=self._policy.obey_clients)
        if asked.bypass or request.body != b"":
            return await self._pass(request, "bypass", asked.bypass or "body")
        visit = Visit(request, asked, key_of(request, asked, self._mark), Selecting(request.headers))
        engine = self._engine
        found = await engine.store.find(visit.key, visit.selecting)
        if found is None:
            return await self._pass(request, "bypass", "store-away")
        served = self._serve(visit, found)
        return await self._ask(visit, found) if served is None else served

    def _serve(self, visit: Visit, found: Found, *, waited: bool = False) -> Response | None:
        """The answer that is there, None where the service must be asked."""
        entry = found.entry
        if entry is None:
            return None
        now = self._engine.clock()
        verdict = judge(entry, visit.asked, now)
        if verdict is Verdict.ASK:
            return None
        if verdict is Verdict.REFRESH:
            self._fetch.refresh(visit, found)
        if self._engine.meter is not None:
            self._engine.meter.result(visit.request.context.template, "hit" if verdict is Verdict.FRESH else "stale")
        text = self._hit(visit, entry, now, verdict, waited=waited) if self._policy.status_header else None
        return answer(entry, visit, now, keep_date=self._policy.keep_date, status=text)

    def _hit(self, visit: Visit, entry: Entry, now: float, verdict: Verdict, *, waited: bool) -> bytes:
        detail = "" if verdict is Verdict.FRESH else verdict.value
        return status.hit(self._name, entry.lifetime - entry.age(now), visit.key.place, detail or "collapsed" * waited)

    async def _ask(self, visit: Visit, found: Found) -> Response:
        """Nothing that may be served: wait for somebody who is at it, or ask the service."""
        control = visit.asked.control
        if "only-if-cached" in control:
            raise OnlyIfCachedError("The cache has no answer that may be given for this request.")
        alone = visit.request.method != b"GET" or "no-cache" in control or "no-store" in control
        if alone or not self._policy.lock_timeout or (found.entry is None and visit.asked.partial):
            return await self._fetch(visit, found, None)
        return await self._together(visit, found)

    async def _together(self, visit: Visit, found: Found) -> Response:
        """One request for the same answer goes on, the others wait for it, at most `lock_timeout` seconds."""
        flights, store = self._engine.flights, self._engine.store
        clock = flights.clock
        end = clock() + self._policy.lock_timeout
        before: object = None
        while True:
            wanted = (visit.key.place, visit.key.own, visit.selecting.selectors(found.varies))
            if wanted == before:  # it was stored, and is still not for us
                return await self._fetch(visit, found, None)
            flight = flights.start(wanted)
            running = None if flight is not None else flights.running(wanted)
            if running is None:
                return await self._fetch(visit, found, flight)
            landing = await flights.wait(running, max(0.0, end - clock()))
            if landing is Landing.UNSHARED or landing is Landing.LATE:
                return await self._fetch(visit, found, None)
            before = wanted if landing is Landing.STORED else None
            again = await store.find(visit.key, visit.selecting)
            if again is None:
                return await self._pass(visit.request, "bypass", "store-away")
            found = again
            served = self._serve(visit, found, waited=True)
            if served is not None:
                return served

    async def _pass(self, request: Exchange, why: str, detail: str) -> Response:
        """Neither look up nor store."""
        response = await self.inner(request)
        response.headers = outgoing(response.headers, keep_date=self._policy.keep_date)
        if self._policy.status_header:
            response.headers.append((STATUS, status.forwarded(self._name, why, detail=detail)))
        if self._engine.meter is not None and why == "bypass":
            self._engine.meter.result(request.context.template, "bypass")
        return response
