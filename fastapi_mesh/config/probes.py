"""Settings of active health checks: which path of an instance is asked, how often, and what counts as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from fastapi_mesh.config.fields import Count, Frozen, HttpPath, Noun, Seconds, is_http_path
from fastapi_mesh.config.later import is_off

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

PROBE_TIMEOUT = 5.0
"""Seconds that an instance has to answer, where nothing is set and the interval is not shorter."""


class ProbePolicy(Frozen):
    """Asking every instance of a service regularly how it is (Envoy's active health checking).

    A path alone stands for the table, `true` for the path that each instance has registered. An answer of 200 to 399
    is well, unless it is JSON whose `status` says otherwise.
    """

    path: HttpPath | None = Field(
        default=None,
        description="What is asked with GET, below the instance's own path; None: what each instance has registered as "
        "its `health_check`, and those that have registered none are not probed.",
    )
    interval: Seconds = Field(
        default=30.0, description="Seconds from one probe of an instance to the next, 20 % more or less at random."
    )
    timeout: Seconds | None = Field(
        default=None, description="Seconds for a whole answer, at most `interval`; None: 5, or a shorter interval."
    )
    fall: Count = Field(default=3, description="Failed probes in a row after which an instance gets no more calls.")
    rise: Count = Field(default=1, description="Good probes in a row after which it gets calls again.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, {"type": "boolean"}, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        if is_on(value):
            return {}
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _answers_in_time(self) -> Self:
        if problem := timeout_misfit(self.timeout, "interval", self.interval):
            raise ValueError(problem)
        return self

    @property
    def limit(self) -> float:
        """Seconds for a whole answer, the default worked out."""
        return min(PROBE_TIMEOUT, self.interval) if self.timeout is None else self.timeout

    def path_of(self, registered: str | None) -> str | None:
        """The path to ask an instance for that registered the path `registered`; None where it is not probed.

        What others have registered is believed only if it is a path: a URL would lead elsewhere.
        """
        if self.path is not None:
            return self.path
        return registered if registered is not None and is_http_path(registered) else None


def is_on(value: object) -> bool:
    """Whether `value` says true, as a file or a variable may write it."""
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "yes", "on", "1"))


def _switched_off(value: object) -> object:
    return None if value is False or (isinstance(value, str) and is_off(value)) else value


HealthCheck = Annotated[
    ProbePolicy | None, BeforeValidator(_switched_off), Noun("a path like '/health', true, or a table of settings")
]
"""A path, true for the registered one, or a table; None or false: not probed."""


def timeout_misfit(timeout: float | None, interval_name: str, interval: float) -> str:
    """Why a probe could still be running when the next one is due; "" when it can't."""
    if timeout is None or timeout <= interval:
        return ""
    return (
        f"timeout ({timeout:g} s) is longer than {interval_name} ({interval:g} s), so a probe would still run when the "
        f"next one is due; lower timeout or raise {interval_name}"
    )
