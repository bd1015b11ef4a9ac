"""Settings of how many calls or requests run at the same time: a fixed number, or one that is found out."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from fastapi_mesh.config.fields import Count, CountOrZero, Frozen, NotBool, Seconds

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NotBool]


class AdaptiveLimit(Frozen):
    """Finds out how many may run at the same time (Netflix concurrency-limits, Gradient2): the limit grows while the
    time that they take stays what it was, and shrinks once it is `tolerance` times as long.
    """

    min_concurrent: Count = Field(default=20, description="The limit is never lower; it begins here.")
    tolerance: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False), NotBool] = Field(
        default=1.5, description="How many times the usual duration is taken for a queue further on."
    )
    smoothing: Share = Field(default=0.2, description="How much of each step towards another limit is made.")
    window: Seconds = Field(default=1.0, description="Seconds whose mean duration is compared, once per window.")
    long_window: Count = Field(default=600, description="Windows that the usual duration is the mean of.")


def _switch(value: object) -> object:
    """true is an adaptive limit as it comes, false none; from variables as words."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return {} if value else None
    return value


class BulkheadPolicy(Frozen):
    """At the same time `max_concurrent` run and `max_queue` wait for a seat; the rest is refused.

    A low priority (`x-mesh-priority: low`) gets no more than `low_share` of the seats, the highest priority waits
    first, and where the queue is full the lowest makes way for a higher one. With `adaptive` the number of seats is
    found out, and `max_concurrent` is the most it gets.
    """

    max_concurrent: Count = Field(description="How many run at the same time; with `adaptive` the most that may.")
    max_queue: CountOrZero = Field(default=0, description="How many wait for a seat; more are refused.")
    adaptive: Annotated[AdaptiveLimit | None, BeforeValidator(_switch)] = Field(
        default=None, description="Find the limit out, between `min_concurrent` and `max_concurrent`; None: no."
    )
    low_share: Share = Field(default=0.8, description="Share of the seats that requests of low priority may take.")

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        adaptive = self.adaptive
        if adaptive is not None and adaptive.min_concurrent > self.max_concurrent:
            raise ValueError(
                f"max_concurrent ({self.max_concurrent}) is lower than adaptive.min_concurrent "
                f"({adaptive.min_concurrent}); raise it or lower adaptive.min_concurrent"
            )
        return self
