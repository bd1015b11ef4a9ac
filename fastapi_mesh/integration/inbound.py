"""Reads what matters to the mesh from a request's headers: its id, its deadline, and the trace to carry on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi_mesh.core.context import Inbound, new_request_id
from fastapi_mesh.core.priority import NORMAL, PRIORITY_HEADER, parse_priority
from fastapi_mesh.observability.tracing import PROPAGATED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.core.message import Header

REQUEST_ID = b"x-request-id"
MESH_TIMEOUT = b"x-mesh-timeout-ms"
MESH_COVERS = b"x-mesh-timeout-covers"
ENVOY_TIMEOUT = b"x-envoy-expected-rq-timeout-ms"
GRPC_TIMEOUT = b"grpc-timeout"
_WANTED = PROPAGATED | {REQUEST_ID, MESH_TIMEOUT, MESH_COVERS, ENVOY_TIMEOUT, GRPC_TIMEOUT, PRIORITY_HEADER}

_VALID_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
"""What an id from outside may look like: safe in a log line and in a header."""
_MILLISECONDS = re.compile(rb"-?[0-9]{1,9}")
_GRPC = re.compile(rb"([0-9]{1,8})([HMSmun])")
_GRPC_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def read_inbound(mesh: object, headers: Iterable[Header], now: float, *, trust_request_id: bool = True) -> Inbound:
    """What calls made in this request need to know. `now` is the mesh clock's monotonic time.

    The deadline is the earliest of `x-mesh-timeout-ms`, `x-envoy-expected-rq-timeout-ms` (Envoy) and `grpc-timeout`
    (gRPC over HTTP/2); what can't be read is ignored. `x-mesh-timeout-covers: head` says that the first of them ends
    with the head of the answer; the others always cover all of it. `x-request-id` is kept when it is trusted and well
    formed, else a new id is made.
    """
    request_id = ""
    timeout: float | None = None
    earliest = b""
    covers_head = False
    priority = NORMAL
    propagate: list[Header] = []
    for header in headers:
        name, value = header
        if name not in _WANTED:
            continue
        if name in PROPAGATED:
            propagate.append(header)
        elif name == REQUEST_ID:
            if trust_request_id and not request_id and _VALID_ID.fullmatch(value):
                request_id = value.decode("ascii")
        elif name == PRIORITY_HEADER:
            priority = parse_priority(value, priority)
        elif name == MESH_COVERS:
            covers_head = value == b"head"
        else:
            seconds = _timeout(name, value)
            if seconds is not None and (timeout is None or seconds < timeout):
                timeout, earliest = seconds, name
    inbound = Inbound(
        mesh,
        deadline=None if timeout is None else now + timeout,
        head_only=covers_head and earliest == MESH_TIMEOUT,
        request_id=request_id or new_request_id(),
        propagate=tuple(propagate),
    )
    inbound.priority = priority
    return inbound


def _timeout(name: bytes, value: bytes) -> float | None:
    """Seconds that a deadline header leaves; None where it doesn't say. Envoy's 0 means "no limit"."""
    if name == GRPC_TIMEOUT:
        match = _GRPC.fullmatch(value)
        return None if match is None else int(match[1]) * _GRPC_UNITS[match[2]]
    if _MILLISECONDS.fullmatch(value) is None:
        return None
    milliseconds = int(value)
    if name == ENVOY_TIMEOUT and milliseconds <= 0:
        return None
    return max(0, milliseconds) / 1000
