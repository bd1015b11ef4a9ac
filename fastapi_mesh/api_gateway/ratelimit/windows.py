"""Windows of rate limits, and what a request's standing in several of them comes to.

Three strategies, as in the library `limits`:

- sliding: two counters, of this window and the one before, which counts for the part of it that is still within
  `seconds` (Cloudflare's sliding window counter). Two numbers a client, and no burst at a boundary.
- moving: the time of every request (a log). Exact in any interval, at a cost that grows with the amount.
- fixed: one counter that starts anew `seconds` after its first request: twice the amount fits around that moment.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.config.edge.limits import Strategy


class Window:
    """At most `amount` in any `seconds`. `limit` names the limit it is part of, `name` is what clients see."""

    __slots__ = ("amount", "amount_header", "item", "limit", "name", "seconds", "strategy")

    def __init__(self, strategy: Strategy, amount: int, seconds: int, limit: str, name: str) -> None:
        self.strategy: Strategy = strategy
        self.amount = amount
        self.seconds = seconds
        self.limit = limit
        self.name = name
        self.item = f'"{name}";r='.encode()
        self.amount_header = (b"x-ratelimit-limit", b"%d" % amount)

    def __repr__(self) -> str:
        return f"<Window {self.name}: {self.amount} in {self.seconds} s, {self.strategy}>"


Charge = tuple[str, Window, int]
"""A request in one window: the key of its count, the window, and how much it counts."""

State = tuple[float, int, float]
"""A count after a request. Plain tuples, as two are made for each request.

For sliding and fixed windows: the count of the last window (0 if fixed), that of this one, seconds left of it. For
moving windows: the seconds until the oldest request leaves, the count, the seconds until there is room for a refused
request.
"""


class Verdict(NamedTuple):
    """What is to be told of a request: the tightest window, how it stands, and what is left in it.

    `wait` is the seconds until a refused request would pass, math.inf for never; 0.0 when it was counted. `broken` are
    the windows without room.
    """

    allowed: bool
    window: Window
    state: State
    remaining: int
    wait: float = 0.0
    broken: tuple[Window, ...] = ()

    @property
    def soon(self) -> float:
        """Seconds until at least one more request has room than now; 0.0 when all of the window is free."""
        return soon(self.window, self.state)


def used(window: Window, state: State) -> int:
    """How much of the window is used.

    >>> used(Window("sliding", 10, 60, "default", "default"), (8, 3, 15.0))
    5
    """
    before, counted, left = state
    if before and window.strategy == "sliding":
        return int(before * left / window.seconds) + counted
    return counted


def judge(charges: Sequence[Charge], allowed: bool, states: Sequence[State]) -> Verdict:
    """What several windows say together. Of a counted request the one with the least left is told, of a refused one
    that with the longest wait.
    """
    if not allowed:
        return _refused(charges, states)
    window = charges[0][1]
    state = states[0]
    remaining = window.amount - used(window, state)
    for index in range(1, len(charges)):
        other = charges[index][1]
        left = other.amount - used(other, states[index])
        if left < remaining:
            window, state, remaining = other, states[index], left
    return Verdict(True, window, state, max(0, remaining))


def _refused(charges: Sequence[Charge], states: Sequence[State]) -> Verdict:
    worst, longest, broken = 0, -1.0, []
    for index, ((_, window, cost), state) in enumerate(zip(charges, states, strict=True)):
        if used(window, state) + cost > window.amount:
            broken.append(window)
            wait = _wait(window, cost, state)
            if wait > longest:
                worst, longest = index, wait
    window, state = charges[worst][1], states[worst]
    return Verdict(False, window, state, max(0, window.amount - used(window, state)), longest, tuple(broken))


def soon(window: Window, state: State) -> float:
    """Seconds until at least one more request has room than now; 0.0 when all of the window is free."""
    before, counted, left = state
    if window.strategy == "moving":
        return before if counted else 0.0
    if window.strategy == "fixed":
        return left if counted else 0.0
    taken = used(window, state)
    return sliding_wait(window.seconds, state, taken - 1) if taken else 0.0


def _wait(window: Window, cost: int, state: State) -> float:
    """Seconds until a request of this cost has room."""
    if cost > window.amount:
        return math.inf
    if window.strategy == "sliding":
        return sliding_wait(window.seconds, state, window.amount - cost)
    return state[2]


def sliding_wait(seconds: int, state: State, target: int) -> float:
    """Seconds until the weighted count of a sliding window is at most `target` (whole numbers, rounded down).

    >>> sliding_wait(60, (0, 10, 30.0), 9)  # nothing leaves before the next window
    30.001
    """
    before, counted, left = state
    if counted <= target:  # the window before is what is in the way, and it fades
        wait = left - (target + 1 - counted) * seconds / before if before else 0.0
    else:
        wait = left + max(0.0, seconds - (target + 1) * seconds / counted)
    return max(0.0, wait) + 0.001  # at that very moment it is still one too many
