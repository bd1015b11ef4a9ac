"""The lines of the access log: what they say, how they are written, and what they hide."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from fastapi_mesh.config.edge.providers import ApiKeyAuthConfig
from fastapi_mesh.observability.logging import MASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_mesh.api_gateway.auth.base import AuthProvider
    from fastapi_mesh.config.edge.logging import AccessLogConfig
    from fastapi_mesh.config.gateway import GatewayConfig

logger = logging.getLogger("fastapi_mesh.gateway.access")

Value = str | int | float

SECRETS = frozenset(
    {
        "access_key",
        "apikey",
        "assertion",
        "auth",
        "authorization",
        "awsaccesskeyid",
        "client_assertion",
        "code",
        "code_verifier",
        "credential",
        "credentials",
        "jwt",
        "key",
        "pass",
        "passwd",
        "pin",
        "pwd",
        "samlresponse",
        "session",
        "sessionid",
        "sid",
        "sig",
        "ticket",
        "x_amz_credential",
    }
)
"""Query parameters that are credentials wherever one meets them, in lower case and with `_` for `-`."""
_ENDINGS = ("api_key", "password", "secret", "signature", "token")
"""Names that end so are, too."""
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""What stands in a line of key=value pairs as it is: no space, quote, `=`, backslash or control character."""
_MAX_TARGET = 4096
"""Letters of a path and query that are logged; the rest is cut off."""


class AccessLines:
    """Writes lines to the logger `fastapi_mesh.gateway.access`. `masked` are more names of parameters to hide."""

    __slots__ = ("_config", "_hidden", "_level", "_render")

    def __init__(self, config: AccessLogConfig, masked: Iterable[str] = ()) -> None:
        self._config = config
        self._hidden = SECRETS | {_plain(name) for name in (*config.masked, *masked)}
        self._level = logging.getLevelNamesMapping()[config.level]
        self._render = json.dumps if config.format == "json" else logfmt

    @property
    def is_on(self) -> bool:
        """Whether anybody would hear of a line."""
        return logger.isEnabledFor(self._level)

    def write(self, request: Mapping[str, Value], response: Mapping[str, Value]) -> None:
        """One line, of what there is of these; an empty text is left out."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said: dict[str, Value] = {"time": now}
        if self._config.requests:
            said.update(request)
        else:
            said["request_id"] = request.get("request_id", "")
        if self._config.responses:
            said.update(response)
        fields = {name: value for name, value in said.items() if value != ""}
        logger.log(self._level, "%s", self._render(fields), extra={"access": fields})

    def target(self, path: bytes, query: bytes) -> str:
        """Path and query, without the values of parameters that are credentials."""
        text = path.decode("latin-1")
        if query:
            text += "?" + "&".join(self._parameter(each) for each in query.decode("latin-1").split("&"))
        return text if len(text) <= _MAX_TARGET else text[:_MAX_TARGET] + "..."

    def _parameter(self, text: str) -> str:
        name, equals, _ = text.partition("=")
        plain = _plain(unquote_plus(name))
        return f"{name}={MASK}" if equals and (plain in self._hidden or plain.endswith(_ENDINGS)) else text


def logfmt(fields: Mapping[str, Value]) -> str:
    """`key=value` pairs; what isn't plain is quoted as in JSON, so no value can end the line or look like a pair.

    >>> logfmt({"path": "/a b", "status": 200})
    'path="/a b" status=200'
    """
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: Value) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def new_lines(config: GatewayConfig, providers: Iterable[AuthProvider]) -> AccessLines | None:
    """The access log of a gateway, None where it is off; it hides the parameters in which `providers` find keys."""
    if config.access_log is None:
        return None
    from fastapi_mesh.api_gateway.auth.base import FromQuery  # imported late: its package brings all of cryptography

    given = [place.name for each in providers for place in each.places if isinstance(place, FromQuery)]
    set_up = [each.api_key_query for each in config.auth.providers if isinstance(each, ApiKeyAuthConfig)]
    return AccessLines(config.access_log, (*given, *(name for name in set_up if name)))
