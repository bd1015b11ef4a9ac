"""Settings of CORS: which pages of which origins may call a gateway from a browser (Fetch standard section 3.2)."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fastapi_mesh.config.fields import CountOrZero, Frozen, OneOrMany, Token, shown

ANY = "*"
_STRANGER = "https://a1b2c3d4.invalid"
"""An origin that no pattern means; one that matches it matches everybody."""


def origin(value: str) -> str:
    """`value` as browsers write it: scheme and host in lower case, no default port, no path."""
    if value in (ANY, "null"):
        return value
    hint = f"{shown(value)} is not an origin like 'https://app.example.com'"
    if "*" in value:
        raise ValueError(f"{hint}: a pattern is an allow_origin_regex, like 'https://[a-z]+[.]example[.]com'")
    if any(letter <= " " or letter == "\x7f" for letter in value):
        raise ValueError(f"{hint}: it has a space or control character in it")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(f"{hint}: its host or port is not valid") from None
    if not parts.scheme or not parts.hostname:
        raise ValueError(f"{hint}: it needs a scheme and a host")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or value.endswith(("?", "#")):
        raise ValueError(f"{hint}: an origin is a scheme, a host and a port, without a slash at its end")
    if not value.isascii():
        raise ValueError(f"{hint}: browsers send its host in Punycode ('xn--...')")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443, "ws": 80, "wss": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" if port in (None, default) else f"{parts.scheme}://{host}:{port}"


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _upper(value: object) -> object:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return value
    return tuple(each.upper() if isinstance(each, str) else each for each in value)


def _lower(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value.lower() for value in values))


Origins = Annotated[tuple[Annotated[str, AfterValidator(origin)], ...], OneOrMany]
Names = Annotated[tuple[Token, ...], OneOrMany, AfterValidator(_lower)]


class CorsConfig(Frozen):
    """What pages of other origins may do. Names and meanings are those of Starlette's CORSMiddleware."""

    allow_origins: Origins = Field(
        default=(), description="Origins whose pages may read answers, like 'https://app.example.com'; '*': all."
    )
    allow_origin_regex: Annotated[str, AfterValidator(_pattern)] | None = Field(
        default=None, description="A regular expression for more origins; it must match the whole of one."
    )
    allow_methods: Annotated[tuple[Token, ...], BeforeValidator(_upper), OneOrMany] | None = Field(
        default=None, description="Methods that pages may use; '*': any; None: those that the path's routes have."
    )
    allow_headers: Names = Field(
        default=(), description="Request headers that pages may set besides the safelisted ones; '*': any."
    )
    allow_credentials: bool = Field(
        default=False, description="Whether pages may send cookies and HTTP credentials; never together with '*'."
    )
    expose_headers: Names = Field(
        default=(), description="Response headers that pages may read besides the safelisted ones; '*': all."
    )
    max_age: CountOrZero = Field(default=600, description="Seconds for which a browser may remember a preflight.")
    allow_private_network: bool = Field(
        default=False, description="Whether public pages may call this gateway in a private network."
    )

    @model_validator(mode="after")
    def _somebody_is_meant(self) -> Self:
        if not self.allow_origins and self.allow_origin_regex is None:
            raise ValueError("allow_origins is empty and there is no allow_origin_regex, so no page could do anything")
        return self

    @model_validator(mode="after")
    def _credentials_are_for_somebody(self) -> Self:
        """A page of any origin with the user's cookies is that user (Fetch standard section 3.2.5)."""
        if not self.allow_credentials:
            return self
        if ANY in self.allow_origins:
            raise ValueError("allow_credentials needs named origins: with '*' every page could act as its visitor")
        if self.allow_origin_regex is not None and re.fullmatch(self.allow_origin_regex, _STRANGER):
            raise ValueError(
                f"allow_credentials needs named origins: allow_origin_regex {self.allow_origin_regex!r} matches any"
            )
        if ANY in self.expose_headers:
            raise ValueError("expose_headers '*' is only a name where allow_credentials is on; list the headers")
        return self
