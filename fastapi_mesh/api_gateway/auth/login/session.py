"""A session: what a login gave, sealed for the browser to keep, and the principal that it stands for."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import CredentialError
from fastapi_mesh.api_gateway.auth.claims import principal_of
from fastapi_mesh.api_gateway.auth.compact import MalformedTokenError, read_compact, read_object

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.auth.claims import ClaimRules
    from fastapi_mesh.api_gateway.auth.compact import Json
    from fastapi_mesh.api_gateway.auth.jose import Sealer
    from fastapi_mesh.api_gateway.principal import Principal

_OF_THE_LOGIN = frozenset({"at_hash", "c_hash", "nonce", "s_hash"})
"""Claims that bind an ID token to its login, and say nothing of the user."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the browser keeps of a session. Times are Unix seconds.

    `id` stays for the session's life, `generation` counts its renewals. `ends` is its end, `renew_at` when its access
    token ends, `at` when `id_token` was checked. Access tokens are kept only where services get them.
    """

    id: str
    generation: int
    ends: float
    renew_at: float
    at: float
    id_token: str
    scopes: tuple[str, ...]
    refresh_token: str | None = None
    access_token: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A session as requests use it; `sealed` is the form in which the browser has it."""

    kept: Kept
    principal: Principal
    sealed: str


class Sessions:
    """Makes sessions of what was kept, and the other way round."""

    __slots__ = ("_rules", "_sealer")

    def __init__(self, sealer: Sealer, rules: ClaimRules) -> None:
        self._sealer = sealer
        self._rules = replace(rules, required=("sub",))

    def new(self, kept: Kept) -> Session:
        """Raises CredentialError where the ID token has no principal in it."""
        return Session(kept, self._principal(kept), self._sealer.seal(_written(kept)))

    def open(self, sealed: str) -> Session | None:
        """The session in a cookie; None for whatever we have not sealed. It may be over."""
        text = self._sealer.open(sealed)
        if text is None:
            return None
        try:
            kept = _read(read_object(text))
            return Session(kept, self._principal(kept), sealed)
        except (CredentialError, MalformedTokenError, ValueError):  # of another version, or other rules than now
            return None

    def _principal(self, kept: Kept) -> Principal:
        """An ID token is judged by the time at which it came (OpenID Connect Core section 2): it says who logged in."""
        claims = read_compact(kept.id_token).claims
        found = principal_of(claims, self._rules, kept.at)
        told = {name: value for name, value in claims.items() if name not in _OF_THE_LOGIN}
        return replace(found, scopes=found.scopes | set(kept.scopes), claims=MappingProxyType(told), expires=kept.ends)


def _written(kept: Kept) -> bytes:
    table = {
        "v": 1,
        "s": kept.id,
        "g": kept.generation,
        "e": kept.ends,
        "n": kept.renew_at,
        "t": kept.at,
        "i": kept.id_token,
        "c": " ".join(kept.scopes),
        "r": kept.refresh_token,
        "a": kept.access_token,
    }
    return json.dumps({name: value for name, value in table.items() if value is not None}).encode()


def _read(table: Json) -> Kept:
    """Raises ValueError for what `_written` does not write."""
    if table.get("v") != 1:
        raise ValueError("another version")
    return Kept(
        _text(table, "s"),
        int(_number(table, "g")),
        _number(table, "e"),
        _number(table, "n"),
        _number(table, "t"),
        _text(table, "i"),
        tuple(_text(table, "c").split()),
        _text(table, "r") if "r" in table else None,
        _text(table, "a") if "a" in table else None,
    )


def _text(table: Json, name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _number(table: Json, name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no number")
    return float(value)
