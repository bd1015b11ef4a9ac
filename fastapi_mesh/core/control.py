"""The port to control planes that speak HTTP: what a registry or a config store needs of an HTTP client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    Scalar = str | int | float | bool | None
    Parameters = Mapping[str, Scalar | Sequence[Scalar]] | list[tuple[str, Scalar]]


class ControlAnswer(Protocol):
    """An answer, whatever its status; header names in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...

    def json(self) -> object:
        """The content as JSON. Raises UpstreamProtocolError when it is none."""
        ...


class Control(Protocol):
    """A client of one server; `wire.http.ControlClient` is one. Paths start with "/" and are sent as they are.

    Raises UpstreamConnectionError, UpstreamProtocolError and UpstreamTimeoutError; every status is an answer.
    """

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        json: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ControlAnswer:
        """Send one request, with `json` or `content` as its body, and read the whole answer.

        `timeout` is seconds for each wait of the call, None for the client's own.
        """
        ...

    def stream_lines(
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        idle_timeout: float | None = None,
    ) -> AsyncIterator[str]:
        """Yield the lines of an answer as they come; a pause over `idle_timeout` seconds is an UpstreamTimeoutError.

        Raises ServiceUnavailableError, with status and body, for an answer that is not 2xx. Close the iterator
        (`contextlib.aclosing`) to end the watch.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection. Safe to call twice."""
        ...


def tls_problem(error: BaseException) -> str | None:
    """What TLS found wrong with either side, in OpenSSL's words, if that is behind `error`; trying again won't help.

    None for an error of another kind, also for a connection that was cut while TLS was under way.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return str(seen.reason or seen)
        seen = seen.__cause__ or seen.__context__
    return None
