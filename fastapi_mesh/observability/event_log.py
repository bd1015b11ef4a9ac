"""An observer that logs what changes: one line when a circuit or an instance changes its state, none per call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi_mesh.core.events import (
    CircuitChanged,
    ExcessDropped,
    InstanceEjected,
    InstanceHealthChanged,
    InstanceRestored,
    InstancesChanged,
)

if TYPE_CHECKING:
    from fastapi_mesh.core.events import Event

logger = logging.getLogger("fastapi_mesh.events")


def log_changes(event: Event) -> None:
    """An `Observer`. Calls themselves are in the records and metrics, failing loops are logged by their supervisor."""
    match event:
        case CircuitChanged(service=service, before=before, after="open"):
            logger.warning("the circuit of %s is open (it was %s): calls to it are refused at once", service, before)
        case CircuitChanged(service=service, before=before, after=after):
            logger.info("the circuit of %s is %s (it was %s)", service, after, before)
        case InstanceEjected(service=service, instance=instance, seconds=seconds):
            logger.warning("%s of %s keeps failing; it gets no calls for %.0f s", instance, service, seconds)
        case InstanceRestored(service=service, instance=instance):
            logger.info("%s of %s is back", instance, service)
        case InstancesChanged(service=service, added=added, removed=removed, total=total):
            gone = f", gone: {', '.join(removed)}" if removed else ""
            new = f", new: {', '.join(added)}" if added else ""
            logger.info("%s has %d instance%s%s%s", service, total, "" if total == 1 else "s", new, gone)
        case ExcessDropped(service=service, instance=instance, first=True):
            logger.warning(
                "%s at %s sends more than its answers say (a wrong Content-Length?); what is over is dropped and the "
                "connection closed; said once, counted in mesh_excess_dropped_total",
                service,
                instance,
            )
        case InstanceHealthChanged(service=service, instance=instance, before="unknown", after="healthy", why=why):
            logger.debug("%s of %s is healthy (%s)", instance, service, why)  # as it should be, for each there is
        case InstanceHealthChanged(service=service, instance=instance, before=before, after=after, why=why):
            level = logging.WARNING if after == "unhealthy" else logging.INFO
            logger.log(level, "%s of %s is %s, it was %s (%s)", instance, service, after, before, why)
        case _:
            return
