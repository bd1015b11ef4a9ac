"""Why a login, or a request with a session, is refused."""

from __future__ import annotations

from typing import ClassVar

from fastapi_mesh.api_gateway.problems import GatewayRefusalError


class LoginStateError(GatewayRefusalError):
    """A browser came back from a login that it did not begin, or that was finished or began too long ago."""

    status: ClassVar[int] = 400
    reason: ClassVar[str] = "login-state"


class LoginRefusedError(GatewayRefusalError):
    """The authorization server let the user not in (RFC 6749 section 4.1.2.1)."""

    status: ClassVar[int] = 403
    reason: ClassVar[str] = "login-refused"


class LoginFailedError(GatewayRefusalError):
    """The authorization server answered with something that proves nothing."""

    status: ClassVar[int] = 502
    reason: ClassVar[str] = "login-failed"


class SessionTooLargeError(GatewayRefusalError):
    """The server's tokens need more room than browsers give to cookies."""

    status: ClassVar[int] = 502
    reason: ClassVar[str] = "session-too-large"


class CrossSiteError(GatewayRefusalError):
    """A page of another origin uses a session for something that changes something."""

    status: ClassVar[int] = 403
    reason: ClassVar[str] = "cross-site-request"
