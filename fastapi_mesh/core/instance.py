"""An instance of a service: where it is, and what we have seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

Health = Literal["healthy", "degraded", "unhealthy", "unknown"]
_RANKS: Mapping[Health, int] = MappingProxyType({"unknown": 0, "healthy": 1, "degraded": 2, "unhealthy": 3})
"""Of the two that judge an instance, the registry and our own probes, the one that says worse is believed (Envoy)."""
Scheme = Literal["http", "https", "h2", "h2c", "asgi"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, as a registry knows it.

    `scheme` says how it is reached: `http` and `https` are HTTP/1.1, `h2` and `h2c` HTTP/2 over TLS and plain, `asgi`
    an application in this process (`app`). `base_path` is put before every target, b"" for none.
    """

    service: str
    id: str
    address: str
    port: int
    scheme: Scheme = "http"
    health: Health = "healthy"
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    version: str | None = None
    zone: str | None = None
    base_path: bytes = b""
    health_check: str | None = None
    app: ASGIApp | None = field(default=None, compare=False, repr=False)

    @property
    def authority(self) -> bytes:
        """The `Host` header for this instance (RFC 9110 section 7.2)."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        default = {"http": 80, "https": 443, "h2": 443, "h2c": 80}.get(self.scheme)
        return host.encode() if self.port == default else f"{host}:{self.port}".encode()


class InstanceState:
    """What this process has seen of one instance: calls in flight, failures, ejection, what probes said.

    Times are the clock's monotonic seconds. `ejected_until` is 0.0 for an instance that is not ejected; when it has
    passed, one call (`trial`) decides whether the instance comes back. `verdict` is what our probes say of it,
    `unknown` where there are none (`health/probe.py`).

    `weight` is its share of the calls at the moment, `full_weight` the one that its registration and the policy give
    it; `joined` is when it came or came back, minus infinity for one that was there before. `succeeded` and `failed`
    count attempts. `response_time` is a moving average in seconds, negative until the instance has answered, as of
    `answered_at` (0.0: never looked at); it is kept only where instances are picked by it.
    """

    __slots__ = (
        "answered_at",
        "current_weight",
        "ejected_at",
        "ejected_until",
        "ejections",
        "failed",
        "failures_in_row",
        "full_weight",
        "in_flight",
        "instance",
        "joined",
        "rate_ejections",
        "response_time",
        "succeeded",
        "trial",
        "verdict",
        "weight",
    )

    def __init__(self, instance: Instance, weight: float = 1.0) -> None:
        self.instance = instance
        self.weight = weight
        self.full_weight = weight
        self.joined = -inf
        self.in_flight = 0
        self.current_weight = 0.0
        self.failures_in_row = 0
        self.ejections = 0
        self.ejected_at = 0.0
        self.ejected_until = 0.0
        self.trial = False
        self.succeeded = 0
        self.failed = 0
        self.rate_ejections = 0
        self.response_time = -1.0
        self.answered_at = 0.0
        self.verdict: Health = "unknown"

    @property
    def health(self) -> Health:
        """The worse of what the registry and our probes say; `unknown` only where neither says anything."""
        registered = self.instance.health
        if self.verdict == "unknown":  # the usual case: it is not probed
            return registered
        return self.verdict if _RANKS[self.verdict] > _RANKS[registered] else registered

    @property
    def may_be_tried(self) -> bool:
        """Whether a call may find out if this ejected instance is back: not while another does, nor while probes or
        the registry still say that it is not.
        """
        return self.ejected_until > 0.0 and not self.trial and self.health != "unhealthy"

    def as_seen(self) -> Instance:
        """The instance as calls see it: one that is ejected is `unhealthy`, whatever else is said of it."""
        health = "unhealthy" if self.ejected_until else self.health
        return self.instance if health == self.instance.health else replace(self.instance, health=health)
