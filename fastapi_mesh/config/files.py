"""Settings from a file: TOML (also a table of pyproject.toml), YAML or JSON, with the line of each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi_mesh.config.layers import SettingsLayer
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from fastapi_mesh.config.problems import Location

    _Reader = Callable[[str], tuple[dict[str, Any], dict[Location, int]]]

PYPROJECT_TABLE = ("tool", "fastapi-mesh")
MAX_YAML = 500_000
"""Keys and list elements of a YAML document, so that a few lines of aliases can't stand for millions."""


def read_file(file: str | PathLike[str], source: str = "") -> SettingsLayer:
    """The settings in `file`, called `source` in messages. Raises ConfigurationError when it can't be read."""
    path = Path(file)
    try:
        return _read(path)
    except _FileProblem as problem:
        name = source or str(file)
        raise ConfigurationError(f"{name}: {problem}", source=name) from problem.__cause__


def read_text(text: str, name: str, source: str) -> SettingsLayer:
    """The settings in `text`, written as the ending of `name` says (without one: JSON), called `source` in messages.

    Raises ConfigurationError when it can't be read.
    """
    reader = _READERS.get(Path(name).suffix.lower(), _json)
    try:
        data, lines = _parsed(reader, text)
    except _FileProblem as problem:
        raise ConfigurationError(f"{source}: {problem}", source=source) from problem.__cause__
    origins = {(key,): source for key in data}
    return SettingsLayer(data, origins | {place: f"{source}, line {number}" for place, number in lines.items()})


def _read(path: Path) -> SettingsLayer:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _FileProblem("is not a .toml, .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _FileProblem("there is no such file") from None
    except OSError as error:
        raise _FileProblem(f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _FileProblem("is not UTF-8") from error
    data, lines = _parsed(reader, text)
    if path.name == "pyproject.toml":
        data, lines = _table_of_pyproject(data, lines)
    return SettingsLayer(data, {place: f"line {number}" for place, number in lines.items()})


class _FileProblem(Exception):
    """Why a file can't be read as settings."""


def _parsed(reader: _Reader, text: str) -> tuple[dict[str, Any], dict[Location, int]]:
    """What `reader` makes of `text`, whatever is in it."""
    try:
        return reader(text)
    except RecursionError:
        raise _FileProblem("is nested too deeply") from None


def _table_of_pyproject(data: dict[str, Any], lines: dict[Location, int]) -> tuple[dict[str, Any], dict[Location, int]]:
    for step in PYPROJECT_TABLE:
        below = data.get(step)
        if not isinstance(below, dict):
            raise _FileProblem(f"has no table [{'.'.join(PYPROJECT_TABLE)}]")
        data = below
    size = len(PYPROJECT_TABLE)
    return data, {place[size:]: line for place, line in lines.items() if place[:size] == PYPROJECT_TABLE}


def _toml(text: str) -> tuple[dict[str, Any], dict[Location, int]]:
    import tomllib  # here and not above, to start faster without a file

    from fastapi_mesh.config.toml_lines import toml_lines

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _FileProblem(f"is not valid TOML: {error}") from error
    return data, toml_lines(text)


def _json(text: str) -> tuple[dict[str, Any], dict[Location, int]]:
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        raise _FileProblem(f"is not valid JSON: {error}") from error
    return _as_table(data), {}


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise _FileProblem(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice in a table")
    return table


def _as_table(data: object) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise _FileProblem(f"holds a {type(data).__name__}, not a table of settings")
    return data


def _yaml(text: str) -> tuple[dict[str, Any], dict[Location, int]]:
    try:
        import yaml
    except ImportError as error:
        raise _FileProblem("reading YAML needs PyYAML: pip install 'fastapi-mesh[yaml]'") from error
    lines: dict[Location, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _yaml_lines(yaml, node, (), lines)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _FileProblem(f"is not valid YAML: {' '.join(str(error).split())}") from error
    return _as_table(data), lines


def _yaml_lines(yaml: Any, node: Any, place: Location, lines: dict[Location, int]) -> None:
    """Note the line of every key and list element below `node`; what aliases stand for counts each time."""
    if len(lines) > MAX_YAML:
        raise _FileProblem(f"has more than {MAX_YAML} settings, counting what its aliases stand for each time")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _FileProblem(f"has a key that is a list or a table (line {key.start_mark.line + 1})")
            below = (*place, key.value)
            if below in lines:
                raise _FileProblem(f"has the key {key.value!r} twice in a table (line {key.start_mark.line + 1})")
            lines[below] = key.start_mark.line + 1
            _yaml_lines(yaml, value, below, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*place, index)] = value.start_mark.line + 1
            _yaml_lines(yaml, value, (*place, index), lines)


_READERS = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
