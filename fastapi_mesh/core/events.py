"""What happened: the record of a call, the events of the mesh, and the Observer port that hears of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
    `body_outcome` is how the body ended, "" while it is still open. Most fields keep their class default on the happy
    path, which is why this class has no slots.
    """

    status: int | None = None
    duration = 0.0
    outcome = ""
    body_outcome = ""
    reason = ""
    refused_by = ""
    trace_id = ""
    request_id = ""
    attempts: tuple[AttemptRecord, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, source: str, service: str, method: bytes, route: str, started: float) -> None:
        self.source = source
        self.service = service
        self.method = method
        self.route = route
        self.started = started

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "source": self.source,
            "service": self.service,
            "method": self.method.decode("latin-1"),
            "route": self.route,
            "started": self.started,
            "duration": self.duration,
            "status": self.status,
            "outcome": self.outcome,
            "body_outcome": self.body_outcome,
            "reason": self.reason,
            "refused_by": self.refused_by,
            "trace_id": self.trace_id,
            "request_id": self.request_id,
            "attempts": [{name: getattr(each, name) for name in AttemptRecord.__slots__} for each in self.attempts],
            "skipped": [{"instance": instance, "why": why} for instance, why in self.skipped],
            "notes": list(self.notes),
        }


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
class InstanceProbed:
    """A probe of an instance has ended: `healthy`, `degraded` or `failed`, after `seconds`."""

    service: str
    instance: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class InstanceHealthChanged:
    """Probes think differently of an instance: `unknown`, `healthy`, `degraded` or `unhealthy`, and why."""

    service: str
    instance: str
    before: str
    after: str
    why: str


@dataclass(frozen=True, slots=True)
class InstancesProbed:
    """How many of a service's instances are `unknown`, `healthy`, `degraded` and `unhealthy` to our probes."""

    service: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LimitChanged:
    """An adaptive limit has another value: of the calls to `service`; None: of the requests that this node answers."""

    service: str | None
    limit: int


@dataclass(frozen=True, slots=True)
class RequestShed:
    """This node refused a request because too many were running; `priority` is `low`, `normal` or `high`."""

    priority: str


@dataclass(frozen=True, slots=True)
class BudgetExhausted:
    """A retry was wanted, and the budget had no room for it."""

    service: str


@dataclass(frozen=True, slots=True)
class HandlerCancelled:
    """A handler of this node was cancelled; `cause` is `deadline`, `disconnect` or `shutdown`."""

    cause: str


@dataclass(frozen=True, slots=True)
class HandlerAbandoned:
    """Nobody waits for a handler any more, and it works on: in a thread, or because it did not heed being cancelled."""

    cause: str


@dataclass(frozen=True, slots=True)
class TrailersDropped:
    """A response had trailer fields, which are not passed on (RFC 9110 section 6.5.1 allows it)."""

    service: str


@dataclass(frozen=True, slots=True)
class ExcessDropped:
    """An instance sent more than its answer has, or bytes that nobody asked for; they and the connection were dropped.

    A wrong Content-Length, a body where none is allowed, a 408 to an idle connection; in the worst case the second half
    of an answer that somebody split (RFC 9112 sections 6.3 and 11.1). `instance` is its address and port; `first` says
    that this is the first one of the service.
    """

    service: str
    instance: str
    first: bool


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
    | InstanceProbed
    | InstanceHealthChanged
    | InstancesProbed
    | LimitChanged
    | RequestShed
    | BudgetExhausted
    | HandlerCancelled
    | HandlerAbandoned
    | TrailersDropped
    | ExcessDropped
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
