"""Settings of ejection by success rate: an instance that fails much more often than the others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fastapi_mesh.config.fields import Count, Frozen, NotBool, Ratio, Seconds

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NotBool]


class SuccessRatePolicy(Frozen):
    """Statistical ejection (Envoy's success rate outlier detection). Instances with at least `min_requests` in an
    interval are compared, if there are `min_instances` of them: whose rate is more than `stdev_factor` standard
    deviations and more than `margin` below the mean is ejected. Never are more than `max_ejected` of all out by it.
    """

    stdev_factor: Ratio = Field(default=1.9, description="Standard deviations below the mean that eject an instance.")
    margin: Share = Field(
        default=0.05,
        description="Success rate that it must be below the mean besides; without, among perfect ones a single failure "
        "would do.",
    )
    min_instances: Annotated[int, Field(ge=3), NotBool] = Field(
        default=5, description="Instances with enough requests without which none is judged."
    )
    min_requests: Count = Field(default=100, description="Requests in an interval without which one isn't judged.")
    interval: Seconds = Field(default=10.0, description="Seconds that are looked at, from a first failure on.")
    max_ejected: Share = Field(
        default=0.1, description="Share of all instances up to which it ejects, however many do badly; at least one."
    )
