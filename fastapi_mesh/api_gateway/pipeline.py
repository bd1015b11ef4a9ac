"""What a gateway does with a request that has a route: the order of its layers, each with its reason.

The table is the only place that knows the order; the mesh's own stack (`service_mesh/stack.py`) follows below it.
Each route has its own chain, with the layers it uses and no others: what is off costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.buffer import Buffer
from fastapi_mesh.api_gateway.hop import Hop
from fastapi_mesh.api_gateway.observe import Observe
from fastapi_mesh.api_gateway.problems import Problems
from fastapi_mesh.api_gateway.request_id import RequestId

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.exchange import GatewayService
    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.api_gateway.routes import Route
    from fastapi_mesh.core.message import Header


@dataclass(frozen=True, slots=True)
class Parts:
    """What the layers of all routes share. `meter` is None without metrics; `dropped` are response headers that end
    here. The engines (what counts, stores or verifies) outlive a reload while their own settings are unchanged, and are
    None where nothing asks for them.
    """

    meter: Meter | None
    dropped: frozenset[bytes]
    via: Header


@dataclass(frozen=True, slots=True)
class Row:
    """One layer: what it must sit outside of, and why. It is left out where `make` gives None."""

    name: str
    outside: tuple[str, ...]
    because: str
    make: Callable[[GatewayService, Route, Parts], GatewayService | None]


MESH = "Mesh"

ORDER: tuple[Row, ...] = (
    Row(
        "Problems",
        outside=("Observe", "RequestId", "Buffer", "Hop", MESH),
        because="whatever fails further in, the client gets problem+json and nothing else",
        make=lambda inner, route, parts: Problems(inner),
    ),
    Row(
        "Observe",
        outside=("RequestId", "Buffer", "Hop", MESH),
        because="every answer and every refusal of a layer is counted, with the status the client sees",
        make=lambda inner, route, parts: None if parts.meter is None else Observe(inner, meter=parts.meter),
    ),
    Row(
        "RequestId",
        outside=("Buffer", "Hop", MESH),
        because="all layers that log, refuse or forward name the request by one id; it must not be taken for a hop's",
        make=lambda inner, route, parts: RequestId(inner),
    ),
    Row(
        "Buffer",
        outside=(MESH,),
        because="a retry needs the body again; every refusal sits outside, so that no body is read for one",
        make=lambda inner, route, parts: Buffer(inner),
    ),
    Row(
        "Hop",
        outside=(MESH,),
        because="the layers outside see the answer as the client will: without fields of the connection to the service",
        make=lambda inner, route, parts: Hop(inner, dropped=parts.dropped, via=parts.via),
    ),
)


def compile_chain(mesh: GatewayService, route: Route, parts: Parts) -> GatewayService:
    """The layers of `ORDER` that `route` uses, around `mesh`."""
    chain = mesh
    for row in reversed(ORDER):
        chain = row.make(chain, route, parts) or chain
    return chain
