"""Settings of what a gateway logs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fastapi_mesh.config.fields import Frozen, OneOrMany
from fastapi_mesh.config.later import is_off

Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


class AccessLogConfig(Frozen):
    """One line for each request, when its answer has ended. true stands for the defaults, "json" or "text" for those
    with this `format`.
    """

    format: Literal["text", "json"] = Field(
        default="text", description="A line of key=value pairs (logfmt), or a JSON object."
    )
    level: Level = Field(default="INFO", description="The level of the lines.")
    requests: bool = Field(default=True, description="Say of the request: client, method, path, principal, route.")
    responses: bool = Field(default=True, description="Say of the answer: status, bytes, duration, attempts, reason.")
    masked: Annotated[tuple[str, ...], OneOrMany] = Field(
        default=(),
        description="Query parameters whose values are hidden, besides those that look like credentials and those that "
        "API keys come in.",
    )


def _switch(value: object) -> object:
    if value is True or (isinstance(value, str) and value.strip().lower() in ("true", "yes", "on", "1")):
        return AccessLogConfig()
    if isinstance(value, str) and value.strip().lower() in ("text", "json"):
        return {"format": value.strip().lower()}
    return None if not isinstance(value, dict) and is_off(value) else value


AccessLog = Annotated[AccessLogConfig | None, BeforeValidator(_switch)]
