"""What the mesh remembers of one service between calls, and the ports of the machines that live there."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.live import Live
    from fastapi_mesh.core.message import Request


class Picker(Protocol):
    """Chooses one of several instances; never called with none."""

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState: ...


class Breaker(Protocol):
    """A circuit breaker, driven from outside: admit, then say how it went."""

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        ...

    def admit(self) -> int:
        """Let a call through and return its ticket. Raises CircuitBreakerOpenError."""
        ...

    def succeed(self, ticket: int) -> None: ...

    def fail(self, ticket: int) -> None: ...

    def forget(self, ticket: int) -> None:
        """The call says nothing about the service (cancelled, or the caller's own fault)."""
        ...


class Seats(Protocol):
    """A bounded number of calls in flight."""

    @property
    def measures(self) -> bool:
        """Whether the number follows how long calls take."""
        ...

    async def acquire(self, deadline: float | None, priority: int = ...) -> None:
        """Take a seat, waiting in the queue until `deadline`. Raises BulkheadFullError, DeadlineExceededError."""
        ...

    def release(self) -> None: ...

    def now(self) -> float:
        """When a call begins, for `measured`."""
        ...

    def measured(self, began: float) -> None:
        """A call has its answer."""
        ...


class Prefer(Protocol):
    """Chooses those of the instances that are well that calls go to, and says by `weight` how much each gets."""

    def __call__(self, everyone: Sequence[InstanceState], well: tuple[InstanceState, ...]) -> tuple[InstanceState, ...]:
        """At least one of `well`, which has at least one."""
        ...

    def close(self) -> None:
        """Another one has taken its place: end its timers."""
        ...


class RateWindow:
    """An interval of calls: when it began (monotonic seconds), and each instance's successes and failures then."""

    __slots__ = ("before", "began")

    def __init__(self, began: float, before: dict[InstanceState, tuple[int, int]]) -> None:
        self.began = began
        self.before = before


class Budget(Protocol):
    """How many retries are allowed in relation to calls."""

    def deposit(self) -> None:
        """A call was made."""
        ...

    def withdraw(self) -> bool:
        """Take one retry out; False when there is none."""
        ...


class ServiceStatistics:
    """Counters of one service's calls since the start; `latency` is the sum of seconds to the response head."""

    __slots__ = ("calls", "failures", "latency", "retries")

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.retries = 0
        self.latency = 0.0


class ServiceState:
    """The state of one service: instances, breaker, seats, budget, picker, counters.

    `instances` is the live list, built from discovery by `service_mesh/state.py`. `reserve` are those of them that may
    be called: healthy and not ejected, or all when none is left (`_usable`; with `health_required` somebody must have
    said that they are healthy). `candidates` are those that calls go to: all of `reserve`, or the ones that `prefer`
    chooses of them, and then the others are for attempts that find no candidate. `next_trial` is when the first ejected
    instance may be tried again (monotonic seconds, infinity for none). All three are kept by `refresh`, so that a pick
    costs nothing on the happy path. `rates` is the interval that is looked at for success rates. `lost_at` is when a
    failed connection was last counted for the breaker (monotonic seconds). A machine is None where its policy
    is off. The state survives a reload of the configuration unless its own section changed.

    A route with a section of its own has a `variant` of the state, with machines of its own for the sections in `own`
    and everything else shared; `family` are the state and all its variants.
    """

    __slots__ = (
        "breaker",
        "budget",
        "candidates",
        "family",
        "health_required",
        "hedges",
        "instances",
        "lost_at",
        "name",
        "next_trial",
        "own",
        "picker",
        "prefer",
        "rates",
        "reserve",
        "seats",
        "statistics",
    )

    def __init__(
        self,
        name: str,
        *,
        instances: Live[tuple[InstanceState, ...]],
        picker: Picker,
        breaker: Breaker | None = None,
        seats: Seats | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.name = name
        self.instances = instances
        self.picker = picker
        self.breaker = breaker
        self.seats = seats
        self.budget = budget
        self.statistics = ServiceStatistics()
        self.own: frozenset[str] = frozenset()
        self.family: list[ServiceState] = [self]
        self.lost_at = -inf
        self.candidates: tuple[InstanceState, ...] = ()
        self.reserve: tuple[InstanceState, ...] = ()
        self.prefer: Prefer | None = None
        self.rates: RateWindow | None = None
        self.next_trial = inf
        self.health_required = False
        self.hedges: object = None
        """What the layer Hedge knows of the service, made by it."""
        self.refresh()

    def variant(self, own: frozenset[str]) -> ServiceState:
        """A state over the same instances and counters, for machines of its own; it ends with `family.remove`."""
        made = ServiceState(
            self.name,
            instances=self.instances,
            picker=self.picker,
            breaker=self.breaker,
            seats=self.seats,
            budget=self.budget,
        )
        made.statistics = self.statistics
        made.own = own
        made.health_required = self.health_required
        made.prefer = self.prefer
        made.candidates, made.reserve, made.next_trial = self.candidates, self.reserve, self.next_trial
        made.family = self.family
        self.family.append(made)
        return made

    def refresh(self) -> None:
        """Recompute `candidates` and `next_trial`; called when the list, an ejection or a health changed."""
        everyone = self.instances.value or ()
        reserve = tuple(each for each in _usable(everyone, self.health_required) if not each.ejected_until)
        candidates = reserve if self.prefer is None or not reserve else self.prefer(everyone, reserve)
        waiting = [each.ejected_until for each in everyone if each.ejected_until and each.may_be_tried]
        for state in self.family:
            state.candidates = candidates
            state.reserve = reserve
            state.next_trial = min(waiting, default=inf)


def _usable(everyone: Sequence[InstanceState], vouched: bool) -> Sequence[InstanceState]:
    """Those that are well, at least as far as anybody knows; all where none is (panic). With `vouched` somebody must
    have said so, as long as there is one of whom that is true.
    """
    if vouched and (well := [each for each in everyone if each.health in ("healthy", "degraded")]):
        return well
    return [each for each in everyone if each.health != "unhealthy"] or everyone
