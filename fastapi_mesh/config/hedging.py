"""The policy of hedging: a second attempt beside a slow first one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fastapi_mesh.config.fields import Frozen, NotBool, Seconds


class HedgingPolicy(Frozen):
    """A second attempt at another instance when the first takes its time; the first good answer counts (Dean and
    Barroso, The Tail at Scale, 2013). Only for requests that may be executed twice, and within the retry budget.
    """

    delay: Seconds | None = Field(
        default=None,
        description="Seconds until the second attempt; None: the service's 95th percentile or more.",
    )
    max_extra: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NotBool] = Field(
        default=0.01, description="Second attempts in relation to calls, at most."
    )
