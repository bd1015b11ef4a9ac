"""What a client sees of an error: RFC 9457 problem details with a string `detail`, as FastAPI's errors have."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.exceptions import MeshError

DETAILS = {
    "service-unavailable": "{service} gave no usable answer",
    "circuit-open": "calls to {service} are suspended because too many of them failed",
    "bulkhead-full": "too many calls to {service} are running",
    "overloaded": "too many requests are being answered already",
    "connection-failed": "{service} could not be reached",
    "invalid-response": "{service} gave an answer that is not valid HTTP",
    "upstream-timeout": "{service} did not answer in time",
    "deadline-exceeded": "the time allowed for this request has passed",
    "no-instances": "no instance of {service} is available",
    "service-response": "{service} refused a request that was made on behalf of this one",
    "invalid-request": "this request can't be passed on as valid HTTP",
    "client-disconnected": "the client went away before its request was complete",
    "configuration": "the service is not configured correctly",
    "config-store": "the store of shared configuration could not be used",
    "identity": "the caller's identity is missing, invalid or not allowed to do this",
}
"""What is said of each reason. Fixed sentences: the error's own text may name addresses, which stay inside."""

OTHER_DETAIL = "the request could not be completed"


def problem(error: MeshError, trace_id: str = "") -> tuple[int, list[Header], bytes]:
    """Status, headers and body that answer for `error`; never an upstream's address, status or text.

    >>> from fastapi_mesh.exceptions import CircuitBreakerOpenError
    >>> problem(CircuitBreakerOpenError("open", service="users"))[0]
    503
    """
    detail = DETAILS.get(error.reason, OTHER_DETAIL).format(service=error.service or "a service")
    status, headers, body = document(
        error.status, error.reason, detail, service=error.service, trace_id=trace_id, retry_after=error.retry_after
    )
    if error.attempts:
        headers.append((b"x-mesh-attempts", str(error.attempts).encode()))
    return status, headers, body


def document(
    status: int,
    reason: str,
    detail: str,
    *,
    service: str | None = None,
    trace_id: str = "",
    retry_after: float | None = None,
) -> tuple[int, list[Header], bytes]:
    """An `application/problem+json` answer (RFC 9457) for a refusal that is no exception.

    `reason` is a slug of ASCII letters and hyphens, also sent as `x-mesh-reason`. `type` is `about:blank`, so `title`
    is the status phrase (RFC 9457 section 4.2.1). `retry_after` is seconds, sent as whole seconds rounded up (RFC 9110
    section 10.2.3). `service` is null and `trace_id` empty where there is none, so both keys can be relied on.
    """
    body = json.dumps(
        {
            "type": "about:blank",
            "title": _phrase(status),
            "status": status,
            "detail": detail,
            "reason": reason,
            "service": service,
            "trace_id": trace_id,
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-mesh-reason", reason.encode()),
    ]
    if retry_after is not None and math.isfinite(retry_after):
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))
    return status, headers, body


def _phrase(status: int) -> str:
    """The reason phrase of a status; 499 is nginx's, not IANA's."""
    if status == 499:
        return "Client Closed Request"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
