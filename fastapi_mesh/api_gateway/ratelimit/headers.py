"""What clients are told of their rate limits: the IETF's `RateLimit` fields, `X-RateLimit-*`, and rates in words.

draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` lists all windows (`q` amount, `w` seconds), `RateLimit` the
tightest one (`r` what is left, `t` seconds until there is more). `X-RateLimit-Limit`, `-Remaining` and `-Reset` say the
same for clients that know only them; Reset is seconds, as in Envoy and Kong, for it needs no common clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.ratelimit.windows import Verdict, Window
    from fastapi_mesh.core.message import Header

NAMES = frozenset(
    {
        b"ratelimit",
        b"ratelimit-policy",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
    }
)
"""A service's own fields of these names give way: clients must not read two limits as one."""

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def policy_header(windows: Iterable[Window]) -> Header:
    """`RateLimit-Policy`, which stays the same for a route."""
    items = (f'"{window.name}";q={window.amount};w={window.seconds}' for window in windows)
    return (b"ratelimit-policy", ", ".join(items).encode())


def standing_headers(verdict: Verdict) -> tuple[Header, ...]:
    """`RateLimit` and `X-RateLimit-*` for the tightest window."""
    window = verdict.window
    remaining, seconds = b"%d" % verdict.remaining, b"%d" % math.ceil(verdict.soon)
    return (
        (b"ratelimit", window.item + remaining + b";t=" + seconds),
        window.amount_header,
        (b"x-ratelimit-remaining", remaining),
        (b"x-ratelimit-reset", seconds),
    )


def shown_rate(window: Window) -> str:
    """A window in words.

    >>> from fastapi_mesh.api_gateway.ratelimit.windows import Window
    >>> shown_rate(Window("fixed", 100, 300, "default", "default"))
    '100 per 5 minutes'
    """
    seconds, unit = next(pair for pair in _UNITS if window.seconds % pair[0] == 0)
    count = window.seconds // seconds
    return f"{window.amount} per {unit}" if count == 1 else f"{window.amount} per {count} {unit}s"
