"""A response body that is stored while it goes to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.flight import Landing

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.engine import CacheEngine
    from fastapi_mesh.api_gateway.cache.flight import Flight
    from fastapi_mesh.api_gateway.cache.key import Key
    from fastapi_mesh.api_gateway.cache.storing import Plan
    from fastapi_mesh.core.message import Response


class Recording:
    """The body of `response`, part by part as it comes (a `BodySource`).

    When the last part has come, the entry is stored, and only then is that part passed on: whoever has seen the end of
    an answer finds it in the cache. What is longer than `limit` bytes, broken off or given up is not stored at all. The
    flight lands in every case, at the latest when the response is closed.
    """

    __slots__ = ("_engine", "_flight", "_key", "_limit", "_parts", "_plan", "_response", "_size")

    def __init__(
        self, response: Response, key: Key, plan: Plan, engine: CacheEngine, flight: Flight | None, limit: int
    ) -> None:
        self._response = response
        self._key = key
        self._plan = plan
        self._engine = engine
        self._flight = flight
        self._limit = limit
        self._parts: list[bytes] | None = []
        self._size = 0

    @property
    def at_end(self) -> bool:
        return self._response.at_end and self._parts is None

    async def read(self) -> bytes:
        try:
            data = await self._response.read()
            if self._parts is not None:
                self._size += len(data)
                if self._size > self._limit:
                    self._give_up(Landing.UNSHARED)
                else:
                    self._parts.append(data)
                    if self._response.at_end:
                        await self.complete()
        except BaseException:
            self._give_up(Landing.LOST)
            raise
        return data

    async def complete(self) -> None:
        """Everything is here: store it."""
        parts, self._parts = self._parts or [], None
        entry = self._plan.entry(b"".join(parts))
        stored = await self._engine.store.put(self._key, entry)
        if stored and self._engine.meter is not None:
            self._engine.meter.stored(entry.size)
        if self._flight is not None:
            self._flight.land(Landing.STORED if stored else Landing.LATE)

    async def aclose(self) -> None:
        self._give_up(Landing.LOST)
        await self._response.aclose()

    def _give_up(self, how: Landing) -> None:
        self._parts = None
        if self._flight is not None:
            self._flight.land(how)
