"""A layer that turns errors into answers: RFC 9457 problem details, and nothing of what happened behind the gateway."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from fastapi_mesh.api_gateway.headers import CLOSE
from fastapi_mesh.core.message import Response
from fastapi_mesh.core.problem import document, problem
from fastapi_mesh.exceptions import ClientDisconnectedError, InvalidRequestError, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.api_gateway.exchange import Exchange, GatewayService
    from fastapi_mesh.api_gateway.table import Refusal
    from fastapi_mesh.core.message import Header

logger = logging.getLogger("fastapi_mesh.gateway")

NO_ROUTE = "no-route"
INTERNAL = "internal"
REQUEST_ID = b"x-request-id"


class GatewayRefusalError(MeshError):
    """A layer of the gateway says no, and why. One subclass per rule, with its `status` and `reason`.

    `detail` is shown to the client as it is, so it names the rule and never an address, a key or a token. `headers` go
    along (a challenge, limits, `Location`); `retry_after` is seconds.
    """

    status: ClassVar[int] = 403
    reason: ClassVar[str] = "refused"

    def __init__(self, detail: str, *, headers: Iterable[Header] = (), retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = tuple(headers)
        self.retry_after = retry_after


class Problems:
    """Answers for what the layers inside raise. A client that went away gets no answer, so that error passes."""

    __slots__ = ("inner",)

    def __init__(self, inner: GatewayService) -> None:
        self.inner = inner

    async def __call__(self, request: Exchange) -> Response:
        try:
            return await self.inner(request)
        except ClientDisconnectedError:
            raise
        except GatewayRefusalError as error:
            return refused(error, request.service, request.context.request_id)
        except MeshError as error:
            if error.status >= 500:
                logger.log(
                    # A refusal is no news: the change that it follows from (a circuit opened) has a line of its own.
                    logging.WARNING if error.attempts else logging.DEBUG,
                    "%s %s: %s (%s)",
                    request.service,
                    request.context.template,
                    str(error) or type(error).__name__,
                    error.reason,
                )
            return answer_to(error, request.context.request_id)
        except Exception:  # the last door: whatever it is, the client gets an answer and the log the reason
            logger.exception("%s %s failed inside the gateway", request.service, request.context.template)
            return internal(request.service, request.context.request_id)


def answer_to(error: MeshError, trace_id: str) -> Response:
    """The answer for an error of a call; its own text may name addresses and is not shown."""
    status, headers, body = problem(error, trace_id)
    return _response(status, headers, body, trace_id)


def refused(error: GatewayRefusalError, service: str | None, trace_id: str) -> Response:
    """The answer of a layer that said no."""
    status, headers, body = document(
        error.status, error.reason, error.detail, service=service, trace_id=trace_id, retry_after=error.retry_after
    )
    headers.extend(error.headers)
    return _response(status, headers, body, trace_id)


def refuse(refusal: Refusal, trace_id: str) -> Response:
    """The answer for a path of ours that leads nowhere, or for an OPTIONS that nobody else answers."""
    if refusal.status == 204:
        return _response(204, [(b"allow", ", ".join(refusal.allow).encode())], b"", trace_id)
    status, headers, body = document(refusal.status, refusal.reason, refusal.detail, trace_id=trace_id)
    if refusal.allow:
        headers.append((b"allow", ", ".join(refusal.allow).encode()))
    return _response(status, headers, body, trace_id)


def reject(error: InvalidRequestError, trace_id: str) -> Response:
    """The answer for a request that we found fault with, whose text is ours and says what."""
    status, headers, body = document(error.status, error.reason, str(error), trace_id=trace_id)
    return _response(status, headers, body, trace_id)


def internal(service: str | None, trace_id: str) -> Response:
    """The answer when the fault is in the gateway."""
    status, headers, body = document(
        500, INTERNAL, "an error inside the gateway; its log says more", service=service, trace_id=trace_id
    )
    return _response(status, headers, body, trace_id)


def _response(status: int, headers: list[Header], body: bytes, trace_id: str) -> Response:
    if trace_id:
        headers.append((REQUEST_ID, trace_id.encode()))
    if status in (400, 408, 431):
        # What follows on this connection may be part of what could not be understood.
        headers.append(CLOSE)
    return Response.of(status, headers, body)
