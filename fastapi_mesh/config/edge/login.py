"""Settings of a browser's login at a gateway: the code flow of OpenID Connect, and the session that comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from fastapi_mesh.config.edge.cors import Origins
from fastapi_mesh.config.edge.credentials import PublicUrl, Scopes
from fastapi_mesh.config.fields import Frozen, HttpPath, Problems, Seconds, Token, shown

SMALLEST_SECRET = 32
"""Bytes: a session's key has 256 bits."""
HOW_TO_MAKE_ONE = "`openssl rand -base64 32` makes one"

_RESERVED = frozenset(
    {
        "client_id",
        "code_challenge",
        "code_challenge_method",
        "nonce",
        "redirect_uri",
        "request",
        "request_uri",
        "response_mode",
        "response_type",
        "scope",
        "state",
    }
)
"""Parameters of the authorization request that are the gateway's to set."""
_LOCAL = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


def is_local(target: str) -> bool:
    r"""Whether a browser that is sent to `target` stays where it is: a path, perhaps with a query.

    Browsers take `//evil` and `/\evil` for a host, and leave out tabs and line breaks.

    >>> [is_local(each) for each in ("/a?b=//c", "//evil", "/\\evil", "https://evil", "/a\r\nb", "", "/\t/evil")]
    [True, False, False, False, False, False, False]
    """
    return _LOCAL.fullmatch(target) is not None


def _secrets(value: object) -> object:
    return (value,) if isinstance(value, (str, SecretStr)) else value


Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_secrets, json_schema_input_type=str | list[str])]


class LoginConfig(Frozen):
    """How browsers log in with an OpenID Connect server, and how long they stay logged in."""

    session_secret: Secrets = Field(
        default=(),
        description="What sessions are encrypted with, 32 bytes or more. Of several the first one encrypts, and all "
        "are tried: put a new one in front, take the old one out after `session_lifetime`.",
    )
    session_secret_file: str | None = Field(default=None, description="A file with these secrets, one a line.")
    session_lifetime: Seconds = Field(default=28_800.0, description="Seconds after which a user logs in again.")
    login_timeout: Seconds = Field(default=600.0, description="Seconds that a user has for a login.")
    cookie: Token = Field(
        default="mesh-session", description="The session's cookie; over https `__Host-` stands before it."
    )
    redirect_path: HttpPath = Field(
        default="/auth/callback", description="Where the server sends browsers back to, below the gateway's prefix."
    )
    login_path: HttpPath = Field(
        default="/auth/login", description="Where pages send browsers to log in, with `?return_to=/path`."
    )
    logout_path: HttpPath = Field(default="/auth/logout", description="Where a session ends.")
    after_logout: str = Field(
        default="/",
        description="The path that browsers get to after a logout; the server must know it as a post-logout address.",
    )
    public_url: PublicUrl | None = Field(
        default=None,
        description="The gateway's address as browsers know it, its prefix included, like 'https://shop.example.com'; "
        "None: what each request says.",
    )
    scopes: Scopes = Field(default=("openid",), description="What is asked for; `openid` must be among it.")
    parameters: Mapping[str, str] = Field(
        default={}, description="More parameters of the authorization request, like {'prompt': 'consent'}."
    )
    forward_access_token: bool = Field(
        default=False, description="Send the user's access token to services, as `Authorization: Bearer`."
    )
    trusted_origins: Origins = Field(
        default=(),
        description="Other origins whose pages may use sessions for methods that change something, and WebSockets.",
    )

    @model_validator(mode="after")
    def _has_secrets(self) -> LoginConfig:
        if bool(self.session_secret) == (self.session_secret_file is not None):
            text = (
                f"a login needs session_secret or session_secret_file, one of them, the same in all processes: "
                f"{SMALLEST_SECRET} bytes or more; {HOW_TO_MAKE_ONE}"
            )
            raise Problems([(("session_secret",), text)])
        if problem := weakness([each.get_secret_value() for each in self.session_secret]):
            raise Problems([(("session_secret",), problem)])
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> LoginConfig:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        paths = (self.redirect_path, self.login_path, self.logout_path)
        if len(set(paths)) < len(paths):
            problems.append((("redirect_path",), "redirect_path, login_path and logout_path must differ"))
        if any(set("*{}") & set(path) for path in paths):
            problems.append((("redirect_path",), "redirect_path, login_path and logout_path are paths as they are"))
        if not is_local(self.after_logout):
            problems.append((("after_logout",), f"{shown(self.after_logout)} is no path of this gateway"))
        if "openid" not in self.scopes:
            problems.append((("scopes",), "without 'openid' the server says nothing of who logged in"))
        if self.cookie.lower().startswith(("__host-", "__secure-")):
            problems.append((("cookie",), "the prefix is added where it can be, over https"))
        if {"*", "null"} & set(self.trusted_origins):
            problems.append((("trusted_origins",), "'*' and 'null' would let any page act as its visitor"))
        problems += [
            (("parameters", name), "is set by the gateway itself") for name in self.parameters if name in _RESERVED
        ]
        url = urlsplit(self.public_url or "")
        if url.query or not (url.path in ("", "/") or is_local(url.path)):
            problems.append((("public_url",), f"{shown(self.public_url or '')} has more than an origin and a path"))
        if problems:
            raise Problems(problems)
        return self


def weakness(secrets: list[str]) -> str:
    """What is wrong with a session's secrets; "" for nothing."""
    for secret in secrets:
        size = len(secret.encode())
        if size < SMALLEST_SECRET:
            return f"has {size} bytes, fewer than {SMALLEST_SECRET}, so it could be guessed; {HOW_TO_MAKE_ONE}"
    return "has the same secret twice" if len(set(secrets)) < len(secrets) else ""


def _switch(value: object) -> object:
    """`true` alone asks for all defaults, `false` for no login."""
    return {} if value is True else None if value is False else value


Login = Annotated[LoginConfig | None, BeforeValidator(_switch, json_schema_input_type=LoginConfig | bool | None)]
