"""What the tests of rate limits share: a clock to turn, requests of any client, and limits by their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.forwarded import Forwarding
from fastapi_mesh.api_gateway.headers import NO_BODY, Head
from fastapi_mesh.api_gateway.principal import Principal
from fastapi_mesh.api_gateway.ratelimit.windows import Charge, Window
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.api_gateway.target import Place
from fastapi_mesh.config.edge.limits import rates_of
from fastapi_mesh.config.gateway import RouteConfig
from fastapi_mesh.config.policies import CallPolicy, ServicePolicy
from fastapi_mesh.core.context import CallContext
from fastapi_mesh.core.live import Live
from fastapi_mesh.core.message import Response
from fastapi_mesh.core.state import ServiceState

STRATEGIES = ("sliding", "moving", "fixed")


class Clock:
    """Seconds that stand still until they are told to go on."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def charges(text: str, strategy: str = "sliding", *, key: str = "k", cost: int = 1) -> list[Charge]:
    """What a request of the client `key` is charged under the limit `text`."""
    return [
        (f"{{{key}}}:{strategy}:{rate.seconds}", Window(strategy, rate.amount, rate.seconds, "l", "l"), cost)  # type: ignore[arg-type]
        for rate in rates_of(text)
    ]


class NoPicker:
    def pick(self, instances: Sequence[object], request: object) -> object:
        raise AssertionError("no instance is picked in these tests")


def new_request(
    address: str = "192.0.2.1",
    *,
    principal: str | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    trusted: Sequence[str] = (),
    route: Route | None = None,
) -> Exchange:
    """A request from `address` ("" for a Unix socket), authenticated as `principal` if one is given."""
    route = route or Route(RouteConfig(path="/users/*", service="users"))
    state = ServiceState("users", instances=Live(()), picker=NoPicker())  # type: ignore[arg-type]
    context = CallContext(CallPolicy.compile(ServicePolicy()), state, template=route.path)
    scope = {
        "type": "http",
        "method": "GET",
        "client": (address, 1) if address else None,
        "query_string": b"",
        "http_version": "1.1",
        "headers": list(headers),
    }
    forwarding = [header for header in headers if header[0].startswith(b"x-forwarded")]
    head = Head([], b"gateway", NO_BODY)
    head.forwarding = forwarding or None
    origin = Forwarding(trusted).append(head, scope, b"")
    place = Place(b"/users/7")
    place.route = route
    request = Exchange(place, scope, head, origin, b"/users/7", b"", context)
    if principal is not None:
        request.principal = Principal(principal, "jwt")
    return request


class Service:
    """What is behind the layer: counts and answers."""

    def __init__(self, answer: Callable[[], Response] | None = None) -> None:
        self.calls = 0
        self._answer = answer or (lambda: Response.of(200, [(b"content-type", b"text/plain")], b"ok"))

    async def __call__(self, request: object) -> Response:
        self.calls += 1
        return self._answer()
