"""The clock of one WebSocket: when to ping its service, when that has been silent or it idle or open for too long, and
when its client's credential ends.
"""

from __future__ import annotations

import random
from math import inf
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.api_gateway.websocket.closes import CUT, GOING_AWAY, INTERNAL_ERROR, POLICY, Close, Ending

if TYPE_CHECKING:
    from fastapi_mesh.config.edge.websocket import WebSocketPolicy
    from fastapi_mesh.core.clock import Clock, Timer

SILENT = Ending(
    Close(INTERNAL_ERROR, "the service does not answer"), CUT, "the service did not answer a ping within its timeout"
)
IDLE = Ending(Close(GOING_AWAY, "idle for too long"), Close(GOING_AWAY, "idle for too long"))
EXPIRED = Ending(Close(POLICY, "the credential has expired"), Close(POLICY, "the credential has expired"))
TOO_OLD = Ending(Close(GOING_AWAY, "open for too long"), Close(GOING_AWAY, "open for too long"))


class Watched(Protocol):
    """What is watched: a session."""

    @property
    def is_delivering(self) -> bool:
        """Whether the client is behind, so that nothing is read from the service."""
        ...

    def ping(self) -> None: ...

    def end(self, ending: Ending) -> None: ...


class KeepAlive:
    """One timer per WebSocket, at the earliest moment at which something may be due.

    The first ping falls anywhere into the first interval, so that a thousand sockets that were opened together are not
    pinged together. Whatever comes from the service counts as its answer; while the client is behind, the service is
    not read from and can't be judged.
    """

    __slots__ = (
        "_clock",
        "_end_of_credential",
        "_end_of_life",
        "_idle",
        "_interval",
        "_next_ping",
        "_pinged",
        "_timeout",
        "_timer",
        "_watched",
        "heard",
        "used",
    )

    def __init__(self, watched: Watched, policy: WebSocketPolicy, clock: Clock, *, credential: float = inf) -> None:
        """`credential` is seconds for which the client's credential is good still."""
        now = clock.now()
        self._watched = watched
        self._clock = clock
        self._interval = policy.ping_interval or inf
        self._timeout = policy.ping_timeout
        self._idle = policy.idle_timeout or inf
        self._end_of_credential = inf if policy.outlive_token else now + credential
        self._end_of_life = now + policy.max_lifetime if policy.max_lifetime else inf
        self._next_ping = now + random.random() * self._interval if self._interval != inf else inf
        self._pinged: float | None = None
        self._timer: Timer | None = None
        self.heard = now
        """When the service sent something, a pong included."""
        self.used = now
        """When a message passed, either way."""

    def start(self) -> None:
        self._plan()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        due = min(self._next_ping, self._end_of_life, self._end_of_credential, self.used + self._idle)
        if self._pinged is not None:
            due = min(due, self._pinged + self._timeout)
        if due != inf:
            self._timer = self._clock.call_later(max(0.0, due - self._clock.now()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now()
        if now >= self._end_of_credential:
            self._watched.end(EXPIRED)
            return
        if now >= self._end_of_life:
            self._watched.end(TOO_OLD)
            return
        if now >= self.used + self._idle:
            self._watched.end(IDLE)
            return
        if self._pinged is not None and now >= self._pinged + self._timeout:
            if self._watched.is_delivering:
                self._pinged = now
            elif self.heard < self._pinged:
                self._watched.end(SILENT)
                return
            else:
                self._pinged = None
        if now >= self._next_ping:
            self._next_ping = now + self._interval
            if self._pinged is None:
                self._pinged = now
                self._watched.ping()
        self._plan()
