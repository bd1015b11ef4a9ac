"""What the tests of authentication share: keys, tokens of any shape, an issuer with counters, a gateway over an app."""

from __future__ import annotations

import asyncio
import base64
import json
import warnings
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeVar

import httpx2
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth.base import Tools
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.testing.clock import FakeClock

T = TypeVar("T")
NOW = 1_700_000_000
SECRET = "correct-horse-battery-staple-0123456789"


@cache
def rsa(kid: str = "rsa", bits: int = 2048) -> RSAKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joserfc makes weak keys, but not gladly
        return RSAKey.generate_key(bits, {"kid": kid})


@cache
def ec(kid: str = "ec", curve: str = "P-256") -> ECKey:
    return ECKey.generate_key(curve, {"kid": kid})  # type: ignore[arg-type]


@cache
def ed(kid: str = "ed") -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": kid})


def key_set(*keys: Any) -> dict[str, object]:
    """A JWK Set of public keys (secrets stay what they are)."""
    return {"keys": [key.as_dict(private=isinstance(key, OctKey)) for key in keys]}


def b64(data: bytes | Mapping[str, object] | str) -> str:
    """Base64url of bytes, of text, or of an object's JSON."""
    if isinstance(data, str):
        data = data.encode()
    elif not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changed: object) -> dict[str, object]:
    """Good claims, changed; a claim that is `...` is left out."""
    made = {"sub": "alice", "iat": NOW, "exp": NOW + 600, **changed}
    return {name: value for name, value in made.items() if value is not ...}


def sign(head: str, body: str, key: Any, algorithm: str) -> str:
    """A token of two parts that are already encoded, whatever they say, with a true signature."""
    signed = f"{head}.{body}".encode()
    return f"{head}.{body}.{b64(JWSRegistry.algorithms[algorithm].sign(signed, key))}"


def token(
    body: Mapping[str, object] | bytes | str | None = None,
    key: Any = None,
    algorithm: str = "HS256",
    **header: object,
) -> str:
    """A token with a true signature: by `key`, else by SECRET. `header` has more of its header."""
    key = OctKey.import_key(SECRET) if key is None else key
    named = {"alg": algorithm, "typ": "JWT", **({"kid": key.kid} if key.kid else {}), **header}
    named = {name: value for name, value in named.items() if value is not ...}
    return sign(b64(named), b64(claims() if body is None else body), key, algorithm)


def start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run something beside the test."""
    return asyncio.get_running_loop().create_task(work)


class Clock(FakeClock):
    """A FakeClock that knows the time of day, too."""

    def wall(self) -> float:
        return NOW + self.now() - 1000.0


@asynccontextmanager
async def tools(clock: Clock | None = None, **changed: Any) -> AsyncIterator[Tools]:
    """What a verifier works with, on a clock that stands."""
    clock = clock or Clock()
    supervisor = Supervisor(clock=clock)
    try:
        yield Tools(supervisor, **{"name": "test", "clock": clock, "wall": clock.wall, **changed})
    finally:
        await supervisor.aclose()


class Upstream:
    """An application that keeps what it got: scopes of its requests."""

    def __init__(self, status: int = 200) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.status = status
        self._more = asyncio.Event()

    async def reached(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.scopes) < count:
            self._more.clear()
            await self._more.wait()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.scopes.append(scope)
        self._more.set()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the last request."""
        return {name.decode(): value.decode() for name, value in self.scopes[-1]["headers"]}

    @property
    def query(self) -> bytes:
        return bytes(self.scopes[-1]["query_string"])


@asynccontextmanager
async def calling(
    upstream: Upstream, *providers: object, route: Mapping[str, object] | None = None, **options: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway whose paths below /api lead to `upstream`, and ask for authentication unless `route`."""
    gateway = APIGateway(services={"up": upstream}, enable_metrics=False, **options)  # type: ignore[dict-item]
    asked = {"auth_required": True} if route is None else dict(route)
    gateway.configure_routes([{"path": "/api/*", "service": "up", **asked}])
    if providers:
        gateway.configure_auth(providers)  # type: ignore[arg-type]
    async with gateway.opened({}), client_of(gateway) as client:
        yield client


@asynccontextmanager
async def client_of(gateway: APIGateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that calls a gateway in this process."""
    transport = httpx2.ASGITransport(app=gateway)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:
        yield client


def bearer(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


class IssuerServer:
    """An authorization server on a socket. `pages` maps a path to JSON, to (status, JSON), to bytes, or to a function
    of the request's body that gives one of these; `hits` counts requests by path, and `asked` is set by the first.
    `gate` holds answers back while cleared.
    """

    def __init__(self, *keys: Any) -> None:
        self.keys = list(keys)
        self.hits: dict[str, int] = {}
        self.requests: list[tuple[bytes, bytes]] = []
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.pages: dict[str, Any] = {
            "/.well-known/openid-configuration": lambda body: self.metadata(),
            "/keys": lambda body: key_set(*self.keys),
        }
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    def metadata(self, **changed: object) -> dict[str, object]:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "token_endpoint": f"{self.url}/token",
            "introspection_endpoint": f"{self.url}/introspect",
            **changed,
        }

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Go away: connections are cut, new ones refused."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> IssuerServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        path = head.split(b" ")[1].decode()
        self.asked.set()
        self.hits[path] = self.hits.get(path, 0) + 1
        self.requests.append((head, body))
        await self.gate.wait()
        page = self.pages.get(path, (404, {}))
        page = page(body) if callable(page) else page
        if isinstance(page, bytes):
            writer.write(page)
            await writer.drain()
            return
        status, document = page if isinstance(page, tuple) else (200, page)
        text = json.dumps(document).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(text)) + text)
        await writer.drain()
