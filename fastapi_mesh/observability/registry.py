"""The Prometheus registry of one mesh: its own by default, readable as text, and whole across worker processes."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from fastapi_mesh.exceptions import ConfigurationError

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder through which worker processes share their values; read by prometheus_client when it is imported.
"""


def is_multiprocess() -> bool:
    """Whether worker processes share their values through a folder."""
    return MULTIPROCESS in os.environ


def own_registry() -> CollectorRegistry:
    """A registry of its own, with what prometheus_client's global one shows of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def duplicate(error: ValueError) -> ConfigurationError:
    """What to say when a registry already has these metrics."""
    return ConfigurationError(
        f"metrics_registry: this registry already holds the metrics of another mesh ({error}); "
        "give each mesh a CollectorRegistry of its own, or none"
    )


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The text of all metrics and its content type: OpenMetrics when `accept` asks for it, else Prometheus text.

    In multiprocess mode it is read from the shared folder, so any worker answers for all.
    """
    encode, content_type = choose_encoder(accept)
    if is_multiprocess():
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # prometheus_client leaves it untyped
    return encode(registry), content_type


def render_workers(accept: str = "") -> tuple[bytes, str]:
    """What the worker processes of this one have counted together; see `render`."""
    return render(CollectorRegistry(), accept)


def forget_process(pid: int | None = None) -> None:
    """In multiprocess mode: this worker, or the one that was `pid`, ends; its live gauges are not shown any more."""
    if is_multiprocess():
        mark_process_dead(os.getpid() if pid is None else pid)  # type: ignore[no-untyped-call] # prometheus_client leaves it untyped
