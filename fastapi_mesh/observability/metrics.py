"""An observer that counts what happens in a mesh, for Prometheus."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fastapi_mesh.core.events import (
    BudgetExhausted,
    CallFinished,
    CircuitChanged,
    ExcessDropped,
    HandlerAbandoned,
    HandlerCancelled,
    InstanceEjected,
    InstanceHealthChanged,
    InstanceProbed,
    InstanceRestored,
    InstancesChanged,
    InstancesProbed,
    LimitChanged,
    LoopFailed,
    RequestShed,
    TrailersDropped,
)
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.observability.gateway_metrics import GatewayMetrics
from fastapi_mesh.observability.registry import duplicate, forget_process, own_registry, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.events import CallRecord, Event

CIRCUIT_STATES = {"closed": 0.0, "open": 1.0, "half-open": 2.0}
HEALTHS = ("unknown", "healthy", "degraded", "unhealthy")
CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""
MAX_SERVICES = 1000
"""Names beyond these many share the label `__other__`: a name made from a client's input must not fill the memory."""
OTHER = "__other__"


class _Bound(Protocol):
    """A metric with its labels set."""

    def inc(self, amount: float = 1.0) -> None: ...


class MeshMetrics:
    """The metrics of one mesh, as an Observer.

    `registry` is the CollectorRegistry they are written to; None makes one of its own, which also shows the process
    (CPU, memory, garbage collection). A happy call costs 2 us. Raises ConfigurationError when the registry already
    holds the metrics of another mesh.
    """

    def __init__(self, service_name: str | None, registry: object | None = None) -> None:
        if registry is None:
            registry = own_registry()
        if not isinstance(registry, CollectorRegistry):
            raise ConfigurationError(
                f"metrics_registry: expected a prometheus_client.CollectorRegistry, got {type(registry).__name__}"
            )
        self.service_name = service_name or ""
        self.registry = registry
        self._services: set[str] = set()
        self._children: dict[tuple[str, str, int | str], tuple[_Bound, Callable[[float], None]]] = {}
        self._attempts: dict[tuple[str, int | str | None], _Bound] = {}
        self._handlers: dict[type, Callable[..., None]] = {
            CallFinished: self._call_finished,
            CircuitChanged: self._circuit_changed,
            InstanceEjected: self._instance_ejected,
            InstanceRestored: self._instance_restored,
            InstancesChanged: self._instances_changed,
            InstanceProbed: self._instance_probed,
            InstanceHealthChanged: self._instance_health_changed,
            InstancesProbed: self._instances_probed,
            LimitChanged: self._limit_changed,
            RequestShed: self._request_shed,
            BudgetExhausted: self._budget_exhausted,
            HandlerCancelled: self._handler_cancelled,
            HandlerAbandoned: self._handler_abandoned,
            TrailersDropped: self._trailers_dropped,
            ExcessDropped: self._excess_dropped,
            LoopFailed: self._loop_failed,
        }
        try:
            self._declare()
        except ValueError as error:
            raise duplicate(error) from None

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    @cached_property
    def gateway(self) -> GatewayMetrics:
        """The metrics of a gateway on this mesh; they appear once a gateway asks for them."""
        return GatewayMetrics(self.registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text for a scrape and its content type; `accept` is the scraper's Accept header."""
        return render(self.registry, accept)

    def statistics(self) -> dict[str, int]:
        return {"services": len(self._services), "series": len(self._children) + len(self._attempts)}

    def close(self) -> None:
        """This process ends: in multiprocess mode its live gauges go. Safe to call twice."""
        forget_process()

    def _declare(self) -> None:
        registry = self.registry
        self._calls = Counter(
            "mesh_service_calls_total",
            "Logical calls to services; status is the HTTP status of the answer, or the reason why there is none.",
            ["source_service", "target_service", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "mesh_call_duration_seconds",
            "Time from the start of a logical call to its response head or failure, all attempts included.",
            ["source_service", "target_service"],
            buckets=CALL_BUCKETS,
            registry=registry,
        )
        self._attempted = Counter(
            "mesh_attempts_total",
            "Attempts made for calls; status is the HTTP status of the answer, or the reason why there is none.",
            ["target_service", "status"],
            registry=registry,
        )
        self._retries = Counter(
            "mesh_retries_total", "Attempts that followed a failed one.", ["target_service"], registry=registry
        )
        self._circuits = Gauge(
            "mesh_circuit_breaker_state",
            "State of the circuit breaker of a service: 0 closed, 1 open, 2 half-open.",
            ["service"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._instances = Gauge(
            "mesh_instances",
            "Known instances of a service.",
            ["service"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._ejections = Counter(
            "mesh_ejections_total", "Ejections of failing instances.", ["service"], registry=registry
        )
        self._restorations = Counter(
            "mesh_restorations_total", "Ejected instances that came back.", ["service"], registry=registry
        )
        self._probes = Counter(
            "mesh_probes_total",
            "Active health probes of instances; result is healthy, degraded or failed.",
            ["service", "result"],
            registry=registry,
        )
        self._health_changes = Counter(
            "mesh_probe_verdicts_total",
            "Changes of what probes think of an instance; health is healthy, degraded or unhealthy.",
            ["service", "health"],
            registry=registry,
        )
        self._probed = Gauge(
            "mesh_probed_instances",
            "Instances that are probed, by what probes think of them: unknown, healthy, degraded or unhealthy.",
            ["service", "health"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._limits = Gauge(
            "mesh_concurrency_limit",
            "Adaptive limit of the calls to a service at the same time.",
            ["service"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._inbound_limit = Gauge(
            "mesh_inbound_concurrency_limit",
            "Adaptive limit of the requests answered at the same time; 0 where there is none.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._shed = Counter(
            "mesh_requests_shed_total",
            "Requests refused because too many were being answered; priority is low, normal or high.",
            ["priority"],
            registry=registry,
        )
        self._exhausted = Counter(
            "mesh_retry_budget_exhausted_total",
            "Retries that were wanted and not made, because the budget had no room.",
            ["service"],
            registry=registry,
        )
        self._cancelled = Counter(
            "mesh_handlers_cancelled_total",
            "Handlers of this node that were cancelled; cause is deadline, disconnect or shutdown.",
            ["cause"],
            registry=registry,
        )
        self._abandoned = Counter(
            "mesh_handlers_abandoned_total",
            "Handlers of this node that work on though nobody waits; cause is deadline, disconnect or shutdown.",
            ["cause"],
            registry=registry,
        )
        self._trailers = Counter(
            "mesh_trailers_dropped_total",
            "Responses whose trailer fields were not passed on.",
            ["service"],
            registry=registry,
        )
        self._excess = Counter(
            "mesh_excess_dropped_total",
            "Connections closed because an instance sent more than its answer has, or bytes that nobody asked for.",
            ["service"],
            registry=registry,
        )
        self._loops = Counter("mesh_loop_failures_total", "Failures of background loops.", ["loop"], registry=registry)

    def _label(self, service: str) -> str:
        if service in self._services:
            return service
        if len(self._services) >= MAX_SERVICES:
            return OTHER
        self._services.add(service)
        self._circuits.labels(service)  # shown as closed from the first call on
        return service

    def _call_finished(self, event: CallFinished) -> None:
        record = event.record
        status = record.status
        outcome: int | str = (record.reason or record.outcome) if status is None else status
        bound = self._children.get((record.source, record.service, outcome))
        if bound is None:
            bound = self._bind(record, outcome)
        count, observe = bound
        count.inc()
        observe(record.duration)
        attempts = record.attempts
        for attempt in attempts:
            result = attempt.error if attempt.status is None else attempt.status
            counter = self._attempts.get((record.service, result))
            if counter is None:
                counter = self._bind_attempt(record.service, result)
            counter.inc()
        if len(attempts) > 1:
            self._retries.labels(self._label(record.service)).inc(len(attempts) - 1)

    def _bind(self, record: CallRecord, outcome: int | str) -> tuple[_Bound, Callable[[float], None]]:
        target = self._label(record.service)
        bound = (
            self._calls.labels(record.source, target, str(outcome)),
            self._durations.labels(record.source, target).observe,
        )
        if target is not OTHER:
            self._children[record.source, record.service, outcome] = bound
        return bound

    def _bind_attempt(self, service: str, result: int | str | None) -> _Bound:
        target = self._label(service)
        counter = self._attempted.labels(target, str(result))
        if target is not OTHER:
            self._attempts[service, result] = counter
        return counter

    def _circuit_changed(self, event: CircuitChanged) -> None:
        self._circuits.labels(self._label(event.service)).set(CIRCUIT_STATES[event.after])

    def _instance_ejected(self, event: InstanceEjected) -> None:
        self._ejections.labels(self._label(event.service)).inc()

    def _instance_restored(self, event: InstanceRestored) -> None:
        self._restorations.labels(self._label(event.service)).inc()

    def _instances_changed(self, event: InstancesChanged) -> None:
        self._instances.labels(self._label(event.service)).set(event.total)

    def _instance_probed(self, event: InstanceProbed) -> None:
        self._probes.labels(self._label(event.service), event.result).inc()

    def _instance_health_changed(self, event: InstanceHealthChanged) -> None:
        self._health_changes.labels(self._label(event.service), event.after).inc()

    def _instances_probed(self, event: InstancesProbed) -> None:
        for health in HEALTHS:
            self._probed.labels(self._label(event.service), health).set(event.counts.get(health, 0))

    def _limit_changed(self, event: LimitChanged) -> None:
        if event.service is None:
            self._inbound_limit.set(event.limit)
        else:
            self._limits.labels(self._label(event.service)).set(event.limit)

    def _request_shed(self, event: RequestShed) -> None:
        self._shed.labels(event.priority).inc()

    def _budget_exhausted(self, event: BudgetExhausted) -> None:
        self._exhausted.labels(self._label(event.service)).inc()

    def _handler_cancelled(self, event: HandlerCancelled) -> None:
        self._cancelled.labels(event.cause).inc()

    def _handler_abandoned(self, event: HandlerAbandoned) -> None:
        self._abandoned.labels(event.cause).inc()

    def _trailers_dropped(self, event: TrailersDropped) -> None:
        self._trailers.labels(self._label(event.service)).inc()

    def _excess_dropped(self, event: ExcessDropped) -> None:
        self._excess.labels(self._label(event.service)).inc()

    def _loop_failed(self, event: LoopFailed) -> None:
        self._loops.labels(event.name).inc()
