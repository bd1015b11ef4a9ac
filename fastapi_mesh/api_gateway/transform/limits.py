"""What can be wrong with a message at the transformers."""

from __future__ import annotations

from typing import ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError


class UnsendableError(Exception):
    """Transformers made a message that can't be sent."""


class RequestTooLongError(GatewayRefusalError):
    """A transformer reads a request's body, and it is longer than `transform.max_body`."""

    status: ClassVar[int] = 413
    reason: ClassVar[str] = "transform-body-limit"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A body that this gateway has to read whole has at most {limit} bytes.")


class ResponseTooLongError(GatewayRefusalError):
    """A transformer reads an answer's body, and it is longer than `transform.max_body`."""

    status: ClassVar[int] = 502
    reason: ClassVar[str] = "transform-body-limit"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The service's answer has more than the {limit} bytes that this gateway reads whole.")


class RequestUnreadableError(GatewayRefusalError):
    """A transformer reads a request's body, and its content coding can't be taken off."""

    status: ClassVar[int] = 415
    reason: ClassVar[str] = "transform-unreadable"


class ResponseUnreadableError(GatewayRefusalError):
    """A transformer reads an answer's body that is an event stream, or in a coding that can't be taken off."""

    status: ClassVar[int] = 502
    reason: ClassVar[str] = "transform-unreadable"
