"""The one abstraction: a service function answers a request, a layer is one that holds another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Request, Response

Service = Callable[["Request"], Awaitable["Response"]]
"""Tower's Service, Finagle's Service: `async (request) -> response`."""


REASON_HEADER = b"x-mesh-reason"
OVERLOADED = b"overloaded"
"""The reason of an instance that answers as many requests as it can: another one may answer this at once."""
OVERLOADED_FOR = 1.0
"""Seconds that a client which is refused for it is asked to wait."""


def is_secondhand(response: Response) -> bool:
    """Whether a failure status was made by a mesh for a call further on, and not by the instance that sent it.

    That mesh has retried and counted already. Retrying here too would multiply the attempts hop by hop, and ejecting
    the messenger would spread one service's outage to all that call it.
    """
    return response.header(REASON_HEADER) is not None


def reason_of(error: BaseException) -> str:
    """The slug under which `error` is counted."""
    return error.reason if isinstance(error, MeshError) else type(error).__name__
