"""From what a provider was given to its settings, and to the secrets in files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from fastapi_mesh.config.edge.login import HOW_TO_MAKE_ONE, weakness
from fastapi_mesh.config.problems import explain
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from fastapi_mesh.config.edge.login import LoginConfig

M = TypeVar("M", bound=BaseModel)


def settings_from(
    model: type[M], given: Mapping[str, object], source: str, exactly: Mapping[str, object] | None = None
) -> M:
    """The settings that were given as keyword arguments; None stands for the default, but not in `exactly`.

    Raises ConfigurationError.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values.update(exactly or {})
    for name in ("audience", "algorithm", "required_claims"):
        if not isinstance(values.get(name, ""), str):
            values[name] = tuple(values[name])  # type: ignore[arg-type]  # an iterable, or pydantic says so
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(problems=explain(error, model), source=source) from None


def secret_of(secret: SecretStr | None, file: str | None, setting: str) -> str | None:
    """The secret itself, or what is in its file. Raises ConfigurationError."""
    return secret.get_secret_value() if secret is not None else content_of(file, setting)


def session_secrets(login: LoginConfig) -> tuple[str, ...]:
    """The secrets of a login's sessions, or those in its file, the one that seals first. Raises ConfigurationError."""
    if login.session_secret:
        return tuple(each.get_secret_value() for each in login.session_secret)
    text = content_of(login.session_secret_file, "login.session_secret_file") or ""
    listed = [each.strip() for each in text.splitlines() if each.strip()]
    if not listed or (problem := weakness(listed)):
        said = problem if listed else f"has no secret in it; {HOW_TO_MAKE_ONE}"
        raise ConfigurationError(f"login.session_secret_file: {login.session_secret_file} {said}")
    return tuple(listed)


def content_of(file: str | None, setting: str) -> str | None:
    """What is in a file, without the line break at its end; None without a file. Raises ConfigurationError."""
    if file is None:
        return None
    try:
        content = Path(file).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{setting}: {file} can't be read: {why}") from None
    if not content:
        raise ConfigurationError(f"{setting}: {file} is empty")
    return content
