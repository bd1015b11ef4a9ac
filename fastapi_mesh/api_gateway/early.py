"""What a gateway answers before any layer: a request without a route, or one that can't be passed on at all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.access_log import write_early
from fastapi_mesh.api_gateway.cors import origin_of
from fastapi_mesh.api_gateway.problems import refuse, reject
from fastapi_mesh.api_gateway.table import Refusal
from fastapi_mesh.core.context import current_inbound, new_request_id

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.access_lines import AccessLines
    from fastapi_mesh.api_gateway.cors import CorsRules
    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.core.instance import Message as Scope
    from fastapi_mesh.core.message import Response
    from fastapi_mesh.exceptions import InvalidRequestError


class EarlyAnswers:
    """Refuses, and does for its answers what layers do for theirs: count them, mark them for pages, log them.

    `cors` and `lines` (the access log) are the gateway's own settings; a reload replaces them.
    """

    __slots__ = ("_meter", "cors", "lines")

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self.cors: CorsRules | None = None
        self.lines: AccessLines | None = None

    def refuse(self, scope: Scope, path: str, why: Refusal | InvalidRequestError) -> Response:
        """The answer; `path` is the template of the route, where there is one."""
        started = time.monotonic()
        inbound = current_inbound.get()
        trace_id = inbound.request_id if inbound is not None and inbound.request_id else new_request_id()
        response = refuse(why, trace_id) if isinstance(why, Refusal) else reject(why, trace_id)
        if self.cors is not None:
            response.headers = self.cors.mark(response.headers, origin_of(scope["headers"]))
        if self._meter is not None:
            self._meter.request(scope["method"].encode(), path, response.status, time.monotonic() - started)
            self._meter.local(path, why.reason)
        if self.lines is not None:
            write_early(self.lines, scope, path, response, time.monotonic() - started)
        return response
