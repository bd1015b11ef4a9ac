"""Calls as a client outside of the mesh makes them, and what came of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import MeshError
from fastapi_mesh.wire.http import ControlClient

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "/api/v1"
PATHS: Mapping[str, str] = {
    "profile-service": f"{PREFIX}/profiles/3",
    "user-service": f"{PREFIX}/users/3",
    "order-service": f"{PREFIX}/orders/3",
}
_SERVED = re.compile(r"^http_requests_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gave. `pid` is the process that answered, `status` 0 when nothing came and `reason` says why."""

    status: int
    reason: str = ""
    attempts: int = 0
    pid: int = 0

    @property
    def ok(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        status = str(self.status) if self.status else "no answer"
        return f"{status} {self.reason}".rstrip()


@dataclass(slots=True)
class Tally:
    """What many calls gave."""

    calls: int = 0
    retried: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    by_pid: Counter[int] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        self.calls += 1
        self.retried += answer.attempts > 1
        if answer.ok:
            self.by_pid[answer.pid] += 1
        else:
            self.failures[str(answer)] += 1

    @property
    def failed(self) -> str:
        """The failures in words; "" when there is none."""
        return ", ".join(f"{count} x {text}" for text, count in self.failures.most_common())


class Caller:
    """Calls one server, over kept connections, without any retry of its own."""

    def __init__(self, url: str) -> None:
        self._client = ControlClient(url, timeout=10.0)

    async def call(self, path: str) -> Answer:
        """GET `path`."""
        try:
            response = await self._client.request("GET", path)
        except MeshError as error:
            return Answer(0, str(error))
        attempts = int(response.headers.get("x-mesh-attempts", "0"))
        reason = response.headers.get("x-mesh-reason", "")
        if response.status != 200:
            return Answer(response.status, reason, attempts)
        document = response.json()
        pid = document.get("pid") if isinstance(document, dict) else None
        return Answer(200, reason, attempts, pid if isinstance(pid, int) else 0)

    async def is_ready(self) -> bool:
        """Whether the server says that it wants requests."""
        try:
            return (await self._client.request("GET", "/health/ready")).status == 200
        except MeshError:
            return False

    async def requests_served(self) -> int:
        """How many requests the server has answered, by its own metrics. Raises MeshError when it does not answer."""
        response = await self._client.request("GET", "/metrics")
        return int(sum(float(value) for value in _SERVED.findall(response.content.decode())))

    async def aclose(self) -> None:
        await self._client.aclose()
