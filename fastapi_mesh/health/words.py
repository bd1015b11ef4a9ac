"""What applications say of their health: the words for yes, no and "yes, but", and the shapes that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEGRADED = frozenset({"degraded", "warn", "warning"})
"""Working, with something to look at. `warn` is the word of the health+json draft."""
PASSING = frozenset({"healthy", "pass", "passed", "passing", "ok", "okay", "up", "ready", "true", "yes"}) | DEGRADED
"""Words that mean yes, those included that mean yes, but. In a check of ours everything else means no."""
FAILING = frozenset({"unhealthy", "fail", "failed", "failing", "down", "out_of_service", "critical"})
"""Words that mean no wherever they stand; other applications may say them with a status of 200."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one check said, each of its `parts` as well; `degraded` beside healthy: yes, but."""

    healthy: bool
    parts: Mapping[str, bool] = field(default_factory=dict)
    detail: object = None
    degraded: bool = False


def judge(value: object) -> Said:
    """Read what a check returned; see `HealthChecks.register`."""
    if not isinstance(value, Mapping):
        return Said(_passes(value), degraded=_is_degraded(value))
    inner = value.get("checks")
    if isinstance(inner, Mapping):
        checks: Mapping[object, object] = inner
    else:
        checks = {} if "status" in value else value
    parts = {str(name): _passes(part) for name, part in checks.items()}
    if "status" in value:
        return Said(_passes(value["status"]), parts, dict(value), _is_degraded(value["status"]))
    return Said(all(parts.values()), parts, dict(value), any(_is_degraded(part) for part in checks.values()))


def _passes(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() in PASSING
    if isinstance(value, Mapping):
        return judge(value).healthy
    return bool(value)


def _is_degraded(value: object) -> bool:
    if isinstance(value, Mapping):
        return judge(value).degraded
    return isinstance(value, str) and value.strip().lower() in DEGRADED
