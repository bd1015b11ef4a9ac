"""What a gateway does with a request that has a route: the order of its layers, each with its reason.

The table is the only place that knows the order; the mesh's own stack (`service_mesh/stack.py`) follows below it.
Each route has its own chain, with the layers it uses and no others: what is off costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.access_log import AccessLog
from fastapi_mesh.api_gateway.admission import Admission
from fastapi_mesh.api_gateway.affinity import Affinity
from fastapi_mesh.api_gateway.body_limit import BodyLimit
from fastapi_mesh.api_gateway.buffer import Buffer
from fastapi_mesh.api_gateway.cache.wiring import dropped_below
from fastapi_mesh.api_gateway.cors import Cors, Preflight, rules_of
from fastapi_mesh.api_gateway.fault import Fault
from fastapi_mesh.api_gateway.header_ops import Headers
from fastapi_mesh.api_gateway.hop import Hop
from fastapi_mesh.api_gateway.https import Https
from fastapi_mesh.api_gateway.mirror import Mirror
from fastapi_mesh.api_gateway.observe import Observe
from fastapi_mesh.api_gateway.own_state import OwnState
from fastapi_mesh.api_gateway.problems import Problems
from fastapi_mesh.api_gateway.request_id import RequestId
from fastapi_mesh.api_gateway.split import Split
from fastapi_mesh.api_gateway.transform.layer import Transform
from fastapi_mesh.config.edge.transform import TransformConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi_mesh.api_gateway.access_lines import AccessLines
    from fastapi_mesh.api_gateway.admission import InboundSeats
    from fastapi_mesh.api_gateway.auth.plan import AuthPlan
    from fastapi_mesh.api_gateway.cache.wiring import Caching
    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.api_gateway.own_state import RouteState
    from fastapi_mesh.api_gateway.ratelimit.limits import RateLimits
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.api_gateway.transform.steps import TransformerPair
    from fastapi_mesh.config.edge.cors import CorsConfig
    from fastapi_mesh.core.message import Header, Response
    from fastapi_mesh.service_mesh.mesh import ServiceMesh

_TRANSFORM = TransformConfig()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the layers of all routes share. `meter` is None without metrics; `dropped` are response headers that end
    here. The engines (what counts, stores or verifies) outlive a reload while their own settings are unchanged, and are
    None where nothing asks for them.
    """

    meter: Meter | None
    dropped: frozenset[bytes]
    via: Header
    mesh: ServiceMesh
    cors: CorsConfig | None = None
    lines: AccessLines | None = None
    transform: TransformConfig = _TRANSFORM
    transformers: tuple[TransformerPair, ...] = ()
    limits: RateLimits | None = None
    auth: AuthPlan | None = None
    caching: Caching | None = None
    own_states: Mapping[Route, RouteState] = field(default_factory=dict)
    inbound: InboundSeats | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One layer: what it must sit outside of, and why. It is left out where `make` gives None.

    `outside` names the next ones only: whoever is outside of a row is outside of all that this row is outside of.
    """

    name: str
    outside: tuple[str, ...]
    because: str
    make: Callable[[GatewayService, Route, Parts], GatewayService | None]
    upgrades: bool = True
    """Whether it takes part in a WebSocket's handshake, whose answer is a connection and no body."""


MESH = "Mesh"

