"""The states of all services that this mesh calls, fed by discovery."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from fastapi_mesh.balancing import new_picker
from fastapi_mesh.balancing.preference import new_preference
from fastapi_mesh.core.instance import Instance, InstanceState
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.layers.bulkhead import SeatQueue
from fastapi_mesh.layers.retry import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.balancing.preference import Place
    from fastapi_mesh.config.policies import (
        BalancingPolicy,
        BreakerPolicy,
        BulkheadPolicy,
        CallPolicy,
        RetryPolicy,
        ServicePolicy,
    )
    from fastapi_mesh.core.clock import Clock
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.state import Prefer
    from fastapi_mesh.discovery.directory import Directory
    from fastapi_mesh.health.probe import Probes
    from fastapi_mesh.layers.breaker import PyBreaker
    from fastapi_mesh.service_mesh.policy_table import PolicyTable
    from fastapi_mesh.service_mesh.shared_circuits import SharedCircuits


class StateTable:
    """One ServiceState per called service, made on the first call.

    The instances follow discovery; what was seen of an instance (calls in flight, failures) stays with it as long as
    its address does. A changed policy replaces only the machine of the section that changed.
    """

    def __init__(
        self,
        directory: Directory,
        policies: PolicyTable,
        *,
        clock: Clock,
        observer: Observer,
        probes: Probes,
        place: Place,
        circuits: SharedCircuits | None = None,
    ) -> None:
        self._circuits = circuits
        self._directory = directory
        self._policies = policies
        self._clock = clock
        self._observer = observer
        self._states: dict[str, ServiceState] = {}
        self._sources: dict[str, tuple[Live[tuple[Instance, ...]], Callable[[], None]]] = {}
        self._probes = probes
        self._place = place
        probes.on_change(self._health_changed)
        policies.on_change(self._policy_changed)
        directory.on_end(self._forget)

    def all(self) -> tuple[ServiceState, ...]:
        """The states made so far."""
        return tuple(self._states.values())

    def get(self, service: str) -> ServiceState:
        """The state of `service`; its instances are watched from now on."""
        live = self._directory.live(service)
        state = self._states.get(service)
        if state is None:
            state = self._states[service] = self._make(service)
        source = self._sources.get(service)
        if source is None or source[0] is not live:
            self._follow(service, state, live)
        return state

    def _forget(self, service: str) -> None:
        """Nobody has called `service` for long: what was seen of it goes with its watch."""
        source = self._sources.pop(service, None)
        if source is not None:
            source[1]()
        self._probes.forget(service)
        state = self._states.get(service)
        if state is not None and not any(each.in_flight for each in state.instances.value or ()):
            _prefer(state, None)
            del self._states[service]

    def rest(self) -> None:
        """Nothing is called any more: end what waits for a time to come, so that a next start begins with all awake."""
        for state in self._states.values():
            if state.prefer is not None:
                state.prefer.close()
                for each in state.instances.value or ():
                    each.joined = -inf
                state.refresh()

    def _make(self, service: str) -> ServiceState:
        policy = self._policies.policy_of(service)
        state = ServiceState(
            service,
            instances=Live[tuple[InstanceState, ...]](),
            picker=new_picker(policy.load_balancing, now=self._clock.now),
        )
        state.health_required = policy.load_balancing.health_check_required
        self._equip(state, None, policy)
        return state

    def _follow(self, service: str, state: ServiceState, live: Live[tuple[Instance, ...]]) -> None:
        if service in self._sources:
            self._sources.pop(service)[1]()

        def publish(instances: tuple[Instance, ...]) -> None:
            self._publish(state, instances)

        self._sources[service] = (live, live.subscribe(publish))
        if live.value is not None:
            publish(live.value)

    def _publish(self, state: ServiceState, instances: tuple[Instance, ...]) -> None:
        policy = self._policies.policy_of(state.name)
        known = {each.instance.id: each for each in state.instances.value or ()}
        following = []
        for instance in instances:
            seen = known.get(instance.id)
            if seen is None or not _same_process(seen.instance, instance):
                seen = InstanceState(instance)
            seen.instance = instance
            following.append(seen)
        state.instances.publish(tuple(following))
        self._probes.follow(state, policy.health_check)
        self._weigh(state, policy.load_balancing)

    def _weigh(self, state: ServiceState, policy: BalancingPolicy) -> None:
        """Work out the share of each instance, and who gets calls at all."""
        everyone = state.instances.value or ()
        for each in everyone:
            each.weight = each.full_weight = _weight(each, policy)
        if state.prefer is None:
            _prefer(state, new_preference(policy, self._place, everyone, self._clock, state.refresh))
        state.refresh()

    def _health_changed(self, state: ServiceState, instance: InstanceState, before: str) -> None:
        """Probes think differently of an instance. Most often it is the first good word, which changes no call."""
        if {before, instance.health} <= _WELL and not state.health_required:
            return
        weight = _weight(instance, self._policies.policy_of(state.name).load_balancing)
        instance.weight = instance.full_weight = weight
        state.refresh()

    def _policy_changed(self, service: str, before: ServicePolicy, after: ServicePolicy) -> None:
        state = self._states.get(service)
        if state is None:
            return
        self._equip(state, before, after)
        if before.health_check != after.health_check and service in self._sources:
            self._probes.follow(state, after.health_check)
            self._weigh(state, after.load_balancing)

    def _equip(self, state: ServiceState, before: ServicePolicy | None, after: ServicePolicy) -> None:
        """Make the machines whose section is new or has changed; variants with a section of their own keep theirs."""
        if before is None or before.circuit_breaker != after.circuit_breaker:
            breaker = self._new_breaker(state.name, after.circuit_breaker)
            for each in _sharing(state, "circuit_breaker"):
                each.breaker = breaker
        if before is None or before.bulkhead != after.bulkhead:
            seats = self._new_seats(state.name, after.bulkhead)
            for each in _sharing(state, "bulkhead"):
                each.seats = seats
        if before is None or before.retry != after.retry:
            budget = self._new_budget(after.retry)
            for each in _sharing(state, "retry"):
                each.budget = budget
        if before is not None and before.load_balancing != after.load_balancing:
            picker = new_picker(after.load_balancing, now=self._clock.now)
            _prefer(state, None)  # `_weigh` makes another
            for each in state.family:
                each.picker = picker
                each.health_required = after.load_balancing.health_check_required
            self._weigh(state, after.load_balancing)

    def equip_variant(self, variant: ServiceState, before: CallPolicy | None, after: CallPolicy, label: str) -> None:
        """Give a variant the machines of its own sections that are new or have changed; `label` is for its circuit."""
        own = variant.own
        if "circuit_breaker" in own and (before is None or before.breaker != after.breaker):
            variant.breaker = self._new_breaker(variant.name, after.breaker, label)
        if "bulkhead" in own and (before is None or before.bulkhead != after.bulkhead):
            variant.seats = self._new_seats(variant.name, after.bulkhead)
        if "retry" in own and (before is None or before.retry != after.retry):
            variant.budget = self._new_budget(after.retry)

    def _new_breaker(self, name: str, policy: BreakerPolicy | None, label: str | None = None) -> PyBreaker | None:
        if policy is None:
            return None
        from fastapi_mesh.layers.breaker import PyBreaker  # imported late: see there

        breaker = PyBreaker(name, policy, clock=self._clock, observer=self._observer, label=label)
        if policy.shared is not None and self._circuits is not None:
            self._circuits.share(policy.shared, label or name, breaker)
        return breaker

    def _new_seats(self, name: str, policy: BulkheadPolicy | None) -> SeatQueue | None:
        return None if policy is None else SeatQueue(name, policy, clock=self._clock, observer=self._observer)

    def _new_budget(self, policy: RetryPolicy | None) -> RetryBudget | None:
        if policy is None:
            return None
        return RetryBudget(policy.budget_ratio, policy.budget_min_per_second, clock=self._clock)


def _prefer(state: ServiceState, preference: Prefer | None) -> None:
    """Put `preference` in the place of the one that a service's state has."""
    if state.prefer is not None:
        state.prefer.close()
    for each in state.family:
        each.prefer = preference


def _sharing(state: ServiceState, section: str) -> list[ServiceState]:
    """The states of a family that have no machine of their own for `section`."""
    return [each for each in state.family if section not in each.own]


_WELL = frozenset({"unknown", "healthy"})
"""What makes no difference to calls, unless somebody must have said that an instance is well."""


def _weight(seen: InstanceState, policy: BalancingPolicy) -> float:
    instance = seen.instance
    weight = instance.weight * policy.weights.get(instance.id, 1.0)
    return weight / 2 if seen.health == "degraded" else weight


def _same_process(seen: Instance, now: Instance) -> bool:
    """Whether what was seen of one still holds for the other: same place, and no new start announced."""
    return (seen.address, seen.port, seen.scheme, seen.metadata.get("started")) == (
        now.address,
        now.port,
        now.scheme,
        now.metadata.get("started"),
    )
