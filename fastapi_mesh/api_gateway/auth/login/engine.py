"""Logins and sessions of one provider: nothing is stored but what keeps a session's renewal to one call.

What a session needs, the browser brings, encrypted; so any process with the same secret answers for it.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import CredentialError, ProviderUnavailableError
from fastapi_mesh.api_gateway.auth.flight import Flights
from fastapi_mesh.api_gateway.auth.login.flow import RefusedByServerError, challenge_of, logger
from fastapi_mesh.api_gateway.auth.login.session import Kept, Session
from fastapi_mesh.api_gateway.auth.login.state import Attempt, Spent

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.auth.base import Tools
    from fastapi_mesh.api_gateway.auth.jose import Sealer
    from fastapi_mesh.api_gateway.auth.login.flow import CodeFlow, Tokens
    from fastapi_mesh.api_gateway.auth.login.session import Sessions
    from fastapi_mesh.config.edge.login import LoginConfig

RETRY = 5.0
"""Seconds without renewals after one that failed because the server was away: no session waits for it again so soon."""
MARGIN = 10.0
"""Seconds before its end at which an access token is renewed, a fifth of its life at most: it is to be good still when
a service looks at it.
"""
GRACE = 30.0
"""Seconds after that for which a session goes on whose refresh token is refused: another process may have used it, and
the browser's other requests are on their way with the cookie of before.
"""


class BrowserLogins:
    """The engine behind a provider's `login`. Times are Unix seconds."""

    def __init__(
        self, name: str, config: LoginConfig, flow: CodeFlow, sessions: Sessions, sealer: Sealer, tools: Tools
    ) -> None:
        """`name` is the provider's; `sealer` is for logins under way."""
        self.name = name
        self.config = config
        self.flow = flow
        self._sessions = sessions
        self._sealer = sealer
        self._wall = tools.wall
        self._size = tools.cache_size
        self._open: OrderedDict[bytes, Session] = OrderedDict()
        """Sessions by the SHA-256 of what the browser brought: opening one costs 150 us."""
        self._latest: OrderedDict[str, Session] = OrderedDict()
        """By a session's id, what it was renewed to here: requests with the cookie of before are still on their way."""
        self._away_until = 0.0
        """When the server may be asked again, after it could not be."""
        self._used = Spent(tools.cache_size, tools.wall)
        self._ended = Spent(tools.cache_size, tools.wall)
        """Ids of sessions that were logged out here."""
        self._refused = Spent(tools.cache_size, tools.wall)
        """Refresh tokens that the server takes no more."""
        self._flights: Flights[Session] = Flights(tools.supervisor, "gateway-session")

    def statistics(self) -> dict[str, int]:
        """Sessions that this process remembers, and renewals under way."""
        return {"sessions": len(self._open), "renewing": len(self._flights)}

    def age(self, session: Session) -> float:
        """Seconds that are left of a session."""
        return session.kept.ends - self._wall()

    # A login.

    async def begin(self, redirect_uri: str, return_to: str) -> tuple[Attempt, str, str]:
        """A new login: what the browser keeps of it, and where it goes. Raises ProviderUnavailableError."""
        attempt = Attempt.new(redirect_uri, return_to, self._wall() + self.config.login_timeout)
        address = await self.flow.authorization(
            state=attempt.state,
            nonce=attempt.nonce,
            challenge=challenge_of(attempt.verifier),
            redirect_uri=redirect_uri,
        )
        return attempt, attempt.sealed(self._sealer), address

    def take(self, state: str, sealed: str | None) -> Attempt | None:
        """The login that a browser comes back from, once; None where that is not one which this browser began."""
        attempt = None if sealed is None else Attempt.opened(self._sealer, sealed)
        if attempt is None or attempt.until <= self._wall():
            return None
        if not secrets.compare_digest(attempt.state.encode(), state.encode()):
            return None
        return attempt if self._used.add(state, attempt.until) else None

    async def finish(self, attempt: Attempt, code: str) -> Session:
        """The session for a code. Raises RefusedByServerError, CredentialError, ProviderUnavailableError."""
        tokens = await self.flow.exchange(
            code, verifier=attempt.verifier, redirect_uri=attempt.redirect_uri, nonce=attempt.nonce
        )
        now = self._wall()
        kept = Kept(
            secrets.token_urlsafe(16),
            0,
            now + self.config.session_lifetime,
            now,
            now,
            tokens.id_token or "",
            self.config.scopes if tokens.scopes is None else tokens.scopes,
        )
        return self._remember(self._sessions.new(self._with(kept, tokens, now)))

    # A session.

    async def find(self, sealed: str) -> Session | None:
        """The session that a browser brought, in its latest form; None where it is none, or is over.

        Raises ProviderUnavailableError where services get its access token and there is no good one.
        """
        session = self._opened(sealed)
        if session is None:
            return None
        kept, now = session.kept, self._wall()
        if kept.ends <= now or kept.id in self._ended:
            return None
        latest = self._latest.get(kept.id)
        if latest is not None and latest.kept.generation > kept.generation:
            session, kept = latest, latest.kept
        if now < kept.renew_at:
            return session
        if kept.refresh_token is None:
            return None if self.config.forward_access_token else session
        return await self._renewed(session, now)

    async def end(self, session: Session) -> None:
        """Forget it: in this process it counts no more, whoever brings it, and its refresh token is revoked."""
        self._ended.add(session.kept.id, session.kept.ends)
        latest = self._latest.pop(session.kept.id, session)
        self._open.pop(_digest(session.sealed), None)
        if latest.kept.refresh_token is not None:
            await self.flow.revoke(latest.kept.refresh_token)

    def read(self, sealed: str) -> Session | None:
        """The session in a cookie as it is, for its end."""
        return self._opened(sealed)

    async def aclose(self) -> None:
        await self._flights.aclose()
        await self.flow.aclose()

    def _opened(self, sealed: str) -> Session | None:
        digest = _digest(sealed)
        session = self._open.get(digest)
        if session is None:
            session = self._sessions.open(sealed)
            return None if session is None else self._remember(session)
        self._open.move_to_end(digest)
        return session

    def _remember(self, session: Session) -> Session:
        self._open[_digest(session.sealed)] = session
        if len(self._open) > self._size:
            self._open.popitem(last=False)
        return session

    async def _renewed(self, session: Session, now: float) -> Session | None:
        """The session with new tokens; as it is, while the server is away and nobody needs its access token."""
        kept = session.kept
        token = kept.refresh_token or ""
        is_refused = token in self._refused
        if not is_refused and now >= self._away_until:
            try:
                return await self._flights.join(kept.id, lambda: self._renew(session))
            except (RefusedByServerError, CredentialError) as error:
                logger.info("%s: a session could not be renewed: %s", self.name, error)
                is_refused = True
                self._refused.add(token, kept.ends)
            except ProviderUnavailableError:
                self._away_until = now + RETRY
        is_over = self.config.forward_access_token or now >= kept.renew_at + GRACE or kept.id in self._ended
        if is_refused and is_over:
            return None
        if self.config.forward_access_token:
            raise ProviderUnavailableError("the access token has ended, and there is no new one", retry_after=RETRY)
        return session

    async def _renew(self, session: Session) -> Session:
        kept = session.kept
        latest = self._latest.get(kept.id)
        if latest is not None and latest.kept.generation > kept.generation:
            return latest
        assert kept.refresh_token is not None, "sessions without one are not renewed"
        try:
            tokens = await self.flow.refresh(kept.refresh_token)
        except RefusedByServerError as error:
            if error.error in ("invalid_client", "unauthorized_client"):  # our own fault, and no news of the user
                logger.warning("%s: sessions can't be renewed: %s", self.name, error)
                raise ProviderUnavailableError(str(error), retry_after=RETRY) from error
            raise
        if kept.id in self._ended:  # meanwhile: no browser gets this one, and nobody is to have its token
            await self.flow.revoke(tokens.refresh_token or kept.refresh_token)
            raise RefusedByServerError("logged out")
        now = self._wall()
        new = self._sessions.new(self._with(replace(kept, generation=kept.generation + 1), tokens, now))
        if new.principal.claims.get("sub") != session.principal.claims.get("sub"):
            raise CredentialError("the new ID token is somebody else's")  # OpenID Connect Core section 12.2
        self._latest[kept.id] = new
        self._latest.move_to_end(kept.id)
        if len(self._latest) > self._size:
            self._latest.popitem(last=False)
        return self._remember(new)

    def _with(self, kept: Kept, tokens: Tokens, now: float) -> Kept:
        """What is kept after tokens came; a server that gives no new refresh token means the old one."""
        told = tokens.id_token is not None
        return replace(
            kept,
            renew_at=now + tokens.lasts - min(MARGIN, tokens.lasts / 5),
            at=now if told else kept.at,
            id_token=tokens.id_token or kept.id_token,
            scopes=kept.scopes if tokens.scopes is None else tokens.scopes,
            refresh_token=tokens.refresh_token or kept.refresh_token,
            access_token=tokens.access_token if self.config.forward_access_token else None,
        )


def _digest(sealed: str) -> bytes:
    return sha256(sealed.encode("utf-8", "replace")).digest()
