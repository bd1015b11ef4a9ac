"""The limit of an adaptive bulkhead: Netflix concurrency-limits' Gradient2, in windows of time.

The mean duration of a window (short) is compared with the mean of many windows (long). While it is at most `tolerance`
times as long, the limit grows by a small queue; else it shrinks in proportion, at most by half. Where fewer than half
of the seats are used nothing is learned. https://github.com/Netflix/concurrency-limits, Gradient2Limit, WindowedLimit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.config.bulkhead import AdaptiveLimit

QUEUE = 4
"""Calls that may wait further on without being a sign of overload: what the limit grows by."""
MIN_SAMPLES = 10
"""Durations in a window that make its mean worth something; with fewer the window is longer."""
WARM_UP = 10
"""Windows until the long mean is one of exponential weights."""
STALE = 2.0
"""A long mean so many times the short one comes from an overload that is over, and is let go quickly."""


class Gradient2:
    """`limit` is the present one; `sample` tells it how long something took, and says whether `limit` has changed."""

    __slots__ = ("_begun", "_count", "_estimate", "_long", "_max", "_most", "_policy", "_sum", "_windows", "limit")

    def __init__(self, policy: AdaptiveLimit, most: int) -> None:
        """`most` is the highest limit."""
        self._policy = policy
        self._max = most
        self.limit = min(policy.min_concurrent, most)
        self._estimate = float(self.limit)
        self._long = 0.0
        self._windows = 0
        self._begun = -1.0
        self._sum = 0.0
        self._count = 0
        self._most = 0

    def sample(self, now: float, seconds: float, in_flight: int) -> bool:
        """`in_flight` is how many ran together with it, itself included; `now` is monotonic seconds."""
        if self._begun < 0:
            self._begun = now
        self._sum += seconds
        self._count += 1
        if in_flight > self._most:
            self._most = in_flight
        if now - self._begun < self._policy.window or self._count < MIN_SAMPLES:
            return False
        short, most = max(self._sum / self._count, 1e-6), self._most
        self._begun, self._sum, self._count, self._most = now, 0.0, 0, 0
        return self._update(short, most)

    def _update(self, short: float, in_flight: int) -> bool:
        policy, before = self._policy, self.limit
        self._learn(short)
        if in_flight < self._estimate / 2:
            return False
        gradient = max(0.5, min(1.0, policy.tolerance * self._long / short))
        wanted = self._estimate * gradient + QUEUE
        estimate = self._estimate * (1 - policy.smoothing) + wanted * policy.smoothing
        self._estimate = max(min(policy.min_concurrent, self._max), min(self._max, estimate))
        self.limit = int(self._estimate)
        return self.limit != before

    def _learn(self, short: float) -> None:
        self._windows += 1
        if self._windows <= WARM_UP:
            self._long += (short - self._long) / self._windows
        else:
            self._long += (short - self._long) * 2 / (self._policy.long_window + 1)
        if self._long > STALE * short:
            self._long *= 0.95
