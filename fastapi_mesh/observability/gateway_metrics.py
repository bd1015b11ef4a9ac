"""The metrics of a gateway: requests, how long they took, and which answers the gateway made itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from fastapi_mesh.observability.cache_metrics import CacheMetrics
from fastapi_mesh.observability.registry import duplicate
from fastapi_mesh.observability.websocket_metrics import WebSocketMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from fastapi_mesh.observability.websocket_metrics import WebSocketTally

METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
}
"""RFC 9110 section 9 and RFC 5789. Any other method is `OTHER`: clients can invent as many as they like."""
OTHER_METHOD = "OTHER"
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds."""


class GatewayMetrics:
    """Counts the requests of one gateway. `path` is always a route's template, so its values are few."""

    __slots__ = (
        "_authentications",
        "_bound",
        "_bound_authentications",
        "_durations",
        "_local",
        "_mirrored",
        "_rate_limit_failures",
        "_rate_limited",
        "_reload_ok",
        "_reloads",
        "_requests",
        "_websockets",
        "cache",
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bound_authentications: dict[tuple[str, str], Callable[[], None]] = {}
        self._bound: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        try:
            self._requests = Counter(
                "gateway_requests_total",
                "Requests to the gateway, by the status that was sent to the client.",
                ["method", "path", "status"],
                registry=registry,
            )
            self._durations = Histogram(
                "gateway_request_duration_seconds",
                "Time from the arrival of a request until its response was sent.",
                ["method", "path"],
                buckets=REQUEST_BUCKETS,
                registry=registry,
            )
            self._local = Counter(
                "gateway_local_responses_total",
                "Responses that the gateway made itself instead of passing on a service's, by reason.",
                ["path", "reason"],
                registry=registry,
            )
            self._mirrored = Counter(
                "gateway_mirrored_requests_total",
                "Copies of requests for a mirror: sent, left-out (too many under way), streamed (body not at hand).",
                ["path", "result"],
                registry=registry,
            )
            self._websockets = WebSocketMetrics(registry)
            self.cache = CacheMetrics(registry)
            self._reloads = Counter(
                "gateway_config_reloads_total",
                "Reloads of the gateway's settings: applied, unchanged (nothing was different), or refused.",
                ["result"],
                registry=registry,
            )
            self._reload_ok = Gauge(
                "gateway_config_last_reload_successful",
                "1, or 0 while the last reload was refused; with workers: 0 where any worker refused it.",
                registry=registry,
                multiprocess_mode="livemin",
            )
            self._reload_ok.set(1)
            self._authentications = Counter(
                "gateway_authentications_total",
                "Credentials looked at, by provider (none: there was none) and result: accepted, invalid, expired, "
                "missing, ambiguous, forbidden (a scope or role is missing, or another site's page uses a session), "
                "unavailable (the issuer can't be asked), login, login-failed (a browser came back from logging in).",
                ["provider", "result"],
                registry=registry,
            )
            self._rate_limited = Counter(
                "gateway_rate_limited_total",
                "Requests refused by a rate limit, by route and by the name of the limit that was used up.",
                ["path", "limit"],
                registry=registry,
            )
            self._rate_limit_failures = Counter(
                "gateway_rate_limit_failures_total",
                "Requests that could not be counted in the shared storage, by what was done: open, closed or local.",
                ["outcome"],
                registry=registry,
            )
        except ValueError as error:
            raise duplicate(error) from None

    def request(self, method: bytes, path: str, status: int, seconds: float) -> None:
        """One request was answered: `path` is the route's template (or `__unmatched__`). 1 us."""
        name = METHODS.get(method, OTHER_METHOD)
        bound = self._bound.get((name, path, status))
        if bound is None:
            bound = self._bound[name, path, status] = (
                self._requests.labels(name, path, str(status)).inc,
                self._durations.labels(name, path).observe,
            )
        bound[0]()
        bound[1](seconds)

    def reloaded(self, result: str) -> None:
        """The settings were to be reloaded; `result` is applied, unchanged or refused."""
        self._reloads.labels(result).inc()
        self._reload_ok.set(result != "refused")

    def local(self, path: str, reason: str) -> None:
        """The answer to a request was the gateway's own; `reason` is the slug that `x-mesh-reason` carries."""
        self._local.labels(path, reason).inc()

    def authentication(self, provider: str, result: str) -> None:
        """A credential was looked at; `provider` is a provider's name, or "none". 0.2 us."""
        count = self._bound_authentications.get((provider, result))
        if count is None:
            count = self._authentications.labels(provider, result).inc
            self._bound_authentications[provider, result] = count
        count()

    def mirrored(self, path: str, result: str) -> None:
        """A request was to be copied to a mirror: `sent`, `left-out` or `streamed`."""
        self._mirrored.labels(path, result).inc()

    def websockets(self, path: str) -> WebSocketTally:
        """What counts the WebSockets of a route."""
        return self._websockets.of(path)

    def rate_limited(self, path: str, limit: str) -> None:
        """A request was refused because `limit` (its configured name) was used up."""
        self._rate_limited.labels(path, limit).inc()

    def rate_limit_failed(self, outcome: str) -> None:
        """The storage of rate limits gave no answer; `outcome` is what was done: open, closed or local."""
        self._rate_limit_failures.labels(outcome).inc()
