"""An answer at the transformers: shown to them as they want it, and put together again for the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.transform.body import (
    ResumedSource,
    TooLongError,
    UnreadableError,
    decoded,
    read_response,
)
from fastapi_mesh.api_gateway.transform.fields import Fields
from fastapi_mesh.api_gateway.transform.incoming import OF_THE_BODY
from fastapi_mesh.api_gateway.transform.limits import ResponseTooLongError, ResponseUnreadableError, UnsendableError
from fastapi_mesh.api_gateway.transform.messages import GatewayResponse
from fastapi_mesh.core.message import Response

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.transform.messages import GatewayRequest
    from fastapi_mesh.api_gateway.transform.timing import Elapsed
    from fastapi_mesh.core.message import Header

_WITHOUT_CONTENT = frozenset({204, 205, 304})


class Outgoing:
    """One answer. `answered` is what transformers see; `load` reads its body; `finished` is what goes on.

    `dropped` are headers that the gateway or its server writes itself.
    """

    __slots__ = ("_came", "_dropped", "_limit", "_loaded", "_read", "_response", "answered")

    def __init__(
        self, response: Response, request: GatewayRequest, elapsed: Elapsed, limit: int, dropped: frozenset[bytes]
    ) -> None:
        self._response = response
        self._limit = limit
        self._dropped = dropped
        self._loaded: bytes | None = None
        self._read: list[bytes] = []
        self.answered = GatewayResponse(response.status, Fields.of(response.headers), elapsed=elapsed, request=request)
        self._came = self.answered
        if not (response.at_end or response.status in _WITHOUT_CONTENT):
            self.answered.later(self.load)

    async def load(self) -> None:
        """Read the body, if that hasn't been tried; what is too long or can't be decoded stays as it is."""
        answered, limit = self._came, self._limit
        if not answered.is_open:
            return
        kind = answered.headers.get("content-type", "")
        if kind.lower().startswith("text/event-stream"):
            answered.put(None, ResponseUnreadableError("An event stream has no whole body that could be read."))
            return
        length = self._response.header(b"content-length") or b""
        if length.isdigit() and int(length) > limit:
            answered.put(None, ResponseTooLongError(limit))
            return
        coding = answered.headers.get("content-encoding", "")
        try:
            self._loaded = await read_response(self._response, limit)
            answered.put(decoded(self._loaded, coding, limit))
        except TooLongError as error:
            self._read = error.read
            answered.put(None, ResponseTooLongError(limit))
        except UnreadableError as why:
            answered.put(None, ResponseUnreadableError(f"The service's answer can't be read: {why}."))

    async def finished(self) -> Response:
        """The answer as the transformers left it. Raises UnsendableError."""
        answered, response = self.answered, self._response
        status = check_status(answered.status)
        headers = list(answered.headers.raw)
        if answered.headers.changed:
            headers = [header for header in headers if header[0] not in self._dropped]
        if answered is not self._came or answered.body_changed or (status != response.status and _empty(status)):
            body = b"" if _empty(status) else answered.body
            await response.aclose()
            return made(status, headers, body)
        if self._loaded is not None:
            await response.aclose()
            return Response.of(status, _with_length(headers, self._loaded), self._loaded)
        if self._read:
            return Response(status, headers, ResumedSource(self._read, response))
        response.status, response.headers = status, headers
        return response


def made(status: int, headers: list[Header], body: bytes) -> Response:
    """An answer with a body of ours: what its headers said of another one is gone."""
    kept = [header for header in headers if header[0] not in OF_THE_BODY and header[0] != b"content-length"]
    return Response.of(status, kept if _empty(status) else _with_length(kept, body), body)


def check_status(status: object) -> int:
    """Raises UnsendableError for what is no final status."""
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise UnsendableError(f"{status!r:.40} is no status of an answer")
    return status


def _empty(status: int) -> bool:
    return status in _WITHOUT_CONTENT


def _with_length(headers: list[Header], body: bytes) -> list[Header]:
    """RFC 9110 section 8.6: the length of what is sent."""
    return [*(header for header in headers if header[0] != b"content-length"), (b"content-length", b"%d" % len(body))]
