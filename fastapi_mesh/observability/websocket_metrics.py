"""The metrics of a gateway's WebSockets: open ones, messages, their size, and the codes they were closed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry

_NAMED = frozenset({*range(1000, 1004), *range(1005, 1015)})


class Inc(Protocol):
    """A counter's method, its labels set."""

    def __call__(self, amount: float = 1) -> None: ...


class WebSocketMetrics:
    """Counts the WebSockets of one gateway. `path` is always a route's template, so its values are few."""

    __slots__ = ("_bytes", "_closed", "_messages", "_open", "_tallies")

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tallies: dict[str, WebSocketTally] = {}
        self._open = Gauge(
            "gateway_websockets_open",
            "WebSockets that are open now.",
            ["path"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._messages = Counter(
            "gateway_websocket_messages_total",
            "Messages of WebSockets; direction is whose they were: client or service.",
            ["path", "direction"],
            registry=registry,
        )
        self._bytes = Counter(
            "gateway_websocket_message_size_total",
            "Size of these messages: bytes, of text messages characters.",
            ["path", "direction"],
            registry=registry,
        )
        self._closed = Counter(
            "gateway_websockets_closed_total",
            "WebSockets that have ended, by the close code; 3xxx and 4xxx are the applications' own, 1006 is none.",
            ["path", "code"],
            registry=registry,
        )

    def of(self, path: str) -> WebSocketTally:
        """What counts for one route."""
        tally = self._tallies.get(path)
        if tally is None:
            messages = [self._messages.labels(path, side).inc for side in ("client", "service")]
            sizes = [self._bytes.labels(path, side).inc for side in ("client", "service")]
            tally = self._tallies[path] = WebSocketTally(path, self._open, self._closed, messages, sizes)
        return tally


class WebSocketTally:
    """The counters of one route, bound to its labels: 1 us for a message."""

    __slots__ = ("_closed", "_messages", "_open", "_path", "_sizes")

    def __init__(
        self, path: str, opened: Gauge, closed: Counter, messages: Sequence[Inc], sizes: Sequence[Inc]
    ) -> None:
        self._path = path
        self._open = opened.labels(path)
        self._closed = closed
        self._messages = messages
        self._sizes = sizes

    def opened(self) -> None:
        """A WebSocket was accepted."""
        self._open.inc()

    def closed(self, code: int) -> None:
        """One that was accepted has ended."""
        self._open.dec()
        self._closed.labels(self._path, _label(code)).inc()

    def from_client(self, size: int) -> None:
        self._messages[0]()
        self._sizes[0](size)

    def from_service(self, size: int) -> None:
        self._messages[1]()
        self._sizes[1](size)


def _label(code: int) -> str:
    """Few values, whatever the applications invent.

    >>> [_label(code) for code in (1000, 1004, 3999, 4321)]
    ['1000', 'other', '3xxx', '4xxx']
    """
    if code in _NAMED:
        return str(code)
    return f"{code // 1000}xxx" if 3000 <= code <= 4999 else "other"
