"""What happened: the record of a call, the events of the mesh, and the Observer port that hears of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class AttemptRecord:
    """One try: which instance, what came of it, and how long until its response head (seconds)."""

    __slots__ = ("duration", "error", "instance", "status")

    def __init__(self, instance: str, duration: float, status: int | None, error: str | None) -> None:
        self.instance = instance
        self.duration = duration
        self.status = status
        self.error = error


class CallRecord:
    """The decision record of one logical call: what was tried, what was skipped and why, who refused.

    `outcome` is `success`, `failure`, `refused` or `cancelled`; `reason` the slug of the error, else ""; `refused_by`
    the layer that ended it without an attempt. `started` is Unix time, `duration` seconds to the response head.
    """

    __slots__ = (
        "attempts",
        "body_outcome",
        "duration",
        "method",
        "notes",
        "outcome",
        "reason",
        "refused_by",
        "request_id",
        "route",
        "service",
        "skipped",
        "source",
        "started",
        "status",
        "trace_id",
    )

    def __init__(self, source: str, service: str, method: str, route: str, request_id: str, trace_id: str) -> None:
        self.source = source
        self.service = service
        self.method = method
        self.route = route
        self.request_id = request_id
        self.trace_id = trace_id
        self.started = 0.0
        self.duration = 0.0
        self.status: int | None = None
        self.outcome = ""
        self.body_outcome = ""
        self.reason = ""
        self.refused_by = ""
        self.attempts: list[AttemptRecord] = []
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        plain: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        plain["attempts"] = [{name: getattr(each, name) for name in AttemptRecord.__slots__} for each in self.attempts]
        plain["skipped"] = [{"instance": instance, "why": why} for instance, why in self.skipped]
        return plain


@dataclass(frozen=True, slots=True)
class CallFinished:
    """A logical call has its response head, or has failed."""

    record: CallRecord


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A circuit breaker changed its state: `closed`, `open` or `half-open`."""

    service: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class InstanceEjected:
    """An instance gets no calls for `seconds`."""

    service: str
    instance: str
    seconds: float


@dataclass(frozen=True, slots=True)
class InstanceRestored:
    """An ejected instance is back."""

    service: str
    instance: str


@dataclass(frozen=True, slots=True)
class InstancesChanged:
    """The list of a service's instances changed; ids of those that came and went."""

    service: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    total: int


@dataclass(frozen=True, slots=True)
class BudgetExhausted:
    """A retry was wanted, and the budget had no room for it."""

    service: str


@dataclass(frozen=True, slots=True)
class TrailersDropped:
    """A response had trailer fields, which are not passed on (RFC 9110 section 6.5.1 allows it)."""

    service: str


@dataclass(frozen=True, slots=True)
class LoopFailed:
    """A supervised background loop failed and will be tried again in `retry_in` seconds."""

    name: str
    error: str
    retry_in: float


Event = (
    CallFinished
    | CircuitChanged
    | InstanceEjected
    | InstanceRestored
    | InstancesChanged
    | BudgetExhausted
    | TrailersDropped
    | LoopFailed
)


class Observer(Protocol):
    """Hears of every event, in the loop's turn: must be quick and must not raise."""

    def __call__(self, event: Event) -> None: ...


class Observers:
    """Several observers as one."""

    __slots__ = ("_members",)

    def __init__(self, members: Iterable[Observer] = ()) -> None:
        self._members = tuple(members)

    def add(self, observer: Observer) -> None:
        self._members = (*self._members, observer)

    def __call__(self, event: Event) -> None:
        for member in self._members:
            member(event)
