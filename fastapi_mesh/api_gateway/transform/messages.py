"""A request and an answer as transformers see and change them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from fastapi_mesh.api_gateway.transform.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from fastapi_mesh.api_gateway.forwarded import Origin
    from fastapi_mesh.api_gateway.principal import Principal
    from fastapi_mesh.config.routes import RouteConfig

_PATH_LETTERS = "/:@!$&'()*+,;=-._~"
_RAW = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"#")


class BodyNotReadError(RuntimeError):
    """A transformer reads `.body`, and nobody knew that it would."""

    def __init__(self) -> None:
        super().__init__(
            "the body was not read before this transformer was called: set `buffer_body = True` on it, or use "
            "`await request.read()`"
        )


class _Message:
    """What requests and answers have in common: headers, and a body that is here, on its way, or not to be had."""

    __slots__ = ("_content", "_load", "_why", "body_changed", "headers")

    def __init__(self, headers: Fields | Mapping[str, str] | Iterable[tuple[str, str]], body: bytes | str) -> None:
        self.headers = headers if isinstance(headers, Fields) else Fields(headers)
        self._content: bytes | None = _bytes(body)
        self._why: Exception | None = None
        self._load: Callable[[], Awaitable[None]] | None = None
        self.body_changed = False
        """Whether a transformer has set another body than the one that came."""

    @property
    def body(self) -> bytes:
        """The whole body, without content coding. It can be set to bytes or to text, which becomes UTF-8.

        Raises BodyNotReadError where it was not read (see `needs`), and what refuses the request (413, 502) where it
        is longer than `transform.max_body` or can't be decoded.
        """
        if self._content is None:
            raise self._why or BodyNotReadError()
        return self._content

    @body.setter
    def body(self, body: bytes | bytearray | memoryview | str | None) -> None:
        content = _bytes(body)
        if content != self._content:
            self._content = content
            self._why = None
            self.body_changed = True

    async def read(self) -> bytes:
        """The body, read now unless it was before. Raises what `body` does."""
        if self._content is None and self._why is None and self._load is not None:
            await self._load()
        return self.body

    def put(self, content: bytes | None, why: Exception | None = None) -> None:
        """For the gateway: here is the body that came, or why it can't be had."""
        self._content, self._why = content, why

    def later(self, load: Callable[[], Awaitable[None]]) -> None:
        """For the gateway: the body has not been read, and `load` would."""
        self._content, self._load = None, load

    @property
    def is_open(self) -> bool:
        """Whether nothing has been tried to get the body, and none was set."""
        return self._content is None and self._why is None


class GatewayRequest(_Message):
    """A request on its way to a service. What a transformer sets is what the service gets.

    `method`, `path`, `raw_path`, `query` (without "?"), `headers` and `body` can be set. `path` is the client's path
    below the gateway's prefix, percent-decoded, before `strip_prefix` and `rewrite`, which apply to what it is set to;
    `raw_path` is the same as it came, so use that where an encoded slash must stay one. `principal` is who was
    authenticated (None for nobody), `route` the route's settings, `request_id` the id that logs and traces know it by,
    `scheme` what the client used: http or https. `is_websocket` says that this is the handshake of a WebSocket: a GET
    without a body, and it stays one.
    """

    __slots__ = (
        "_client",
        "_path",
        "_query",
        "_raw_path",
        "is_websocket",
        "method",
        "principal",
        "request_id",
        "route",
        "scheme",
        "target_changed",
    )

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        query: str = "",
        headers: Fields | Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | str = b"",
    ) -> None:
        super().__init__(headers, body)
        self.method = method
        self._path: str | None = None
        self._raw_path = b"/"
        self._query = ""
        self.path = path
        self.query = query
        self.target_changed = False
        """Whether path or query were set to something else."""
        self._client: str | Origin = ""
        self.scheme = "http"
        self.request_id = ""
        self.is_websocket = False
        self.principal: Principal | None = None
        self.route: RouteConfig | None = None

    @classmethod
    def of(cls, method: str, raw_path: bytes, query: bytes, headers: Fields) -> GatewayRequest:
        """For the gateway: a request whose parts were judged already."""
        request = cls(method, "/", "", headers)
        request._raw_path, request._query, request._path = raw_path, query.decode("latin-1"), None
        return request

    def __repr__(self) -> str:
        return f"<GatewayRequest {self.method} {self._raw_path.decode('latin-1')}>"

    @property
    def client(self) -> str:
        """The client's IP address as text, as far as `trusted_proxies` are believed; "" for none (a Unix socket)."""
        return self._client if isinstance(self._client, str) else self._client.address

    @client.setter
    def client(self, client: str | Origin) -> None:
        self._client = client

    @property
    def path(self) -> str:
        """Percent-decoded; bytes that are no UTF-8 are replaced."""
        if self._path is None:
            self._path = unquote_to_bytes(self._raw_path).decode("utf-8", "replace")
        return self._path

    @path.setter
    def path(self, path: str) -> None:
        if not path.startswith("/"):
            raise ValueError(f"a path is text that starts with '/', not {path!r:.80}")
        if path != self.path:
            self._raw_path, self._path, self.target_changed = quote(path, _PATH_LETTERS).encode(), path, True

    @property
    def raw_path(self) -> bytes:
        """The path as it is sent, percent-encoded."""
        return self._raw_path

    @raw_path.setter
    def raw_path(self, raw_path: bytes) -> None:
        if raw_path[:1] != b"/" or raw_path.translate(None, _RAW) or b"?" in raw_path:
            raise ValueError(f"a raw path is bytes that start with '/', percent-encoded, not {raw_path!r:.80}")
        if raw_path != self._raw_path:
            self._raw_path, self._path, self.target_changed = raw_path, None, True

    @property
    def query(self) -> str:
        """The query string as it is sent, without "?"; "" for none."""
        return self._query

    @query.setter
    def query(self, query: str) -> None:
        query = query.removeprefix("?")
        if not query.isascii() or query.encode().translate(None, _RAW):
            raise ValueError(f"a query is percent-encoded text, not {query!r:.80}: urllib.parse.urlencode makes one")
        if query != self._query:
            self._query, self.target_changed = query, True


class GatewayResponse(_Message):
    """An answer on its way to the client, of a service or of a request transformer that makes one itself.

    `status`, `headers` and `body` can be set. `elapsed` is how long the service took, a timedelta whose text is
    seconds; `request` the request as it went to the service.
    """

    __slots__ = ("elapsed", "request", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Fields | Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | str = b"",
        *,
        elapsed: timedelta | None = None,
        request: GatewayRequest | None = None,
    ) -> None:
        super().__init__(headers, body)
        self.status = status
        self.elapsed = timedelta() if elapsed is None else elapsed
        self.request = GatewayRequest() if request is None else request

    def __repr__(self) -> str:
        return f"<GatewayResponse {self.status}>"

    @property
    def status_code(self) -> int:
        """The status under the name that Starlette and httpx2 have for it."""
        return self.status

    @status_code.setter
    def status_code(self, status: int) -> None:
        self.status = status


def _bytes(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytearray, memoryview)):
        return bytes(body)
    raise TypeError(f"a body is bytes or text, not {type(body).__name__}: json.dumps makes one of plain data")
