"""The circuit of a service: pybreaker's state machine, driven from asyncio (by the layer in service_breaker).

pybreaker keeps the states, thresholds and counters. What it lacks on an event loop is here: a cap on trial calls while
half-open, neutral results (a cancelled call is neither success nor failure), and generations, so that a call which
began before the circuit opened can't open it again when it fails late. And it can open by the share of failures, and
hear of other processes' circuits (`adopt`).

pybreaker imports redis wherever that is installed (0.1 s), so this file is imported when a circuit is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pybreaker

from fastapi_mesh.core.events import CircuitChanged
from fastapi_mesh.exceptions import CircuitBreakerOpenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.config.policies import BreakerPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer

CLOSED: str = pybreaker.STATE_CLOSED
OPEN: str = pybreaker.STATE_OPEN
HALF_OPEN: str = pybreaker.STATE_HALF_OPEN


class _Failed(Exception):
    """What pybreaker is told when a call has failed."""


def _succeed() -> None:
    """What pybreaker is told when a call has succeeded."""


def _fail() -> None:
    raise _Failed


WINDOW_SLICES = 10
NEVER = 2**62
"""A threshold of failures in a row that is none."""


class RateWindow:
    """Calls and failures of the last `seconds`, in ten slices (resilience4j's time-based sliding window)."""

    __slots__ = ("_calls", "_clock", "_failures", "_length", "_slice")

    def __init__(self, seconds: float, *, clock: Clock) -> None:
        self._clock = clock
        self._length = seconds / WINDOW_SLICES
        self.clear()

    def clear(self) -> None:
        self._calls = [0] * WINDOW_SLICES
        self._failures = [0] * WINDOW_SLICES
        self._slice = int(self._clock.now() / self._length)

    def add(self, *, failed: bool) -> None:
        now = int(self._clock.now() / self._length)
        for each in range(max(self._slice + 1, now - WINDOW_SLICES + 1), now + 1):
            self._calls[each % WINDOW_SLICES] = self._failures[each % WINDOW_SLICES] = 0
        self._slice = now
        self._calls[now % WINDOW_SLICES] += 1
        self._failures[now % WINDOW_SLICES] += failed

    def totals(self) -> tuple[int, int]:
        """Calls and failures, as of the last `add`."""
        return sum(self._calls), sum(self._failures)


class PyBreaker(pybreaker.CircuitBreakerListener):
    """One service's circuit: `admit` gives a ticket (the generation), and the ticket says later how it went."""

    def __init__(
        self, name: str, policy: BreakerPolicy, *, clock: Clock, observer: Observer, label: str | None = None
    ) -> None:
        """`name` is the service; `label` what its changes are told under, where it has more than one circuit."""
        self._name = name
        self._label = label or name
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._generation = 0
        self._trials = 0
        self._failures = 0
        self._opened_at = 0.0
        self._adopting = False
        self.announce: Callable[[str, float], object] | None = None
        """Told of each change that this process has found out itself: the state, and the seconds left of `open`."""
        self.state: str = CLOSED
        self._window = None if policy.failure_rate is None else RateWindow(policy.window, clock=clock)
        self._machine = pybreaker.CircuitBreaker(
            fail_max=policy.failure_threshold if self._window is None else NEVER,
            reset_timeout=policy.recovery_timeout,
            success_threshold=policy.half_open_max_calls,
            listeners=[self],
            name=name,
            throw_new_error_on_trip=False,
        )

    def state_change(self, cb: object, old_state: object, new_state: pybreaker.CircuitBreakerState) -> None:
        """Hear of a change from pybreaker, in the middle of it: `current_state` is still the old one here."""
        before, self.state = self.state, new_state.name
        self._generation += 1
        self._trials = 0
        self._failures = 0
        if self.state == OPEN:
            self._opened_at = self._clock.now()
        if self._window is not None:
            self._window.clear()
        if before != self.state:
            self._observer(CircuitChanged(self._label, before, self.state))
            if self.announce is not None and not self._adopting:
                self.announce(self.state, self.left)

    @property
    def left(self) -> float:
        """Seconds until an open circuit lets trial calls through; 0 when it is not open."""
        if self.state != OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._policy.recovery_timeout - self._clock.now())

    def adopt(self, state: str, left: float) -> None:
        """Follow another process, which has opened its circuit (for another `left` seconds) or closed it."""
        self._adopting = True
        try:
            if state == OPEN and left > 0:
                left = min(left, self._policy.recovery_timeout)
                until = self._clock.now() + left
                if self.state != OPEN:
                    self._machine.open()
                    self._opened_at = until - self._policy.recovery_timeout
            elif state == CLOSED and self.state != CLOSED:
                self._machine.close()
        finally:
            self._adopting = False

    def statistics(self) -> dict[str, float | str]:
        return {"state": self.state, "failures": self._failures, "retry_in": self.left}

    def admit(self) -> int:
        if self.state != CLOSED:
            self._admit_trial()
        return self._generation

    def _admit_trial(self) -> None:
        if self.state == OPEN:
            left = self._opened_at + self._policy.recovery_timeout - self._clock.now()
            if left > 0:
                self._refuse(f"open for another {left:.1f} s", left)
            self._machine.half_open()
        if self._trials >= self._policy.half_open_max_calls:
            self._refuse(f"half-open, and its {self._policy.half_open_max_calls} trial calls are taken", 1.0)
        self._trials += 1

    def _refuse(self, why: str, retry_after: float) -> None:
        error = CircuitBreakerOpenError(f"the circuit of {self._name} is {why}", service=self._name)
        error.retry_after = retry_after
        raise error

    def succeed(self, ticket: int) -> None:
        if self._window is not None and self.state == CLOSED:
            if ticket == self._generation:
                self._window.add(failed=False)
            return
        if ticket != self._generation or (self.state == CLOSED and not self._failures):
            return  # stale, or nothing that a success could change
        self._failures = 0
        self._machine.call(_succeed)

    def fail(self, ticket: int) -> None:
        if ticket != self._generation:
            return
        self._failures += 1
        if self._window is not None and self.state == CLOSED:
            self._window.add(failed=True)
            calls, failures = self._window.totals()
            if calls >= self._policy.minimum_calls and failures >= calls * (self._policy.failure_rate or 0.0):
                self._machine.open()
            return
        try:
            self._machine.call(_fail)
        except _Failed:
            return

    def forget(self, ticket: int) -> None:
        if ticket == self._generation and self.state == HALF_OPEN and self._trials:
            self._trials -= 1
