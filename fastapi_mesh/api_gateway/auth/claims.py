"""What a token says, once its signature is known to be good: is it for us, is it now, and whose is it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.base import CredentialError, ExpiredCredentialError, UnknownCredentialError
from fastapi_mesh.api_gateway.principal import Principal

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.auth.compact import Compact, Json

LATEST = 253_402_300_799.0
"""The end of the year 9999 in Unix seconds; later dates are milliseconds, or an attack on somebody's calendar."""
_LONGEST_SUBJECT = 1024
_PLAIN_TYPES = frozenset({"jwt", "at+jwt"})
ANY = "*"


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What a provider asks of claims. `issuers` and `audience` empty: any issuer, and no `aud` at all."""

    provider: str
    issuers: tuple[str, ...] = ()
    audience: frozenset[str] = frozenset()
    leeway: float = 30.0
    required: tuple[str, ...] = ("exp",)
    subject_claim: str = "sub"
    scopes_claim: str | None = None
    roles_claim: str = "roles"
    token_type: str | None = None


def check_before(token: Compact, rules: ClaimRules) -> None:
    """What can be seen without a key, so that tokens of others cost no look for one. Raises UnknownCredentialError."""
    kind = (token.type or "jwt").lower().removeprefix("application/")
    wanted = _PLAIN_TYPES if rules.token_type is None else {rules.token_type.lower().removeprefix("application/")}
    if kind not in wanted or (token.type is None and rules.token_type is not None):
        raise UnknownCredentialError("typ is not what is wanted")
    if rules.issuers and token.claims.get("iss") not in rules.issuers:
        raise UnknownCredentialError("iss is somebody else")


def principal_of(claims: Json, rules: ClaimRules, now: float) -> Principal:
    """Whose claims these are. Raises CredentialError when anything about them is wrong, also the kind of a value."""
    for name in rules.required:
        if claims.get(name) is None:
            raise CredentialError(f"no {name}")
    expires = _date(claims, "exp")
    if expires is not None and now >= expires + rules.leeway:
        raise ExpiredCredentialError("exp has passed")
    for name in ("nbf", "iat"):
        date = _date(claims, name)
        if date is not None and date > now + rules.leeway:
            raise CredentialError(f"{name} lies in the future")
    if rules.issuers and claims.get("iss") not in rules.issuers:
        raise CredentialError("iss is somebody else")
    _check_audience(claims.get("aud"), rules.audience)
    if "cnf" in claims:
        # RFC 7800: good only together with a proof of a key, which a bearer token has none of.
        raise CredentialError("bound to a key (cnf)")
    scopes = claims.get("scope", claims.get("scp")) if rules.scopes_claim is None else _at(claims, rules.scopes_claim)
    return Principal(
        _subject(claims, rules.subject_claim),
        rules.provider,
        frozenset(_words(scopes, "scopes", " ")),
        frozenset(_words(_at(claims, rules.roles_claim), "roles", None)),
        MappingProxyType(claims),
        expires,
    )


def _date(claims: Json, name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2): Unix seconds, perhaps with a fraction."""
    value = claims.get(name)
    if name in claims and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise CredentialError(f"{name} is not a number")
    if value is None:
        return None
    assert isinstance(value, int | float)
    if not (abs(value) <= LATEST and math.isfinite(value)):
        raise CredentialError(f"{name} is out of range")
    return float(value)


def _check_audience(value: object, wanted: frozenset[str]) -> None:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each for each in listed) or (isinstance(value, list) and not value):
        raise CredentialError("aud is neither a text nor a list of them")
    if ANY in wanted:
        return
    if not wanted and listed:
        raise CredentialError("it has an aud, and the provider has no audience")
    if wanted and wanted.isdisjoint(listed):
        raise CredentialError("aud is somebody else")


def _subject(claims: Json, name: str) -> str:
    value = _at(claims, name)
    if name != "sub" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_SUBJECT or not _is_text(value):
        raise CredentialError(f"{name} is no text, or a very long one")
    return value


def _words(value: object, what: str, separator: str | None) -> list[str]:
    """A list of texts, or one text; with `separator` that holds several."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [word for word in value.split(separator) if word] if separator else [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and _is_text(each) for each in value):
        raise CredentialError(f"{what} are no list of texts")
    return [each for each in value if each]


def _is_text(value: str) -> bool:
    """Whether it can be written in UTF-8; JSON can smuggle half of a surrogate pair in."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _at(claims: Json, path: str) -> object:
    """The claim of that very name (`https://example.com/roles`), else what the dots lead to (`realm_access.roles`)."""
    if path in claims:
        return claims[path]
    here: object = claims
    for step in path.split("."):
        if not isinstance(here, dict):
            return None
        here = here.get(step)
    return here
