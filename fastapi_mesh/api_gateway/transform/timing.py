"""How long a service took, as transformers see it and as a header says it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.transform.messages import GatewayResponse


class Elapsed(timedelta):
    """A timedelta whose text is its seconds: `str(response.elapsed)` is what a header should say.

    >>> str(Elapsed(milliseconds=1250)), f"{Elapsed(milliseconds=1250):.1f}"
    ('1.250000', '1.2')
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.total_seconds():.6f}"

    def __format__(self, spec: str) -> str:
        return format(self.total_seconds(), spec) if spec else str(self)


class ResponseTime:
    """A response transformer that says how long the service took, in seconds, in the header `header`.

    With `server_timing`, also as `Server-Timing: gateway;dur=MILLISECONDS`, which browsers show (W3C Server Timing).
    Everybody who may call sees it, so it is not on by itself.
    """

    def __init__(self, header: str = "X-Gateway-Response-Time", *, server_timing: bool = False) -> None:
        self._header = header
        self._server_timing = server_timing

    def transform_response(self, response: GatewayResponse) -> GatewayResponse:
        """Set the headers."""
        response.headers[self._header] = str(response.elapsed)
        if self._server_timing:
            milliseconds = response.elapsed.total_seconds() * 1000
            response.headers.add("Server-Timing", f"gateway;dur={milliseconds:.3f}")
        return response
