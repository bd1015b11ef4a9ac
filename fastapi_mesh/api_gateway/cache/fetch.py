"""Asking the service: for a new answer, whether a stored one still holds, and what to do when it fails."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache import status
from fastapi_mesh.api_gateway.cache.flight import Landing
from fastapi_mesh.api_gateway.cache.freshness import first, values
from fastapi_mesh.api_gateway.cache.recording import Recording
from fastapi_mesh.api_gateway.cache.serving import CONDITIONS, confirms, may_replace_error, merged, validating
from fastapi_mesh.api_gateway.cache.storing import Asker, Received, plan
from fastapi_mesh.api_gateway.cache.visit import DATE, STATUS, again, answer, outgoing
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.engine import CacheEngine
    from fastapi_mesh.api_gateway.cache.entry import Entry
    from fastapi_mesh.api_gateway.cache.flight import Flight
    from fastapi_mesh.api_gateway.cache.store import Found
    from fastapi_mesh.api_gateway.cache.storing import Plan
    from fastapi_mesh.api_gateway.cache.visit import Visit
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.config.edge.cache import CachePolicy
    from fastapi_mesh.core.tasks import Supervisor

logger = logging.getLogger("fastapi_mesh.gateway")

ERRORS = frozenset({500, 502, 503, 504})
"""Answers of a service that `stale-if-error` is about (RFC 5861 section 4)."""
CLAIM = 30.0
"""Seconds for which no other process refreshes the same answer."""


class Fetch:
    """Calls the layers inside for a `Visit`, and stores what may be stored."""

    __slots__ = ("_engine", "_name", "_policy", "_supervisor", "inner")

    def __init__(
        self, inner: GatewayService, engine: CacheEngine, policy: CachePolicy, *, name: bytes, supervisor: Supervisor
    ) -> None:
        self.inner = inner
        self._engine = engine
        self._policy = policy
        self._name = name
        self._supervisor = supervisor

    async def __call__(self, visit: Visit, found: Found, flight: Flight | None) -> Response:
        """The answer to a request that the cache has none for; `found` is what it has. `flight` lands in any case, at
        the latest when the response is closed.
        """
        try:
            return await self._fetch(visit, found, flight)
        except BaseException:
            _land(flight, Landing.LOST)
            raise

    def refresh(self, visit: Visit, found: Found) -> None:
        """Get a new answer in the background (stale-while-revalidate), unless that is under way."""
        entry = found.entry
        assert entry is not None, "only what is there is refreshed"
        flight = self._engine.flights.start((visit.key.place, entry.partition, entry.selectors), doubted=False)
        if flight is None:
            return
        try:
            self._supervisor.start(self._refresh(visit.again(), found, entry, flight), name="gateway-cache-refresh")
        except RuntimeError:  # this process ends
            flight.land(Landing.LOST)

    async def _refresh(self, visit: Visit, found: Found, entry: Entry, flight: Flight) -> None:
        try:
            if not await self._engine.store.claim(visit.key, entry, CLAIM):
                return
            response = await self(visit, found, flight)
            try:
                while await response.read():
                    pass
            finally:
                await response.aclose()
        except MeshError as error:
            logger.debug("refreshing %s in the background failed: %s", visit.key.route, error)
        finally:
            flight.land(Landing.LOST)

    async def _fetch(self, visit: Visit, found: Found, flight: Flight | None) -> Response:
        entry, request = found.entry, visit.request
        is_get = request.method == b"GET"
        now = self._engine.clock
        sent, headers = request, request.headers
        if entry is not None and is_get:
            request.headers = validating(headers, entry)
        requested = now()
        try:
            response = await self.inner(sent)
            if entry is not None and is_get and response.status == 304:
                await response.aclose()
                if confirms(response.headers, entry):
                    received = Received(entry.status, response.headers, requested, now())
                    return await self._confirmed(visit, found, entry, received, flight)
                sent = again(request)  # it is about something else, so ask for the whole
                sent.headers = [header for header in headers if header[0] not in CONDITIONS]
                requested = now()
                response = await self.inner(sent)
        except MeshError as error:
            if entry is None or error.status < 500 or not self._may_stand_in(entry, visit, self._policy.grace):
                raise
            _land(flight, Landing.LATE)
            return self._stale(visit, entry, 0)
        try:
            return await self._take(visit, found, response, requested, flight)
        except BaseException:
            await response.aclose()
            raise

    async def _take(
        self, visit: Visit, found: Found, response: Response, requested: float, flight: Flight | None
    ) -> Response:
        """An answer with a body: pass it on, and store it if it may be stored."""
        entry = found.entry
        if entry is not None and response.status in ERRORS and self._may_stand_in(entry, visit, 0.0):
            await response.aclose()
            _land(flight, Landing.LATE)
            return self._stale(visit, entry, response.status)
        received = Received(response.status, response.headers, requested, self._engine.clock())
        planned, detail = self._plan(visit, found, received)
        response.headers = outgoing(response.headers, keep_date=self._policy.keep_date)
        if planned is None:
            if entry is not None and response.status < 500 and visit.request.method == b"GET":
                await self._engine.store.remove(visit.key, entry)  # it is not the answer any more
            _land(flight, Landing.LATE if response.status >= 500 else Landing.UNSHARED)
            self._mark(response, visit, entry, detail=detail)
            return response
        recording = Recording(response, visit.key, planned, self._engine, flight, self._policy.max_object)
        answered = Response(response.status, response.headers, recording)
        if response.at_end:
            await recording.complete()
        self._mark(answered, visit, entry, stored=True)
        return answered

    def _plan(self, visit: Visit, found: Found, received: Received) -> tuple[Plan | None, str]:
        """How to store an answer, or why not as far as that is worth saying."""
        if visit.request.method != b"GET":
            return None, ""
        length = first(received.headers, b"content-length")
        if length is not None and length.isdigit() and int(length[:18]) > self._policy.max_object:
            return None, "too-large"
        if (first(received.headers, b"content-type") or b"").lower().startswith(b"text/event-stream"):
            return None, "event-stream"  # it has no end, and nobody should wait for it
        return plan(received, self._asker(visit, found), self._policy), ""

    async def _confirmed(
        self, visit: Visit, found: Found, entry: Entry, response: Received, flight: Flight | None
    ) -> Response:
        """A 304: what is stored is still the answer, with new headers and a new age."""
        headers = merged(entry, response.headers)
        if not values(response.headers, DATE):  # the old one would make it as old as before
            headers = [header for header in headers if header[0] != DATE]
        planned = plan(replace(response, headers=headers), self._asker(visit, found), self._policy)
        if planned is None or planned.partition != entry.partition or planned.selectors != entry.selectors:
            await self._engine.store.remove(visit.key, entry)
        if planned is None:
            current = replace(entry, headers=tuple(header for header in headers if header[0] != b"age"))
            _land(flight, Landing.UNSHARED)
        else:
            current = planned.entry(entry.body)
            kept = await self._engine.store.put(visit.key, current)
            _land(flight, Landing.STORED if kept else Landing.LATE)
        self._count(visit.request, "revalidated")
        text = status.forwarded(self._name, "stale", visit.key.place, status=304, stored=planned is not None)
        return self._answer(visit, current, text)

    def _asker(self, visit: Visit, found: Found) -> Asker:
        known = visit.request.principal is not None
        return Asker(visit.asked, visit.key, visit.selecting, known=known, version=found.version)

    def _may_stand_in(self, entry: Entry, visit: Visit, grace: float) -> bool:
        return may_replace_error(entry, visit.asked, self._engine.clock(), grace=grace)

    def _stale(self, visit: Visit, entry: Entry, failed: int) -> Response:
        self._count(visit.request, "stale")
        text = status.forwarded(self._name, "stale", visit.key.place, status=failed, detail="stale-if-error")
        return self._answer(visit, entry, text)

    def _answer(self, visit: Visit, entry: Entry, text: bytes) -> Response:
        policy = self._policy
        shown = text if policy.status_header else None
        return answer(entry, visit, self._engine.clock(), keep_date=policy.keep_date, status=shown)

    def _mark(
        self, response: Response, visit: Visit, entry: Entry | None, *, stored: bool = False, detail: str = ""
    ) -> None:
        """Count a miss, and say so."""
        self._count(visit.request, "miss")
        if self._policy.status_header:
            why = "uri-miss" if entry is None else "stale"
            if "no-cache" in visit.asked.control or "no-store" in visit.asked.control:
                why = "request"
            text = status.forwarded(self._name, why, visit.key.place, stored=stored, detail=detail)
            response.headers.append((STATUS, text))

    def _count(self, request: Exchange, result: str) -> None:
        meter = self._engine.meter
        if meter is not None:
            meter.result(request.context.template, result)


def _land(flight: Flight | None, how: Landing) -> None:
    if flight is not None:
        flight.land(how)
