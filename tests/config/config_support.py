"""What the tests of configuration share: loading without this machine's environment, and the lines of an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest
from pydantic import BaseModel, ValidationError

from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.problems import explain
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Model = TypeVar("Model", bound=BaseModel)


def problems_of(model: type[BaseModel], **values: object) -> list[str]:
    """The lines about a model made of `values`, which must be wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return explain(caught.value, model)


def refused(call: Callable[[], object]) -> ConfigurationError:
    """The ConfigurationError that `call` must raise."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    return caught.value


def mesh_problems(env: Mapping[str, str] | None = None, **arguments: object) -> list[str]:
    """The lines of `load_mesh_config`, which must fail."""
    return list(refused(lambda: load_mesh_config(env=env or {}, **arguments)).problems)  # type: ignore[arg-type]  # any keyword


def gateway_problems(env: Mapping[str, str] | None = None, **arguments: object) -> list[str]:
    """The lines of `load_gateway_config`, which must fail."""
    return list(refused(lambda: load_gateway_config(env=env or {}, **arguments)).problems)  # type: ignore[arg-type]  # any keyword
