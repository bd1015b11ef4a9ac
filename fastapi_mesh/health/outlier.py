"""Ejects an instance that keeps failing, and lets it back through one trial call (Linkerd's failure accrual)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.core.events import InstanceEjected, InstanceRestored

if TYPE_CHECKING:
    from fastapi_mesh.config.policies import OutlierPolicy
    from fastapi_mesh.core.events import Observer
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.state import ServiceState


def note_success(state: ServiceState, instance: InstanceState, observer: Observer) -> None:
    """An attempt went well: the row of failures ends, and an ejected instance is back with a clean slate.

    Where all were ejected, what ailed them was common to them and is over, so the others get their trial calls at once.
    One left alone with the load of all until their times are over would fail under it, and so would the next: a cascade
    that outlives its cause (metastable failures, Bronson et al., HotOS 2021).
    """
    instance.failures_in_row = 0
    if instance.ejected_until:
        if not state.candidates:
            for each in state.instances.value or ():
                if each.ejected_until:
                    each.ejected_until, each.ejections = each.ejected_at, 0
        instance.ejected_until = 0.0
        instance.ejections = 0
        instance.trial = False
        state.refresh()
        observer(InstanceRestored(state.name, instance.instance.id))


def note_failure(
    state: ServiceState,
    instance: InstanceState,
    policy: OutlierPolicy,
    now: float,
    observer: Observer,
    *,
    refused: bool = False,
) -> None:
    """An attempt failed. Ejects after `consecutive_failures`; a failed trial ejects again, for longer.

    With `refused` nothing listens at the instance's port any more: one such failure is enough, and its ejection is
    short, since a process that is started again may be back at any time.

    When one more is ejected and half of all are out, the one that has been out longest gets its trial call at once:
    what it no longer carries, the others do, and under high load they may fail of just that.
    """
    instance.failures_in_row += 1
    if instance.ejected_until:
        # The trial call, or one let through because no instance was left. A straggler that began before the ejection
        # must not prolong it: only what fails after the time is over, or in its place, counts.
        if not instance.trial and now < instance.ejected_until:
            instance.ejected_at = now  # the longest-ejected goes first when none is left, so this one goes last
            return
    elif refused:
        pass
    elif instance.failures_in_row < policy.consecutive_failures:
        return
    else:
        _relieve(state)
    instance.ejections += 1
    base = policy.refused_ejection if refused else policy.base_ejection
    seconds = min(policy.max_ejection, base * instance.ejections)
    instance.ejected_at = now
    instance.ejected_until = now + seconds
    instance.trial = False
    state.refresh()
    observer(InstanceEjected(state.name, instance.instance.id, seconds))


def _relieve(state: ServiceState) -> None:
    """Make the longest-ejected instance due for its trial; should that fail, it is ejected no longer than before."""
    everyone = state.instances.value or ()
    ejected = [each for each in everyone if each.ejected_until]
    waiting = [each for each in ejected if each.may_be_tried]
    if waiting and 2 * (len(ejected) + 1) >= len(everyone):
        longest = min(waiting, key=lambda each: each.ejected_at)
        longest.ejected_until = longest.ejected_at
        longest.ejections = max(0, longest.ejections - 1)


def note_nothing(state: ServiceState, instance: InstanceState) -> None:
    """The attempt says nothing about the instance (the caller went away): a trial is given back."""
    if instance.trial:
        instance.trial = False
        state.refresh()