ORDER: tuple[Row, ...] = (
    Row(
        "Cors",
        outside=("AccessLog",),
        because="a page can only read what is marked for it, refusals and errors too",
        make=lambda inner, route, parts: (
            Cors(inner, rules) if (rules := rules_of(route.config, parts.cors)) is not None else None
        ),
        upgrades=False,
    ),
    Row(
        "AccessLog",
        outside=("Problems",),
        because="a line says what the client got, of refusals and errors too",
        make=lambda inner, route, parts: None if parts.lines is None else AccessLog(inner, parts.lines),
    ),
    Row(
        "Problems",
        outside=("Observe",),
        because="whatever fails further in, the client gets problem+json and nothing else",
        make=lambda inner, route, parts: Problems(inner),
    ),
    Row(
        "Observe",
        outside=("RequestId",),
        because="every answer and every refusal of a layer is counted, with the status the client sees",
        make=lambda inner, route, parts: None if parts.meter is None else Observe(inner, meter=parts.meter),
    ),
    Row(
        "RequestId",
        outside=("Preflight",),
        because="all layers that log, refuse or forward name the request by one id; it must not be taken for a hop's",
        make=lambda inner, route, parts: RequestId(inner),
    ),
    Row(
        "Preflight",
        outside=("Https",),
        because="browsers send preflights without credentials, and services needn't know of them",
        make=lambda inner, route, parts: (
            Preflight(inner, rules, route.config.methods)
            if (rules := rules_of(route.config, parts.cors)) is not None
            else None
        ),
        upgrades=False,
    ),
    Row(
        "Https",
        outside=("Admission",),
        because="nothing is done for a request that came in the clear, and a redirect costs as little as can be",
        make=lambda inner, route, parts: None if route.https_port is None else Https(inner, route.https_port),
    ),
    Row(
        "Admission",
        outside=("BodyLimit",),
        because="what is too much is refused before credentials are checked or a byte of a body is read",
        make=lambda inner, route, parts: (
            Admission(inner, parts.inbound, route.config.request_priority)
            if Admission.used_by(route, parts.inbound)
            else None
        ),
        upgrades=False,
    ),
    Row(
        "BodyLimit",
        outside=("IpRateLimit",),
        because="whatever reads a body further in, reads no more of it than allowed",
        make=lambda inner, route, parts: None if route.max_body is None else BodyLimit(inner, route.max_body),
        upgrades=False,
    ),
    Row(
        "IpRateLimit",
        outside=("Authenticate",),
        because="trying out credentials costs something, so an address is counted before they are checked",
        make=lambda inner, route, parts: None if parts.limits is None else parts.limits.ip_layer(inner, route),
    ),
    Row(
        "Authenticate",
        outside=("Authorize",),
        because="all layers further in may rely on who it is; nothing is counted, cached or sent on for nobody",
        make=lambda inner, route, parts: (
            None if parts.auth is None else parts.auth.authenticate(inner, route, parts.meter)
        ),
    ),
    Row(
        "Authorize",
        outside=("RateLimit",),
        because="a client that may not do this uses up nothing, and no stored answer shows it what it may not see",
        make=lambda inner, route, parts: (
            None if parts.auth is None else parts.auth.authorize(inner, route, parts.meter)
        ),
    ),
    Row(
        "RateLimit",
        outside=("Split",),
        because="clients are counted by who they are; a cached answer counts too, and a refused request costs nothing",
        make=lambda inner, route, parts: None if parts.limits is None else parts.limits.layer(inner, route),
    ),
    Row(
        "Split",
        outside=("Affinity",),
        because="which service answers is known before anything is looked up or sent under its name",
        make=lambda inner, route, parts: (
            Split(inner, route.config.split, route.config.canary, parts.mesh)
            if route.config.split is not None or route.config.canary
            else None
        ),
    ),
    Row(
        "Affinity",
        outside=("Cache",),
        because="a client's cookie is for the service that was chosen, and must not be stored for other clients",
        make=lambda inner, route, parts: Affinity(inner) if route.sticky else None,
    ),
    Row(
        "Cache",
        outside=("Invalidate",),
        because="it answers only whom all refusals have let pass, under the name of the service that would answer",
        make=lambda inner, route, parts: None if parts.caching is None else parts.caching.layer(inner, route),
        upgrades=False,
    ),
    Row(
        "Invalidate",
        outside=("Transform",),
        because="what was changed is forgotten before the client hears of it, and a planted fault changes nothing",
        make=lambda inner, route, parts: None if parts.caching is None else parts.caching.invalidation(inner, route),
        upgrades=False,
    ),
    Row(
        "Transform",
        outside=("Fault",),
        because="what is cached was transformed once; what is retried, copied and forwarded is what they have made",
        make=lambda inner, route, parts: (
            Transform(inner, pairs, route.config.transform or parts.transform, dropped=parts.dropped)
            if (pairs := [pair for pair in parts.transformers if pair.is_for(route.path)])
            else None
        ),
    ),
    Row(
        "Fault",
        outside=("Identity",),
        because="a planted fault stands for one of the service's, and costs neither a body nor a copy",
        make=lambda inner, route, parts: (
            None if route.config.fault is None else Fault(inner, route.config.fault, parts.meter)
        ),
    ),
    Row(
        "Identity",
        outside=("Headers", "UpstreamToken"),
        because="what a service is told of the client may be made for that service, so it must be known which it is",
        make=lambda inner, route, parts: None if parts.auth is None else parts.auth.identity(inner, route),
    ),
    Row(
        "Headers",
        outside=("Buffer",),
        because="what a route says of headers is the last word on them, after every layer that writes some",
        make=lambda inner, route, parts: Headers(inner, route) if Headers.used_by(route) else None,
    ),
    Row(
        "Buffer",
        outside=("Mirror",),
        because="a retry and a copy need the body again; every refusal sits outside, so that no body is read for one",
        make=lambda inner, route, parts: Buffer(inner),
        upgrades=False,
    ),
    Row(
        "Mirror",
        outside=("Hop",),
        because="the copy is what the service gets, with a body that can be sent twice",
        make=lambda inner, route, parts: (
            None
            if (mirror := route.config.mirror) is None
            else Mirror(inner, mirror, parts.mesh, parts.meter, told=None if parts.auth is None else parts.auth.told)
        ),
        upgrades=False,
    ),
    Row(
        "UpstreamToken",
        outside=("Hop",),
        because="the token is for that service: the copy that a mirror sends elsewhere must not have it",
        make=lambda inner, route, parts: None if parts.auth is None else parts.auth.upstream_token(inner, route),
    ),
    Row(
        "Hop",
        outside=("OwnState",),
        because="the layers outside see the answer as the client will: without fields of the connection to the service",
        make=lambda inner, route, parts: Hop(
            inner, dropped=dropped_below(parts.caching, route, parts.dropped), via=parts.via
        ),
    ),
    Row(
        "OwnState",
        outside=(MESH,),
        because="the call is made under the route's policy, to the service that is chosen by now",
        make=lambda inner, route, parts: None if (own := parts.own_states.get(route)) is None else OwnState(inner, own),
    ),
)


class LateChain:
    """A chain that is compiled for the first request that needs it: few routes ever see a WebSocket."""

    __slots__ = ("_chain", "_make")

    def __init__(self, make: Callable[[], GatewayService]) -> None:
        self._make = make
        self._chain: GatewayService | None = None

    async def __call__(self, request: Exchange) -> Response:
        if self._chain is None:
            self._chain = self._make()
        return await self._chain(request)


def compile_chain(mesh: GatewayService, route: Route, parts: Parts, *, upgrade: bool = False) -> GatewayService:
    """The layers of `ORDER` that `route` uses, around `mesh`; with `upgrade` those of a WebSocket's handshake."""
    chain = mesh
    for row in reversed(ORDER):
        if row.upgrades or not upgrade:
            chain = row.make(chain, route, parts) or chain
    return chain


def compile_own(answer: GatewayService, route: Route, parts: Parts) -> GatewayService:
    """The layers around what the gateway answers itself, to whoever asks: all that sit outside of Authenticate."""
    chain = answer
    for row in reversed(ORDER[: [row.name for row in ORDER].index("Authenticate")]):
        chain = row.make(chain, route, parts) or chain
    return chain
