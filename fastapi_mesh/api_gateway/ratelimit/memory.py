"""Counts of rate limits in the memory of one process, bounded: a million clients need no more room than `max_keys`.

The storages of the library `limits` are not used for it: they keep every key until a sweep over all keys finds it
expired, which its threaded one does every 10 ms and its asynchronous one in a new task on each request.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.ratelimit.windows import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi_mesh.api_gateway.ratelimit.windows import Charge, State, Verdict, Window

TIMES_PER_KEY = 10
"""Times of moving windows kept at most, for each of `max_keys`: 32 bytes each."""


class _Counter:
    """A sliding or fixed window: when it ends, `before` and `count` its counters."""

    __slots__ = ("before", "count", "end", "expires")

    def __init__(self) -> None:
        self.end = 0.0
        self.before = 0
        self.count = 0
        self.expires = 0.0


class _Log:
    """A moving window: when its requests came, the oldest first."""

    __slots__ = ("expires", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.expires = 0.0


class MemoryCounters:
    """Counts requests, each in all of its windows or in none.

    At most `max_keys` counts and ten times as many times of moving windows are kept. The count that was used longest
    ago makes room: an attacker with many addresses pushes out idle clients' counts, never those of a busy one.
    """

    __slots__ = ("_entries", "_max_keys", "_max_times", "_now", "_times", "evicted")

    def __init__(self, max_keys: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._entries: OrderedDict[str, _Counter | _Log] = OrderedDict()
        self._max_keys = max_keys
        self._max_times = max_keys * TIMES_PER_KEY
        self._times = 0
        self._now = now
        self.evicted = 0

    def statistics(self) -> dict[str, int]:
        """Counts kept, times of moving windows kept, and counts that had to make room before they had run out."""
        return {"keys": len(self._entries), "times": self._times, "evicted": self.evicted}

    def charge(self, charges: Sequence[Charge]) -> Verdict:
        """Count a request in all its windows, or in none where one of them has no room. `charges` is not empty."""
        now = self._now()
        known = self._entries
        entries = []
        allowed = True
        for key, window, cost in charges:
            entry = known.get(key)
            if entry is None:
                entry = self._new(key, window, now)
            else:
                known.move_to_end(key)
            entries.append(entry)
            if isinstance(entry, _Log):
                taken = self._prune(entry, now - window.seconds)
            elif window.strategy == "fixed":
                taken = _fixed(entry, window, now)
            else:
                taken = _sliding(entry, window, now)
            if taken + cost > window.amount:
                allowed = False
        states: list[State] = []
        for (_, window, cost), entry in zip(charges, entries, strict=True):
            if isinstance(entry, _Log):
                states.append(self._log(entry, window, cost, now, allowed))
            else:
                if allowed:
                    entry.count += cost
                states.append((entry.before, entry.count, entry.end - now))
        return judge(charges, allowed, states)

    def _log(self, entry: _Log, window: Window, cost: int, now: float, allowed: bool) -> State:
        times = entry.times
        room = 0.0
        if allowed:
            times.extend([now] * cost)
            entry.expires = now + window.seconds
            self._times += cost
            if self._times > self._max_times:
                self._make_room(entry)
        elif 0 < (excess := len(times) + cost - window.amount) <= len(times):
            room = times[excess - 1] + window.seconds - now
        return (times[0] + window.seconds - now if times else 0.0, len(times), room)

    def _prune(self, entry: _Log, until: float) -> int:
        times = entry.times
        while times and times[0] <= until:
            times.popleft()
            self._times -= 1
        return len(times)

    def _new(self, key: str, window: Window, now: float) -> _Counter | _Log:
        """A new count. The two used longest ago are dropped if they have run out, so that memory shrinks again."""
        for _ in range(2):
            oldest = next(iter(self._entries.values()), None)
            if oldest is None or oldest.expires > now:
                break
            self._drop()
        if len(self._entries) >= self._max_keys:
            self._drop()
            self.evicted += 1
        entry: _Counter | _Log = _Log() if window.strategy == "moving" else _Counter()
        entry.expires = now + window.seconds
        self._entries[key] = entry
        return entry

    def _drop(self) -> None:
        _, entry = self._entries.popitem(last=False)
        if isinstance(entry, _Log):
            self._times -= len(entry.times)

    def _make_room(self, kept: _Log) -> None:
        """Too many times: drop a tenth of them, those used longest ago, but not those in use."""
        for key in list(self._entries):
            entry = self._entries[key]
            if entry is not kept and isinstance(entry, _Log):
                del self._entries[key]
                self._times -= len(entry.times)
                self.evicted += 1
                if self._times <= 0.9 * self._max_times:
                    return


def _fixed(entry: _Counter, window: Window, now: float) -> int:
    """Start a new window if the last one is over; how much is used."""
    if now >= entry.end:
        entry.end = entry.expires = now + window.seconds
        entry.count = 0
    return entry.count


def _sliding(entry: _Counter, window: Window, now: float) -> int:
    """Go on to the window that `now` is in; how much is used. Windows begin at multiples of their length."""
    seconds = window.seconds
    if now >= entry.end:
        end = (now // seconds + 1) * seconds
        entry.before = entry.count if end == entry.end + seconds else 0
        entry.count = 0
        entry.end = end
        entry.expires = end + seconds
    before = entry.before
    return int(before * (entry.end - now) / seconds) + entry.count if before else entry.count
