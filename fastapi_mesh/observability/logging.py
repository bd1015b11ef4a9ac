"""Log lines as JSON or text, with the request and trace they belong to, for applications that want them so.

The library only writes to loggers below `fastapi_mesh` and installs no handler by itself; `configure` is for
programs of one's own, such as the demo.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Literal

from fastapi_mesh.core.context import current_inbound
from fastapi_mesh.observability.tracing import current_trace_id

MASK = "***"
_SECRET = re.compile(
    r"""(?ix)
    ( \b(?:proxy-)?authorization ["']? \s*[:=]\s* ["']? (?:(?:bearer|basic|digest)\s+)?
    | \b[\w-]*(?:password|passwd|secret|token|api[_-]?key) ["']? \s*[:=]\s* ["']?
    ) [^\s"'&,;]+
    """
)
_COOKIES = re.compile(r"""(?i)(\b(?:set-)?cookie["']?\s*[:=]\s*["']?)[^"'\r\n]+""")


def mask(text: str) -> str:
    """Hide the values of what looks like a credential: `password=...`, `Authorization: Bearer ...`, `api_key: ...`.

    >>> mask("GET /x?token=abc&page=2")
    'GET /x?token=***&page=2'
    """
    return _SECRET.sub(rf"\1{MASK}", _COOKIES.sub(rf"\1{MASK}", text))


def request_fields() -> dict[str, str]:
    """`request_id` and `trace_id` of the request being answered; only those there are."""
    inbound = current_inbound.get()
    fields = {"request_id": inbound.request_id if inbound is not None else "", "trace_id": current_trace_id(inbound)}
    return {name: value for name, value in fields.items() if value}


def _said(record: logging.LogRecord) -> dict[str, object]:
    """What a record says: the fields of a gateway's access log, else its message and the request it belongs to."""
    access = getattr(record, "access", None)
    if isinstance(access, dict):
        return access
    return {"message": mask(record.getMessage()), **request_fields()}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: timestamp (RFC 3339, UTC), level, logger, message, request_id, trace_id, error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            **_said(record),
        }
        if record.exc_info:
            line["error"] = mask(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """The same as one readable line; a traceback follows it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in request_fields().items())
        line = f"{_rfc3339(record.created)} {record.levelname:<7} {record.name}: {mask(record.getMessage())}{fields}"
        if record.exc_info:
            line += "\n" + mask(self.formatException(record.exc_info))
        return line


class _MeshHandler(logging.StreamHandler):  # type: ignore[type-arg] # generic in typeshed only
    """The handler of `configure`, so that a second call replaces it."""


def configure(style: Literal["json", "text"] = "text", *, level: str = "INFO") -> logging.Handler:
    """Write what `fastapi_mesh` logs to stderr; may be called again with other settings. Returns the handler."""
    logger = logging.getLogger("fastapi_mesh")
    for handler in logger.handlers[:]:
        if isinstance(handler, _MeshHandler):
            logger.removeHandler(handler)
    handler = _MeshHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False  # the root's handlers would write each line again
    return handler


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
