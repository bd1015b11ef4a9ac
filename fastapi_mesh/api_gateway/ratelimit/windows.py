"""Windows of rate limits, and what a request's standing in several of them comes to.

Three strategies, as in the library `limits`:

- sliding: two counters, of this window and the one before, which counts for the part of it that is still within
  `seconds` (Cloudflare's sliding window counter). Two numbers a client, and no burst at a boundary.
- moving: the time of every request (a log). Exact in any interval, at a cost that grows with the amount.
- fixed: one counter that starts anew `seconds` after its first request: twice the amount fits around that moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.config.edge.limits import Strategy


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """At most `amount` in any `seconds`. `limit` names the limit it is part of, `name` is what clients see."""

    strategy: Strategy
    amount: int
    seconds: int
    limit: str
    name: str


class Charge(NamedTuple):
    """A request in one window: the key of its count, and how much it counts."""

    key: str
    window: Window
    cost: int


class State(NamedTuple):
    """A count after a request.

    For sliding and fixed windows: `before` the count of the last window (0 if fixed), `counted` that of this one,
    `left` seconds of it. For moving windows: `before` the seconds until the oldest request leaves, `left` those until
    there is room for a refused request.
    """

    before: float
    counted: int
    left: float


class Verdict(NamedTuple):
    """What is to be told of a request: the tightest window, what is left in it and how soon more is.

    `wait` is the seconds until a refused request would pass, math.inf for never; 0.0 when it was counted. `broken` are
    the windows without room.
    """

    allowed: bool
    window: Window
    remaining: int
    soon: float
    wait: float
    broken: tuple[Window, ...] = ()


def used(window: Window, state: State) -> int:
    """How much of the window is used.

    >>> used(Window("sliding", 10, 60, "default", "default"), State(8, 3, 15.0))
    5
    """
    if window.strategy == "sliding":
        return int(state.before * state.left / window.seconds) + state.counted
    return state.counted


def judge(charges: Sequence[Charge], allowed: bool, states: Sequence[State]) -> Verdict:
    """What several windows say together. Of a counted request the one with the least left is told, of a refused one
    that with the longest wait.
    """
    if not allowed:
        return _refused(charges, states)
    _, window, _ = charges[0]
    state = states[0]
    remaining = window.amount - used(window, state)
    for index in range(1, len(charges)):
        other = charges[index].window
        left = other.amount - used(other, states[index])
        if left < remaining:
            window, state, remaining = other, states[index], left
    return Verdict(True, window, max(0, remaining), soon(window, state), 0.0)


def _refused(charges: Sequence[Charge], states: Sequence[State]) -> Verdict:
    worst, longest, broken = 0, -1.0, []
    for index, (charge, state) in enumerate(zip(charges, states, strict=True)):
        if used(charge.window, state) + charge.cost > charge.window.amount:
            broken.append(charge.window)
            wait = _wait(charge, state)
            if wait > longest:
                worst, longest = index, wait
    window, state = charges[worst].window, states[worst]
    remaining = max(0, window.amount - used(window, state))
    return Verdict(False, window, remaining, soon(window, state), longest, tuple(broken))


def soon(window: Window, state: State) -> float:
    """Seconds until at least one more request has room than now; 0.0 when all of the window is free."""
    if window.strategy == "moving":
        return state.before if state.counted else 0.0
    if window.strategy == "fixed":
        return state.left if state.counted else 0.0
    taken = used(window, state)
    return sliding_wait(window.seconds, state, taken - 1) if taken else 0.0


def _wait(charge: Charge, state: State) -> float:
    """Seconds until the request of this charge has room."""
    window = charge.window
    if charge.cost > window.amount:
        return math.inf
    if window.strategy == "sliding":
        return sliding_wait(window.seconds, state, window.amount - charge.cost)
    return state.left


def sliding_wait(seconds: int, state: State, target: int) -> float:
    """Seconds until the weighted count of a sliding window is at most `target` (whole numbers, rounded down).

    >>> sliding_wait(60, State(0, 10, 30.0), 9)  # nothing leaves before the next window
    30.001
    """
    before, counted, left = state
    if counted <= target:  # the window before is what is in the way, and it fades
        wait = left - (target + 1 - counted) * seconds / before if before else 0.0
    else:
        wait = left + max(0.0, seconds - (target + 1) * seconds / counted)
    return max(0.0, wait) + 0.001  # at that very moment it is still one too many
