"""What `call_service` gives instead of an error: the last good answer, a value, a function's, another service's."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import ServiceDiscoveryError, ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.message import Header

FAILURES = (ServiceUnavailableError, ServiceDiscoveryError)
"""What a fallback is for: no usable answer. A 4xx, wrong settings and the caller's own cancellation go through."""
MOST_ANSWERS = 1000
MOST_BYTES = 16 * 1024 * 1024
LONGEST_ANSWER = 256 * 1024
"""Bytes; a longer answer isn't kept."""

Key = tuple[str, str, bytes, tuple["Header", ...]]


class NoFallback:
    """The type of NO_FALLBACK."""


NO_FALLBACK: Final = NoFallback()
"""No fallback was given: None is one."""


@dataclass(frozen=True, slots=True)
class OtherService:
    """A fallback: the same call to another service, with its own policy; at `path` if that is another one there."""

    name: str
    path: str | None = None


def note(context: CallContext, text: str) -> None:
    """Write into the decision record of the call that failed."""
    if context.record is not None:
        context.record.notes = (*context.record.notes, text)


async def outcome_of(fallback: object, error: Exception) -> Any:
    """What a fallback that is a value or a function gives for `error`."""
    if not callable(fallback):
        return fallback
    result = fallback(error)
    return await result if inspect.isawaitable(result) else result


class LastAnswers:
    """The last good answers of calls with `stale_if_error` (RFC 5861 section 4), in bounded memory.

    An answer belongs to the service, the method, the target and all headers that were given, so no user gets another
    one's. `Cache-Control: no-store` keeps it out.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, int, list[Header], bytes]] = OrderedDict()
        self._bytes = 0

    def statistics(self) -> dict[str, int]:
        return {"answers": len(self._kept), "bytes": self._bytes}

    def keep(self, key: Key, response: Response, content: bytes) -> None:
        self._drop(key)
        control = (response.header(b"cache-control") or b"").lower()
        if not 200 <= response.status < 300 or b"no-store" in control or len(content) > LONGEST_ANSWER:
            return
        self._kept[key] = (self._clock.now(), response.status, list(response.headers), content)
        self._bytes += len(content)
        while len(self._kept) > MOST_ANSWERS or self._bytes > MOST_BYTES:
            self._drop(next(iter(self._kept)))

    def find(self, key: Key, longest: float) -> tuple[Response, bytes, float] | None:
        """The answer, its body and its age, if it isn't older than `longest` seconds."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        since, status, headers, content = kept
        age = self._clock.now() - since
        return (Response.of(status, list(headers), content), content, age) if age <= longest else None

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept[3])


def key_of(service: str, method: str, target: bytes, headers: Sequence[Header]) -> Key:
    return service, method.upper(), target, tuple(sorted(headers))
