"""The one abstraction: a service function answers a request, a layer is one that holds another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import MeshError, ServiceUnavailableError

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Request, Response

Service = Callable[["Request"], Awaitable["Response"]]
"""Tower's Service, Finagle's Service: `async (request) -> response`."""


def blames_service(error: BaseException) -> bool:
    """Whether `error` says something about the service, and not about us or our caller."""
    return isinstance(error, ServiceUnavailableError)


def reason_of(error: BaseException) -> str:
    """The slug under which `error` is counted."""
    return error.reason if isinstance(error, MeshError) else type(error).__name__
