"""What a gateway does with a request that has a route: the order of its layers, each with its reason.

The table is the only place that knows the order; the mesh's own stack (`service_mesh/stack.py`) follows below it.
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

    from fastapi_mesh.api_gateway.observe import Meter
    from fastapi_mesh.core.message import Header
    from fastapi_mesh.layers.base import Service


@dataclass(frozen=True, slots=True)
class Parts:
    """What the layers are made of. `meter` is None without metrics; `dropped` are response headers that end here."""

    meter: Meter | None
    dropped: frozenset[bytes]
    via: Header


@dataclass(frozen=True, slots=True)
class Row:
    """One layer: what it must sit outside of, and why. It is left out where `make` gives None."""

    name: str
    outside: tuple[str, ...]
    because: str
    make: Callable[[Service, Parts], Service | None]


MESH = "Mesh"

ORDER: tuple[Row, ...] = (
    Row(
        "Problems",
        outside=("Observe", "RequestId", "Buffer", "Hop", MESH),
        because="whatever fails further in, the client gets problem+json and nothing else",
        make=lambda inner, parts: Problems(inner),
    ),
    Row(
        "Observe",
        outside=("RequestId", "Buffer", "Hop", MESH),
        because="every answer and every refusal of a layer is counted, with the status the client sees",
        make=lambda inner, parts: None if parts.meter is None else Observe(inner, meter=parts.meter),
    ),
    Row(
        "RequestId",
        outside=("Buffer", "Hop", MESH),
        because="all layers that log, refuse or forward name the request by one id; it must not be taken for a hop's",
        make=lambda inner, parts: RequestId(inner),
    ),
    Row(
        "Buffer",
        outside=(MESH,),
        because="a retry needs the body again; every refusal sits outside, so that no body is read for one",
        make=lambda inner, parts: Buffer(inner),
    ),
    Row(
        "Hop",
        outside=(MESH,),
        because="the layers outside see the answer as the client will: without fields of the connection to the service",
        make=lambda inner, parts: Hop(inner, dropped=parts.dropped, via=parts.via),
    ),
)


def compile_chain(mesh: Service, parts: Parts) -> Service:
    """The layers of `ORDER` around `mesh`."""
    chain = mesh
    for row in reversed(ORDER):
        chain = row.make(chain, parts) or chain
    return chain
