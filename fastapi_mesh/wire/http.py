"""The only file that knows httpx2: the client that users of the mesh get, and a plain one for control planes.

Importing it costs 0.17 s (httpx2), so other modules import it late, inside the function that needs it.
"""

from __future__ import annotations

import json as jsonlib
import ssl
from contextlib import contextmanager
from dataclasses import replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, NamedTuple

import httpx2
from httpx2 import HTTPStatusError

from fastapi_mesh.config.policies import REPLAY_LIMIT
from fastapi_mesh.core.message import Request
from fastapi_mesh.exceptions import (
    InvalidRequestError,
    MeshError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from fastapi_mesh.core.context import CallContext
    from fastapi_mesh.core.control import Parameters
    from fastapi_mesh.core.message import ByteStream, Header, Response

__all__ = [
    "ControlClient",
    "ControlResponse",
    "HTTPStatusError",
    "MeshTransport",
    "control_transport",
    "new_client",
    "stream_timeout",
    "translated",
]

EXTENSION = "fastapi_mesh"
"""The key of `response.extensions` under which a response of ours says what the mesh did."""

Answer = httpx2.Response
"""What `call_service(raw=True)` gives."""

_OF_THE_HOP = frozenset({b"host", b"connection", b"transfer-encoding"})


class MeshTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport that sends every request through the mesh; it holds no connection of its own.

    The host of the URL is the service (`service` restores its spelling, since URLs are lower case); scheme and port
    mean nothing here, they are the instance's. `send` is the mesh's stack, `new_context(service, template)` makes a
    call's context.

    Of a request's extensions, `template` names the call in metrics and spans (a path template, "" without), and
    `timeout` (httpx2's, set by `timeout=` of a call) overrides the policy: its read part bounds each attempt and each
    pause of the body, its connect part the connect. A response has `extensions["fastapi_mesh"]`: `record` (the
    CallRecord), `attempts` and `service`.

    Errors are the mesh's own (MeshError). They are ConnectionError and TimeoutError where that is what they mean, and
    never httpx2's.
    """

    def __init__(
        self,
        send: Callable[[Request], Awaitable[Response]],
        new_context: Callable[[str, str], CallContext],
        *,
        service: str = "",
    ) -> None:
        self._send = send
        self._new_context = new_context
        self._service = service
        self._host = service.lower()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        host = url.host
        service = self._service if host == self._host else host
        template = request.extensions.get("template", "")
        context = self._new_context(service, template)
        _limit(context, request.extensions.get("timeout") or {})
        body = await _body_of(request)
        headers = _headers_of(request)
        sent = Request(request.method.encode("ascii"), service, url.raw_path, headers, body, context)
        response = await self._send(sent)
        outcome = {"record": context.record, "attempts": context.attempt, "service": service}
        extensions: dict[str, object] = {EXTENSION: outcome}
        if response.upgrade is not None:
            extensions["network_stream"] = _UpgradedStream(response.upgrade)
        return httpx2.Response(
            response.status, headers=response.headers, stream=_ResponseStream(response), extensions=extensions
        )


def _limit(context: CallContext, timeout: Mapping[str, float | None]) -> None:
    """Put the call's own httpx2 timeouts over the policy's; None and absent mean the policy's."""
    connect, read = timeout.get("connect"), timeout.get("read")
    if connect is None and read is None:
        return
    policy = context.policy
    if connect is not None:
        policy = replace(policy, connect_timeout=connect)
    if read is not None:
        whole = policy.timeout if policy.timeout is None else max(policy.timeout, read)
        policy = replace(policy, timeout=whole, attempt_timeout=read, idle_timeout=read)
    context.policy = policy


async def _body_of(request: httpx2.Request) -> bytes | AsyncIterable[bytes]:
    """The body as bytes where it is in memory, and so can be sent again; a small form with files counts as that."""
    stream = request.stream
    if isinstance(stream, httpx2.ByteStream):
        return request.content
    if not isinstance(stream, httpx2.AsyncByteStream):
        raise InvalidRequestError("the body of an asynchronous request can't be a synchronous iterator")
    length = request.headers.get("content-length", "")
    if isinstance(stream, httpx2.SyncByteStream) and length.isdigit() and int(length) <= REPLAY_LIMIT:
        return await request.aread()
    return stream


def _headers_of(request: httpx2.Request) -> list[Header]:
    """The raw headers without httpx2's automatic ones of the hop; a Host that the user set is kept."""
    automatic = request.url.netloc
    return [
        (name, value)
        for name, value in request.headers.raw
        if (lower := name.lower()) not in _OF_THE_HOP or (lower == b"host" and value != automatic)
    ]


class _ResponseStream(httpx2.AsyncByteStream):
    """A response's body, raw, for httpx2 to decode."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._response.read():
            yield data

    async def aclose(self) -> None:
        await self._response.aclose()


class _UpgradedStream:
    """What httpx2's WebSocket client (its extra `ws`) reads and writes after 101: a network stream of httpcore2."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._rest = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._rest or await self._stream.read()
        self._rest = data[max_bytes:]
        return data[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()


def new_client(
    transport: httpx2.AsyncBaseTransport, base_url: str, *, headers: Mapping[str, str] | None = None
) -> httpx2.AsyncClient:
    """A client for `transport`, safe to share between all requests of a process.

    It keeps no cookies (a jar would hand one user's to the next), follows no redirects, reads no proxy, netrc or
    certificate settings from the environment, and has no timeout of its own: the mesh's policy has.
    """
    return httpx2.AsyncClient(
        transport=transport,
        base_url=base_url,
        headers=headers,
        timeout=None,
        follow_redirects=False,
        trust_env=False,
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
    )


class ControlResponse(NamedTuple):
    """An answer of a control plane; header names in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> object:
        """The content as JSON. Raises UpstreamProtocolError when it is none."""
        try:
            return jsonlib.loads(self.content)
        except ValueError as error:
            raise UpstreamProtocolError(f"the answer is no JSON: {error}", request_sent=True) from error


class ControlClient:
    """Plain HTTP calls to a control plane (a registry, a configuration store, an issuer), outside of the mesh.

    Made for long polls and watches: a few connections, kept for 60 s, with a TLS context of its own. The connection
    pool is made on first use. `timeout` is seconds for each wait (connect, write, next bytes) of a call. An answer of
    `request` that is longer than `max_size` bytes is an UpstreamProtocolError, and is not read to its end.

    Raises UpstreamConnectionError, UpstreamProtocolError and UpstreamTimeoutError; every status is an answer.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        max_connections: int = 100,
        max_size: int | None = None,
    ) -> None:
        self._max_size = max_size
        self._base_url = base_url
        self._ssl_context = ssl_context
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._max_connections = max_connections
        self._made: httpx2.AsyncClient | None = None

    async def request(  # noqa: PLR0913  # what a request consists of
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        json: object = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ControlResponse:
        """Send one request and read the whole answer; its body is `json`, `form` or `content`, if one is given."""
        client = self._client()
        limit = self._timeout if timeout is None else timeout
        try:
            async with client.stream(
                method, path, params=params, json=json, data=form, content=content, headers=headers, timeout=limit
            ) as answer:
                content = await self._content(answer)
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _translated(error, self._base_url) from error
        return ControlResponse(answer.status_code, _flat(answer), content)

    async def stream_lines(
        self,
        method: str,
        path: str,
        *,
        params: Parameters | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        idle_timeout: float | None = None,
    ) -> AsyncIterator[str]:
        """Yield the lines of an answer as they come, for watches; a pause over `idle_timeout` seconds is an error.

        Raises ServiceUnavailableError, with status and body, for an answer that is not 2xx. Close the iterator
        (`contextlib.aclosing`) to end the watch.
        """
        client = self._client()
        limit = httpx2.Timeout(self._timeout, read=idle_timeout)
        try:
            async with client.stream(method, path, params=params, json=json, headers=headers, timeout=limit) as answer:
                if not answer.is_success:
                    content = await answer.aread()
                    raise ServiceUnavailableError(
                        f"{self._base_url} answered {answer.status_code} to {method} {path}",
                        status_code=answer.status_code,
                        body=content,
                    )
                async for line in answer.aiter_lines():
                    yield line
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _translated(error, self._base_url) from error

    async def aclose(self) -> None:
        """Close every connection. Safe to call twice."""
        client, self._made = self._made, None
        if client is not None:
            await client.aclose()

    async def _content(self, answer: httpx2.Response) -> bytes:
        if self._max_size is None:
            return await answer.aread()
        parts = bytearray()
        async for part in answer.aiter_bytes():
            parts += part
            if len(parts) > self._max_size:
                raise UpstreamProtocolError(f"the answer is longer than {self._max_size} bytes", request_sent=True)
        return bytes(parts)

    def _client(self) -> httpx2.AsyncClient:
        if self._made is None:
            limits = httpx2.Limits(
                max_connections=self._max_connections, max_keepalive_connections=10, keepalive_expiry=60.0
            )
            # With trust_env=False httpx2 makes no context from the environment's SSL_CERT_FILE; the ssl module does.
            context = self._ssl_context or _tls_context(self._base_url)
            transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
            self._made = new_client(transport, self._base_url, headers=self._headers)
        return self._made


def control_transport(base_url: str) -> httpx2.AsyncHTTPTransport:
    """A transport for a client of another library that calls a control plane; that client closes it."""
    return httpx2.AsyncHTTPTransport(verify=_tls_context(base_url), trust_env=False)


def stream_timeout(timeout: float) -> httpx2.Timeout:
    """Time limits for another library's request whose answer has pauses: `timeout` seconds, and none for reading."""
    return httpx2.Timeout(timeout, read=None)


@contextmanager
def translated(peer: str) -> Iterator[None]:
    """Raises the mesh's error for one of httpx2's, from a client of another library."""
    try:
        yield
    except (httpx2.HTTPError, ssl.SSLError) as error:
        raise _translated(error, peer) from error


def _tls_context(base_url: str) -> ssl.SSLContext:
    """The system's trust; for plain HTTP an empty context, because loading certificates costs a tenth of a second."""
    if base_url.startswith("http:"):  # redirects are not followed, so it stays plain
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return ssl.create_default_context()


def _flat(answer: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


def _translated(error: httpx2.HTTPError | ssl.SSLError, peer: str) -> MeshError:
    """The mesh's error for one of httpx2's, saying whether the request can have reached the peer.

    An alert of TLS 1.3 that comes after the handshake (no client certificate, for one) passes httpx2 as it is.
    """
    text = f"{peer}: {error}" if str(error) else f"{peer}: {type(error).__name__}"
    match error:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return UpstreamTimeoutError(text, phase="connect", request_sent=False)
        case httpx2.WriteTimeout():
            return UpstreamTimeoutError(text, phase="write")
        case httpx2.TimeoutException():
            return UpstreamTimeoutError(text, phase="read")
        case httpx2.ConnectError() | httpx2.ProxyError() | httpx2.UnsupportedProtocol():
            return UpstreamConnectionError(text, request_sent=False)
        case httpx2.LocalProtocolError():
            return InvalidRequestError(text)
        case httpx2.ProtocolError() | httpx2.DecodingError():
            closed = str(error).startswith(("Server disconnected", "peer closed"))
            kind = UpstreamConnectionError if closed else UpstreamProtocolError
            return kind(text, request_sent=True)
        case _:
            return UpstreamConnectionError(text, request_sent=True)
