"""What the cache's tests share: the cache over a scripted service, with time that is turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from email.utils import formatdate

from fastapi_mesh.api_gateway.cache.engine import CacheEngine
from fastapi_mesh.api_gateway.cache.flight import Flights
from fastapi_mesh.api_gateway.cache.invalidate import Invalidate
from fastapi_mesh.api_gateway.cache.layer import Cache
from fastapi_mesh.api_gateway.cache.memory import MemoryStore
from fastapi_mesh.api_gateway.cache.store import SharedStore
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.headers import NO_BODY, Head
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.api_gateway.target import Place
from fastapi_mesh.config.edge.cache import CachePolicy
from fastapi_mesh.config.gateway import RouteConfig
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Header, Response
from fastapi_mesh.core.state import ServiceState
from fastapi_mesh.core.tasks import Supervisor

START = 1_800_000_000.0
"""Unix seconds at which the tests begin."""
POLICY = CachePolicy(credentials=("x-api-key",))
Script = Callable[[Exchange], "Response | Awaitable[Response]"]


class NoPicker:
    def pick(self, instances, request):  # type: ignore[no-untyped-def]
        raise AssertionError("no instance is picked in these tests")


STATE = ServiceState("up", instances=Live(()), picker=NoPicker())
CALLS = CallPolicy.compile(ServicePolicy())


def pairs(headers: Iterable[str]) -> list[Header]:
    """`"Name: value"` as headers."""
    split = (line.partition(":") for line in headers)
    return [(name.lower().encode(), value.strip().encode("latin-1")) for name, _, value in split]


def reply(body: bytes | str = b"", *headers: str, status: int = 200) -> Response:
    """An answer whose body is there."""
    content = body.encode() if isinstance(body, str) else body
    return Response.of(status, [*pairs(headers), (b"content-length", str(len(content)).encode())], content)


def http_date(at: float) -> str:
    return formatdate(at, usegmt=True)


@dataclass
class Parts:
    """A body that comes part by part; a part that is an exception is raised, an event is waited for."""

    parts: list[bytes | BaseException | asyncio.Event]
    closed: bool = False
    at_end: bool = field(default=False)

    async def read(self) -> bytes:
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, BaseException):
                raise part
            if isinstance(part, asyncio.Event):
                await part.wait()
                continue
            self.at_end = not self.parts
            return part
        self.at_end = True
        return b""

    async def aclose(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Reply:
    """What the client got."""

    status: int
    headers: list[Header]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        values = [value.decode("latin-1") for each, value in self.headers if each == name.encode()]
        return ", ".join(values) if values else None

    @property
    def cache(self) -> str:
        """What Cache-Status says behind the name, without the key."""
        parts = (self["cache-status"] or "").split("; ")
        return "; ".join(part for part in parts[1:] if not part.startswith("key="))

    @property
    def is_hit(self) -> bool:
        return self.cache.startswith("hit")


class Meter:
    def __init__(self) -> None:
        self.results: list[str] = []
        self.bytes = 0
        self.failures = 0

    def result(self, path: str, result: str) -> None:
        assert path == "/*"
        self.results.append(result)

    def stored(self, size: int) -> None:
        self.bytes += size

    def failed(self) -> None:
        self.failures += 1


def exchange(
    target: str,
    *headers: str,
    method: str = "GET",
    principal: Principal | None = None,
    host: str = "gw",
    scheme: str = "http",
    route: Route | None = None,
) -> Exchange:
    """A request as the layers get it, without the headers that the gateway adds for the service."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "client": ("192.0.2.1", 1),
        "query_string": query.encode(),
        "http_version": "1.1",
        "scheme": scheme,
    }
    head = Head([(b"host", host.encode()), *pairs(headers)], host.encode(), NO_BODY)
    origin = Forwarding().append(Head([], host.encode(), NO_BODY), scope, b"")
    place = Place(path.encode())
    place.route = route or ROUTE
    context = CallContext(CALLS, STATE, template="/*")
    context.request_id = "id-1"
    made = Exchange(place, scope, head, origin, target.encode(), b"", context)
    made.principal = principal
    return made


ROUTE = Route(RouteConfig(path="/*", service="up"))


class Stage:
    """`script` is the service; `calls` are the requests that it got."""

    def __init__(
        self,
        script: Script,
        *,
        store: SharedStore | None = None,
        route: Route | None = None,
        max_bytes: int = 1 << 20,
        max_variants: int = 32,
        **policy: object,
    ) -> None:
        self.now = START
        self.calls: list[Exchange] = []
        self.script = script
        self.meter = Meter()
        self.supervisor = Supervisor()
        self.memory = MemoryStore(max_bytes, max_variants=max_variants)
        self.flights = Flights()
        self.engine = CacheEngine(store or self.memory, meter=self.meter, flights=self.flights, clock=lambda: self.now)
        self.policy = replace(POLICY, **policy)  # type: ignore[arg-type]  # the tests know the fields
        self.route = route or ROUTE
        self.cache = Cache(
            Invalidate(self._serve, self.engine, supervisor=self.supervisor),
            self.route,
            self.engine,
            self.policy,
            name=b"gw",
            supervisor=self.supervisor,
        )

    async def _serve(self, request: Exchange) -> Response:
        self.calls.append(request)
        answer = self.script(request)
        return answer if isinstance(answer, Response) else await answer

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.aclose()
        assert self.flights.statistics()["flights"] == 0, "a flight was left in the air"

    async def get(
        self,
        target: str = "/a",
        *headers: str,
        method: str = "GET",
        principal: Principal | None = None,
        host: str = "gw",
        scheme: str = "http",
    ) -> Reply:
        """One request, its answer read to the end."""
        request = exchange(
            target, *headers, method=method, principal=principal, host=host, scheme=scheme, route=self.route
        )
        response = await self.cache(request)
        try:
            body = b"".join([part async for part in response])
        finally:
            await response.aclose()
        return Reply(response.status, response.headers, body)

    async def settled(self) -> None:
        """Wait until nothing runs in the background."""
        while self.supervisor.statistics()["tasks"]:  # noqa: ASYNC110  # nothing there has an event
            await asyncio.sleep(0)

    def asked_for(self, name: str) -> list[str | None]:
        """The values of a header in all calls."""
        found = []
        for call in self.calls:
            values = [value.decode("latin-1") for each, value in call.headers if each == name.encode()]
            found.append(values[0] if values else None)
        return found


def numbered(*headers: str) -> Script:
    """A service that says "1", "2"... with these headers."""
    count = 0

    def answer(request: Exchange) -> Response:
        nonlocal count
        count += 1
        return reply(str(count), *headers)

    return answer
