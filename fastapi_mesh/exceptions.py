"""The errors of fastapi_mesh, one tree.

MeshError
 |- ServiceUnavailableError            the service gave no usable answer
 |   |- CircuitBreakerOpenError        refused at once: the circuit is open
 |   |- BulkheadFullError              refused at once: no seat left for this service
 |   |- UpstreamConnectionError        connection refused, reset or closed (is a ConnectionError too)
 |   |   `- UpstreamProtocolError      the answer was not valid HTTP
 |   |- UpstreamTimeoutError           one attempt took too long (is a TimeoutError too)
 |   `- DeadlineExceededError          the whole call took too long (is a TimeoutError too)
 |- ServiceDiscoveryError              no instance of the service is known
 |- ServiceResponseError               the service answered 4xx
 |- InvalidRequestError                this request can't be sent as HTTP (is a ValueError too)
 |- ClientDisconnectedError            our own caller went away while we read its body
 |- ConfigurationError                 settings are wrong (is a ValueError too)
 |- ConfigStoreError                   the store of shared configuration can't be reached, or refuses
 `- IdentityError                      the peer's identity is missing, invalid or not allowed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class MeshError(Exception):
    """Whatever fastapi_mesh raises.

    Class attributes: `status` is the HTTP status given at the door when the error leaves a handler, `reason` a stable
    slug that names the rule (also sent as the header `x-mesh-reason`), `retryable` whether another attempt may help.

    Instance attributes: `service` is the called service or None, `attempts` how many attempts were made, and
    `counted_for` the service whose circuit breaker has already counted this error (an outer decorator for the same
    service then neither counts nor retries it).
    """

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "mesh-error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, service: str | None = None) -> None:
        super().__init__(message)
        self.service = service
        self.attempts = 0
        self.counted_for: str | None = None
        self.retry_after: float | None = None


class ServiceUnavailableError(MeshError):
    """The service gave no usable answer: nothing came, or a 5xx after the last retry.

    `status_code` and `body` are the service's last answer, None and b"" when there was none.
    """

    status = 502
    reason = "service-unavailable"

    def __init__(
        self, message: str = "", *, service: str | None = None, status_code: int | None = None, body: bytes = b""
    ) -> None:
        super().__init__(message, service=service)
        self.status_code = status_code
        self.body = body


class CircuitBreakerOpenError(ServiceUnavailableError):
    """The circuit of this service is open, so the call was refused at once."""

    status = 503
    reason = "circuit-open"


class BulkheadFullError(ServiceUnavailableError):
    """All seats and all places of the queue for this service are taken."""

    status = 503
    reason = "bulkhead-full"


class UpstreamConnectionError(ServiceUnavailableError, ConnectionError):
    """The connection to an instance failed.

    `request_sent` is False when no byte of the request can have reached the instance, so that any method may be sent
    again elsewhere. `response_started` is True when a response head had arrived.
    """

    reason = "connection-failed"
    retryable = True

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        request_sent: bool = False,
        response_started: bool = False,
    ) -> None:
        super().__init__(message, service=service)
        self.request_sent = request_sent
        self.response_started = response_started


class UpstreamProtocolError(UpstreamConnectionError):
    """An instance answered with something that is not valid HTTP (RFC 9110, RFC 9112)."""

    reason = "invalid-response"


class UpstreamTimeoutError(ServiceUnavailableError, TimeoutError):
    """One attempt took longer than its timeout.

    `phase` is `connect`, `headers`, `read` or `write`; `request_sent` as in `UpstreamConnectionError`.
    """

    status = 504
    reason = "upstream-timeout"
    retryable = True

    def __init__(
        self, message: str = "", *, service: str | None = None, phase: str = "headers", request_sent: bool = True
    ) -> None:
        super().__init__(message, service=service)
        self.phase = phase
        self.request_sent = request_sent


class DeadlineExceededError(ServiceUnavailableError, TimeoutError):
    """The deadline of the whole call passed."""

    status = 504
    reason = "deadline-exceeded"


class ServiceDiscoveryError(MeshError):
    """No instance of the service is known, or the registry has never answered."""

    status = 503
    reason = "no-instances"


class ServiceResponseError(MeshError):
    """The service answered 4xx. `status_code`, `headers` and `body` are its answer."""

    status = 502
    reason = "service-response"

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        status_code: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> None:
        super().__init__(message, service=service)
        self.status_code = status_code
        self.headers = tuple(headers)
        self.body = body


class InvalidRequestError(MeshError, ValueError):
    """This request can't be sent as HTTP: a forbidden byte in a header, an ambiguous length, no valid Host."""

    status = 400
    reason = "invalid-request"


class ClientDisconnectedError(MeshError):
    """Our own caller went away before its request was complete. Neutral to breakers and instance health."""

    status = 499
    reason = "client-disconnected"


class ConfigurationError(MeshError, ValueError):
    """Settings are wrong. `problems` has one line for each: its path, what is wrong, and the fix."""

    reason = "configuration"

    def __init__(self, message: str = "", *, problems: Iterable[str] = (), source: str | None = None) -> None:
        self.problems = tuple(problems) or ((message,) if message else ())
        self.source = source
        if not message:
            count = len(self.problems)
            title = f"{source or 'configuration'}: {count} problem{'' if count == 1 else 's'}"
            message = "\n".join([title, *(f"  {line}" for line in self.problems)])
        super().__init__(message)


class ConfigStoreError(MeshError):
    """The store of shared configuration can't be reached, or refuses what it is given."""

    status = 503
    reason = "config-store"


class IdentityError(MeshError):
    """The peer's identity is missing, invalid or not allowed to do this."""

    status = 401
    reason = "identity"
