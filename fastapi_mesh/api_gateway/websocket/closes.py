"""Why a WebSocket ends, and the close codes that each side may be told (RFC 6455 section 7.4, IANA's registry)."""

from __future__ import annotations

from dataclasses import dataclass

NORMAL, GOING_AWAY, PROTOCOL_ERROR = 1000, 1001, 1002
NO_STATUS, ABNORMAL, INVALID_DATA, POLICY, TOO_BIG = 1005, 1006, 1007, 1008, 1009
INTERNAL_ERROR, SERVICE_RESTART, TRY_AGAIN_LATER = 1011, 1012, 1013
_LAST_REGISTERED = 1014
_NEVER_SENT = frozenset({1004, NO_STATUS, ABNORMAL})
"""1004 is reserved; the others only say that there was no code (section 7.4.1). 1015 lies outside of the range."""
MAX_REASON = 123
"""Bytes that a Close frame has for its reason: 125 for a control frame, two of them are the code (section 5.5)."""


@dataclass(frozen=True, slots=True)
class Close:
    """A Close frame. `code` 1005 is one without a code, 1006 stands for a connection that is cut without any frame."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a WebSocket ends: what the client and the service are told; None: nothing, it is they who began it.

    `why` is for the log, "" where there is nothing to report.
    """

    client: Close | None
    service: Close | None
    why: str = ""

    @property
    def code(self) -> int:
        """The code by which it is counted: the one that the client got, or gave."""
        told = self.client or self.service
        return NORMAL if told is None else told.code


CUT = Close(ABNORMAL)
LOST = Ending(Close(INTERNAL_ERROR, "the service is gone"), CUT)
"""The service went away without a Close frame. IANA's 1014 (Bad Gateway) would say it best, but not every client knows
it: wsproto takes such a frame for a broken one.
"""
FAILED = Ending(Close(INTERNAL_ERROR), Close(INTERNAL_ERROR))
TOO_LONG = Ending(Close(TOO_BIG, "the message is too big"), Close(TOO_BIG, "the message is too big"))
RESTART = Ending(Close(SERVICE_RESTART, "service restart"), Close(SERVICE_RESTART, "service restart"))


def is_sendable(code: int) -> bool:
    """Whether a Close frame may carry `code`.

    >>> [is_sendable(code) for code in (999, 1000, 1005, 1014, 1015, 2999, 3000, 4999, 5000)]
    [False, True, False, True, False, False, True, True, False]
    """
    return (NORMAL <= code <= _LAST_REGISTERED and code not in _NEVER_SENT) or 3000 <= code <= 4999


def from_client(code: int, reason: str) -> Ending:
    """The client closed, or is gone: the service sees what it would have seen without us."""
    if is_sendable(code):
        return Ending(None, Close(code, shortened(reason)))
    return Ending(None, Close(NO_STATUS) if code == NO_STATUS else CUT)


def from_service(code: int, reason: str) -> Ending:
    """The service closed. ASGI has no Close frame without a code, so that becomes 1000."""
    return Ending(Close(code, shortened(reason)) if is_sendable(code) else Close(NORMAL), None)


def fault_of_service(code: int) -> Ending:
    """The service broke a rule of the protocol, and was told so with `code`."""
    if code == TOO_BIG:
        return Ending(TOO_LONG.client, None, "the service sent a message that is too big")
    text = "the service sent what is no valid WebSocket frame"
    return Ending(Close(INTERNAL_ERROR, text), None, f"{text} ({code})")


def of_refusal(status: int) -> int:
    """The close code for a refused handshake, where the server can't send an HTTP status."""
    if status in (429, 503):
        return TRY_AGAIN_LATER
    return POLICY if status < 500 else INTERNAL_ERROR


def shortened(reason: str) -> str:
    """`reason`, cut to what a Close frame has room for."""
    encoded = reason.encode("utf-8", "replace")
    return reason if len(encoded) <= MAX_REASON else encoded[:MAX_REASON].decode("utf-8", "ignore")
