"""What an answer to a probe says of its instance, and what several in a row make of it: fall and rise (HAProxy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pydantic_core

from fastapi_mesh.health.words import DEGRADED, FAILING

if TYPE_CHECKING:
    from fastapi_mesh.config.probes import ProbePolicy
    from fastapi_mesh.core.instance import Health

Result = Literal["healthy", "degraded", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe; `why` is for people: what was answered, or why nothing was."""

    result: Result
    why: str


def read(status: int, content_type: bytes | None, body: bytes) -> Finding:
    """What an answer says: 200 to 399 is well, unless it is a JSON object whose `status` says otherwise.

    >>> read(200, b"application/json", b'{"status": "degraded"}').result
    'degraded'
    """
    if not 200 <= status < 400:
        return Finding("failed", f"it answered {status}")
    word = _status_word(content_type, body)
    if word in FAILING:
        return Finding("failed", f"it answered {status} and says that it is {word!r}")
    if word in DEGRADED:
        return Finding("degraded", f"it says that it is {word!r}")
    return Finding("healthy", f"it answered {status}")


def _status_word(content_type: bytes | None, body: bytes) -> str:
    """The `status` of a JSON object, in lower case; "" where there is none."""
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if not body or not (kind == b"application/json" or kind.endswith(b"+json")):
        return ""
    try:
        document = pydantic_core.from_json(body)
    except ValueError:
        return ""
    status = document.get("status") if isinstance(document, dict) else None
    return status.strip().lower() if isinstance(status, str) else ""


class Row:
    """The probes of one instance, as far as the next verdict depends on them."""

    __slots__ = ("failures", "successes")

    def __init__(self) -> None:
        self.failures = 0
        self.successes = 0

    def add(self, result: Result, before: Health, policy: ProbePolicy) -> Health:
        """The verdict after one more probe: it takes `fall` failures in a row to fall, `rise` successes to rise.

        Nobody has fallen before the first `fall` failures, and nobody is vouched for before the first `rise`
        successes. Between healthy and degraded every answer counts by itself.
        """
        if result == "failed":
            self.successes = 0
            self.failures += 1
            return "unhealthy" if self.failures >= policy.fall else before
        self.failures = 0
        self.successes += 1
        risen = before in ("healthy", "degraded") or self.successes >= policy.rise
        return result if risen else before
