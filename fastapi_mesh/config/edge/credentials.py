"""The kinds of values that settings of authentication have: algorithms, scopes, roles, addresses of issuers."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from fastapi_mesh.config.fields import Noun, OneOrMany, shown
from fastapi_mesh.config.problems import suggestion

_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = ("ES256", "ES384", "ES512", "EdDSA", "Ed25519")
ALGORITHMS = _HMAC + _RSA + _CURVES
"""RFC 7518 section 3.1, RFC 8037 and RFC 9864. `none` is not among them, and can't be."""

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def known_algorithm(value: str) -> str:
    """`value`, if it is one of ALGORITHMS; raises ValueError."""
    if value not in ALGORITHMS:
        raise ValueError(
            f"{shown(value)} is not one of {', '.join(ALGORITHMS)}{suggestion(value, ALGORITHMS)}"
            + ("; a token without a signature proves nothing" if value.lower() == "none" else "")
        )
    return value


def _scope(value: str) -> str:
    if not _SCOPE.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a scope: printable ASCII without spaces, quotes and backslashes")
    return value


def _role(value: str) -> str:
    if not value.strip():
        raise ValueError("a role is empty")
    return value


def url_problem(value: str, *, insecure: bool = False) -> str:
    """What keeps `value` from being an address to fetch keys or verdicts from; "" for nothing.

    Plain HTTP is for this machine only (or with `insecure`): who can change the answer can sign tokens.
    """
    if not value.isascii() or any(letter <= " " or letter == "\x7f" for letter in value):
        return "it has a space, a control character or a letter outside ASCII"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port is not valid"
    if parts.scheme not in ("https", "http") or not host or port == 0:
        return "it is not like 'https://id.example.com/path'"
    if "@" in parts.netloc:
        return "it has a user or password in it"
    if "#" in value:
        return "it has a fragment"
    if parts.scheme == "http" and host not in _LOOPBACK and not insecure:
        return "it is not https, so anybody on the way could change it; allow_http=true permits that"
    return ""


def _public_url(value: str) -> str:
    if problem := url_problem(value, insecure=True):
        raise ValueError(f"{shown(value)} is not an address: {problem}")
    return value


Algorithms = Annotated[tuple[Annotated[str, AfterValidator(known_algorithm)], ...], OneOrMany]
Scopes = Annotated[tuple[Annotated[str, AfterValidator(_scope)], ...], OneOrMany]
Roles = Annotated[tuple[Annotated[str, AfterValidator(_role)], ...], OneOrMany]
Names = Annotated[tuple[str, ...], OneOrMany]
PublicUrl = Annotated[str, AfterValidator(_public_url), Noun("a URL")]
