"""The metrics of a node's own HTTP server: prometheus-fastapi-instrumentator's ASGI middleware, set up safely.

What could go wrong with it and is ruled out here: two applications on one registry (the second would silently record
nothing), its gauge of requests in progress (always in the global registry), and methods invented by clients.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_fastapi_instrumentator import metrics
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware

from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.observability.gateway_metrics import METHODS, OTHER_METHOD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

    from fastapi_mesh.core.instance import ASGIApp

KNOWN_METHODS = frozenset(METHODS.values())


def measure_server(app: ASGIApp, registry: CollectorRegistry, *, exclude: Iterable[str] = ()) -> ASGIApp:
    """Wrap `app` so that its requests are counted and timed (`http_requests_total`, ...) by route template.

    `exclude` are paths that aren't counted. Raises ConfigurationError when `registry` already measures another
    application.
    """
    record = metrics.default(registry=registry)
    if record is None:
        raise ConfigurationError(
            "metrics_registry: it already has the HTTP metrics of another application, so this one's would be lost; "
            "give each application a mesh and a registry of its own, or set enable_metrics=False on one of them"
        )

    def with_known_method(info: metrics.Info) -> None:
        if info.method not in KNOWN_METHODS:
            info.method = OTHER_METHOD
        record(info)

    return PrometheusInstrumentatorMiddleware(
        app,
        registry=registry,
        excluded_handlers=[f"^{re.escape(path)}$" for path in exclude],
        instrumentations=[with_known_method],
    )
