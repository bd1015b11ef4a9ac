"""A stack that answers a request to a service by calling an instance: the order of its layers, each with its reason.

The table is the only place that knows the order. Moving a row means changing its reason.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fastapi_mesh.layers.attempt import Attempt, AttemptTracer
from fastapi_mesh.layers.balance import Balance
from fastapi_mesh.layers.bulkhead import Bulkhead
from fastapi_mesh.layers.deadline import Deadline
from fastapi_mesh.layers.hedge import Hedge
from fastapi_mesh.layers.instance_health import InstanceHealth
from fastapi_mesh.layers.observe import CallTracer, Observe
from fastapi_mesh.layers.resolve import Resolve
from fastapi_mesh.layers.response_time import ResponseTime
from fastapi_mesh.layers.retry import Retry
from fastapi_mesh.layers.service_breaker import ServiceBreaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.config.policies import CallPolicy
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import CallRecord, Observer
    from fastapi_mesh.core.message import Request, Response
    from fastapi_mesh.layers.base import Service
    from fastapi_mesh.wire.base import Wire


class Tracer(CallTracer, AttemptTracer, Protocol):
    """Spans of calls and attempts."""


KEPT_RECORDS = 200


@dataclass(frozen=True, slots=True)
class Parts:
    """What the layers are made of."""

    clock: Clock
    observer: Observer
    source: str
    tracer: Tracer | None
    records: deque[CallRecord] = field(default_factory=lambda: deque(maxlen=KEPT_RECORDS))
    """The ring of decision records, one for all chains."""


@dataclass(frozen=True, slots=True)
class Row:
    """One layer: what it must sit outside of, and why. `needs` says which policies have it in their chain."""

    name: str
    outside: tuple[str, ...]
    because: str
    make: Callable[[Service, Parts], Service]
    needs: Callable[[CallPolicy], bool] = lambda policy: True


WIRE = "Wire"

ORDER: tuple[Row, ...] = (
    Row(
        "Observe",
        outside=("Deadline", "ServiceBreaker", "Bulkhead", "Resolve", "Retry", "Balance", "InstanceHealth", "Attempt"),
        because="one span, one metric and one decision record per logical call, refusals included",
        make=lambda inner, parts: Observe(
            inner,
            clock=parts.clock,
            observer=parts.observer,
            source=parts.source,
            tracer=parts.tracer,
            records=parts.records,
        ),
    ),
    Row(
        "Deadline",
        outside=("Bulkhead", "Resolve", "Retry", "Attempt", WIRE),
        because="every wait further in is bounded by the deadline that it writes; it cancels nothing itself",
        make=lambda inner, parts: Deadline(inner),
    ),
    Row(
        "ServiceBreaker",
        outside=("Bulkhead", "Retry"),
        because="an open circuit answers at once; it counts calls, not attempts, and a full bulkhead is neutral to it",
        make=lambda inner, parts: ServiceBreaker(inner, clock=parts.clock),
        needs=lambda policy: policy.breaker is not None,
    ),
    Row(
        "Bulkhead",
        outside=("Retry",),
        because="a retry must not take a second seat",
        make=lambda inner, parts: Bulkhead(inner),
        needs=lambda policy: policy.bulkhead is not None,
    ),
    Row(
        "Resolve",
        outside=("Retry", "Balance"),
        because="it waits only for a first list of instances, once per call, and never for the registry after that",
        make=lambda inner, parts: Resolve(inner, clock=parts.clock),
    ),
    Row(
        "Retry",
        outside=("Hedge", "Balance", "InstanceHealth", "Attempt"),
        because="each attempt may pick another instance, and each is judged by itself",
        make=lambda inner, parts: Retry(inner, clock=parts.clock, observer=parts.observer),
        needs=lambda policy: policy.retry is not None,
    ),
    Row(
        "Hedge",
        outside=("Balance", "InstanceHealth", "Attempt", WIRE),
        because="its second attempt picks another instance, and both are judged by themselves",
        make=lambda inner, parts: Hedge(inner, clock=parts.clock),
        needs=lambda policy: policy.hedging is not None,
    ),
    Row(
        "Balance",
        outside=("ResponseTime", "InstanceHealth", "Attempt", WIRE),
        because="it names the instance that the layers inside judge and call; it is released when the body closes",
        make=lambda inner, parts: Balance(inner, clock=parts.clock),
    ),
    Row(
        "ResponseTime",
        outside=("InstanceHealth", "Attempt", WIRE),
        because="it measures what the instance that was named takes, failures and timeouts included",
        make=lambda inner, parts: ResponseTime(inner, clock=parts.clock),
        needs=lambda policy: policy.measures_response_times,
    ),
    Row(
        "InstanceHealth",
        outside=("Attempt", WIRE),
        because="it must see a timeout of the attempt as a failure of the instance",
        make=lambda inner, parts: InstanceHealth(inner, clock=parts.clock, observer=parts.observer),
        needs=lambda policy: policy.outlier is not None,
    ),
    Row(
        "Attempt",
        outside=(WIRE,),
        because="the limit, the span and the headers of one try belong next to the wire",
        make=lambda inner, parts: Attempt(inner, clock=parts.clock, tracer=parts.tracer),
    ),
)


class Stack:
    """The compiled layers: one chain per set of switched-on sections, built on first use; holds no policy.

    `records` has the last 200 decision records, newest last.
    """

    __slots__ = ("_chains", "_parts", "_wire")

    def __init__(self, wire: Wire, parts: Parts) -> None:
        self._wire = wire
        self._parts = parts
        self._chains: dict[int, Service] = {}

    @property
    def records(self) -> deque[CallRecord]:
        return self._parts.records

    async def __call__(self, request: Request) -> Response:
        """Answer `request`, whose context was made by `ServiceMesh.new_context`. Raises subclasses of MeshError."""
        policy = request.context.policy
        chain = self._chains.get(policy.sections)
        if chain is None:
            chain = self._compile(policy)
        return await chain(request)

    def layers_of(self, policy: CallPolicy) -> tuple[str, ...]:
        """The names of the layers in the chain for `policy`, outermost first."""
        return (*(row.name for row in ORDER if row.needs(policy)), WIRE)

    def _compile(self, policy: CallPolicy) -> Service:
        chain: Service = self._wire
        for row in reversed(ORDER):
            if row.needs(policy):
                chain = row.make(chain, self._parts)
        self._chains[policy.sections] = chain
        return chain
