"""Ejects an instance that fails much more often than the others: Envoy's success rate outlier detection.

Nothing runs for it while all is well: an interval begins with a failure, and is judged at the first failure after it.
An instance that does badly at so many requests fails often enough for that.
"""

from __future__ import annotations

from math import floor, sqrt
from typing import TYPE_CHECKING

from fastapi_mesh.core.events import InstanceEjected
from fastapi_mesh.core.state import RateWindow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.config.outlier import SuccessRatePolicy
    from fastapi_mesh.config.policies import OutlierPolicy
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.state import ServiceState


def note_failed_attempt(state: ServiceState, policy: OutlierPolicy, now: float, observer: Observer) -> None:
    """An attempt has failed (and was counted in `InstanceState.failed`): judge the interval if it is over."""
    rule = policy.success_rate
    if rule is None:
        return
    base = state.family[0]  # what instances do is the same for all routes
    window = base.rates
    if window is not None and now < window.began + rule.interval:
        return
    if window is not None and now < window.began + 2 * rule.interval:  # a longer one says little of now
        _judge(base, policy, rule, _rates(window, rule), now, observer)
    everyone = state.instances.value or ()
    base.rates = RateWindow(now, {each: (each.succeeded, each.failed) for each in everyone})


def _rates(window: RateWindow, rule: SuccessRatePolicy) -> dict[InstanceState, float]:
    """The success rate of each instance that had enough requests in the interval."""
    rates = {}
    for instance, (succeeded, failed) in window.before.items():
        good = instance.succeeded - succeeded
        count = good + instance.failed - failed
        if count >= rule.min_requests:
            rates[instance] = good / count
    return rates


def lowest_accepted(rates: Mapping[InstanceState, float], rule: SuccessRatePolicy) -> float:
    """The success rate below which an instance is an outlier; 0.0, which no rate is below, with too few instances."""
    count = len(rates)
    if count < rule.min_instances:
        return 0.0
    mean = sum(rates.values()) / count
    deviation = sqrt(sum((each - mean) ** 2 for each in rates.values()) / count)
    return min(mean - rule.stdev_factor * deviation, mean - rule.margin)


def _judge(
    state: ServiceState,
    policy: OutlierPolicy,
    rule: SuccessRatePolicy,
    rates: Mapping[InstanceState, float],
    now: float,
    observer: Observer,
) -> None:
    """Eject the outliers, the worst first, as long as no more than allowed are out for any reason."""
    lowest = lowest_accepted(rates, rule)
    everyone = state.instances.value or ()
    room = max(1, floor(rule.max_ejected * len(everyone) + 1e-9)) - sum(each.ejected_until > 0 for each in everyone)
    ejected = []
    for instance, rate in sorted(rates.items(), key=lambda item: item[1]):
        if instance.ejected_until or instance not in everyone:
            continue
        if rate >= lowest:
            instance.rate_ejections = max(0, instance.rate_ejections - 1)  # Envoy forgives one per interval
        elif room > 0:
            room -= 1
            instance.rate_ejections += 1
            instance.ejections = instance.rate_ejections  # a trial that fails goes on from there
            seconds = min(policy.max_ejection, policy.base_ejection * instance.ejections)
            instance.ejected_at = now
            instance.ejected_until = now + seconds
            ejected.append((instance, seconds))
    if ejected:
        state.refresh()
        for instance, seconds in ejected:
            observer(InstanceEjected(state.name, instance.instance.id, seconds))
