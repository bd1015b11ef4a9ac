"""Settings of transformers; they themselves are code."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fastapi_mesh.config.fields import Frozen, NotBool

MIB = 1024 * 1024


class TransformConfig(Frozen):
    """What transformers may cost."""

    max_body: Annotated[int, Field(ge=1), NotBool] = Field(
        default=MIB,
        description="Bytes of the longest body that a transformer can read, as it comes and decoded; a longer one is "
        "refused when it is read: 413 for a request's, 502 for an answer's.",
    )
