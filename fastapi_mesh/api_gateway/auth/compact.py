"""Reads a JWS in compact form (RFC 7515 section 7.1) as strictly as can be: one token has one spelling and one reading.

Nothing here knows a key. What it gives was said by whoever made the token; only a signature makes it true.
"""

from __future__ import annotations

import base64
import json
import re
from typing import NamedTuple

LONGEST = 16 * 1024
"""Characters of a token: what servers take as one header line, and more than any honest one has."""
_SEGMENTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)", re.ASCII)
_LONGEST_NAME = 1024

_FORBIDDEN = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c", "zip", "enc", "epk", "apu", "apv", "p2s", "p2c"})
"""Header parameters that change how a token is read, or say with what key it should be believed."""

Json = dict[str, object]


class MalformedTokenError(ValueError):
    """This is no token that could be good. The text says why, for our own log."""


class Compact(NamedTuple):
    """A token's parts. `signed` is what the signature is of."""

    algorithm: str
    key_id: str | None
    type: str | None
    claims: Json
    signed: bytes
    signature: bytes


def looks_like_jwt(token: str) -> bool:
    """Whether this is a JWS or JWE in form. Opaque tokens are not: 'eyJ' is the beginning of a JSON object."""
    return token.startswith("eyJ") and token.count(".") in (2, 4)


def read_compact(token: str) -> Compact:
    """The parts of a signed token. Raises MalformedTokenError."""
    if len(token) > LONGEST:
        raise MalformedTokenError(f"{len(token)} characters")
    match = _SEGMENTS.fullmatch(token)
    if match is None:
        raise MalformedTokenError("not three parts of base64url")
    head, body, tail = match.groups()
    header = _object(head, "header")
    if bad := _FORBIDDEN.intersection(header):
        raise MalformedTokenError(f"the header has {', '.join(sorted(bad))}")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str):
        raise MalformedTokenError("alg is no text")
    if not tail:
        raise MalformedTokenError("no signature")
    return Compact(
        algorithm,
        _text(header, "kid"),
        _text(header, "typ"),
        _object(body, "payload"),
        f"{head}.{body}".encode(),
        decode(tail, "signature"),
    )


def decode(segment: str, what: str) -> bytes:
    """The bytes of canonical base64url (RFC 4648 section 3.5: unused bits are zero). Raises MalformedTokenError."""
    rest = len(segment) % 4
    if rest == 1:
        raise MalformedTokenError(f"the {what} has an impossible length")
    data = base64.urlsafe_b64decode(segment + "=" * (-rest % 4))
    if rest and encode(data) != segment:
        raise MalformedTokenError(f"the {what} is not canonical base64url")
    return data


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def read_object(text: bytes) -> Json:
    """A JSON object in UTF-8, without names that come twice, NaN, and what Python alone takes. Raises ValueError."""
    try:
        # json.loads would guess UTF-16 and UTF-32 from bytes, and take a byte order mark.
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _object(segment: str, what: str) -> Json:
    try:
        return read_object(decode(segment, what))
    except MalformedTokenError:
        raise
    except ValueError as error:
        raise MalformedTokenError(f"the {what} is no JSON object: {type(error).__name__}") from None


def _text(header: Json, name: str) -> str | None:
    value = header.get(name)
    if name in header and not (isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME):
        raise MalformedTokenError(f"{name} is no text, or a very long one")
    return value if isinstance(value, str) else None


def _no_doubles(pairs: list[tuple[str, object]]) -> Json:
    """RFC 7519 section 4 lets a reader take the last of two claims of one name; two readers may not agree."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
