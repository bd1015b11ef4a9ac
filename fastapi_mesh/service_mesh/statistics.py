"""What `get_metrics` returns: calls, success and latency of this process, in total and per called service."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.core.state import ServiceState


@dataclass(frozen=True, slots=True)
class CallStatistics:
    """Calls since the start. `success_rate` is 0 to 100 (100.0 without calls), `avg_latency` milliseconds.

    A call is successful when its answer is below 500. Latency is the time to the response head, retries included.
    """

    total_calls: int = 0
    failed_calls: int = 0
    retries: int = 0
    success_rate: float = 100.0
    avg_latency: float = 0.0


@dataclass(frozen=True, slots=True)
class MeshStatistics(CallStatistics):
    """The same for all services together, and `services` for each."""

    services: Mapping[str, CallStatistics] = field(default_factory=lambda: MappingProxyType({}))


def _figures(calls: int, failures: int, retries: int, latency: float) -> tuple[int, int, int, float, float]:
    if not calls:
        return 0, 0, 0, 100.0, 0.0
    return calls, failures, retries, 100.0 * (calls - failures) / calls, 1000.0 * latency / calls


def gather(states: Iterable[ServiceState]) -> MeshStatistics:
    """Sum the counters of `states`."""
    seen = {state.name: state.statistics for state in states}
    each = {
        name: CallStatistics(*_figures(one.calls, one.failures, one.retries, one.latency)) for name, one in seen.items()
    }
    total = _figures(
        sum(one.calls for one in seen.values()),
        sum(one.failures for one in seen.values()),
        sum(one.retries for one in seen.values()),
        sum(one.latency for one in seen.values()),
    )
    return MeshStatistics(*total, services=MappingProxyType(each))
