"""Turns what pydantic says about wrong settings into lines that say where, what, and how to put it right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from fastapi_mesh.config.fields import Noun, Problems, shown
from fastapi_mesh.config.later import Refused, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_OPTIONAL = object()
"""Stands in the metadata of a type that may also be None."""

Location = tuple[str | int, ...]

_SECRET = re.compile(r"secret|password|passwd|token|key|credential", re.IGNORECASE)
_PLAIN = re.compile(r"[\w-]+", re.ASCII)
_MEMBER = re.compile(r"literal\[|function-\w+\[|constrained-|is-instance\[")
"""What the names of a union's members begin with that pydantic makes up."""
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h)\s*")
_SECONDS_IN = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LIMITS = {
    "greater_than": "too small: it must be more than {gt:g}",
    "greater_than_equal": "too small: it must be at least {ge:g}",
    "less_than": "too large: it must be less than {lt:g}",
    "less_than_equal": "too large: it must be at most {le:g}",
}
_NOUNS = {  # by the first word of pydantic's error type
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "finite": "a finite number",
    "path": "a path",
    "dict": "a table of settings",
    "model": "a table of settings",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen": "a list",
}


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The end of a line: did you mean the likeliest of `choices`? Empty when none is like `word`.

    >>> suggestion("timout", ["timeout", "retry"])
    " - did you mean 'timeout'?"
    """
    import difflib  # only where there is something wrong, to start faster

    by_folded = {_folded(choice): choice for choice in choices}
    close = difflib.get_close_matches(_folded(word), by_folded, n=1, cutoff=0.7)
    return f" - did you mean {by_folded[close[0]]!r}?" if close else ""


def _folded(word: str) -> str:
    return word.lower().replace("-", "_")


def path_of(location: Iterable[str | int]) -> str:
    """A place in the settings, as text.

    >>> path_of(("routes", 0, "service"))
    'routes[0].service'
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            name = step if _PLAIN.fullmatch(step) else repr(step)
            path += f".{name}" if path else name
    return path


def explain(
    error: ValidationError,
    model: type[object],
    *,
    prefix: Location = (),
    origin: Callable[[Location], str] | None = None,
) -> list[str]:
    """One line for each problem: its path, where it was set (`origin`), what is wrong, and the likeliest fix.

    `prefix` goes before every path. Values of keys that look like secrets are never shown.
    """
    return [
        line((*prefix, *below), text, "" if origin is None else origin((*prefix, *below)))
        for below, text in texts_of(error, model)
    ]


def line(location: Location, text: str, source: str = "") -> str:
    """One problem as a line.

    >>> line(("port",), "'x' is not a port number", "MESH_PORT")
    "port (MESH_PORT): 'x' is not a port number"
    """
    path = path_of(location)
    place = f"{path} ({source})" if path and source else path or source
    return f"{place}: {text}" if place else text


def texts_of(error: ValidationError, model: type[object]) -> list[tuple[Location, str]]:
    """The place and text of each problem; an error that is a `Problems` holds several."""
    texts: list[tuple[Location, str]] = []
    problems = [(_place(problem, model), problem) for problem in error.errors(include_url=False)]
    for location, problem in problems:
        if problem["type"] == "literal_error" and _is_said_better(location, problem, problems):
            continue
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            texts += [((*location, *below), text) for below, text in cause.problems]
        else:
            texts.append((location, _text(problem, location, model)))
    return texts


def _place(problem: ErrorDetails, model: type[object]) -> Location:
    """Where it is, without the names that pydantic gives to the members of a union."""
    found, place = _flatten(model, []), list[str | int]()
    steps = [step for step in problem["loc"] if step != "[key]"]
    for index, step in enumerate(steps):
        below = [each for annotation, _ in found for each in _below(annotation, step)]
        names = {getattr(annotation, "__name__", "") for annotation, _ in found}
        is_key = problem["type"] in ("extra_forbidden", "missing") and index == len(steps) - 1
        if not below and not is_key and isinstance(step, str) and (step in names or _MEMBER.match(step)):
            continue
        place.append(step)
        found = below
    return tuple(place)


def _is_said_better(
    location: Location, problem: ErrorDetails, problems: Sequence[tuple[Location, ErrorDetails]]
) -> bool:
    """Whether another member of a union says what is wrong at a place, where "it is not false" helps nobody."""
    return any(
        other is not problem and place[: len(location)] == location and len(problem["loc"]) > len(location)
        for place, other in problems
    )


def _text(problem: ErrorDetails, location: Location, model: type[object]) -> str:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), model, location[:-1])
    if kind == "missing":
        return "is missing"
    if kind == "later":
        return refusal(str(location[-1]))
    said = _shown(value, location)
    if kind in ("enum", "literal_error"):
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = suggestion(value, choices) if isinstance(value, str) and not _is_secret(location) else ""
        return f"{said} is not one of {', '.join(choices)}{hint}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{said} is not a finite number"
    if kind in _LIMITS:
        return f"{said} is {_LIMITS[kind].format(**context)}"
    if kind == "bool_as_number":
        return f"{said} is not {_noun_at(model, location) or 'a number'}"
    noun = _NOUNS.get(kind.partition("_")[0])
    if noun is not None and kind.endswith(("_type", "_parsing", "_from_float", "_number", "_size")):
        noun = _noun_at(model, location) or noun
        return f"{said} is not {noun}{_rewritten(value, noun, location)}"
    text = str(context["error"]) if "error" in context else problem["msg"]
    return "is not valid (its value isn't shown)" if _is_secret(location) else text


def _unknown_key(name: str, model: type[object], table: Location) -> str:
    known = keys_at(model, table)
    if hint := suggestion(name, known):
        return f"unknown key{hint}"
    for annotation, _ in _walk(model, table):
        if path := _elsewhere(name, annotation):
            return f"unknown key - did you mean {path_of(path)!r}?"
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"


def _elsewhere(name: str, annotation: Any, depth: int = 4) -> Location:
    """Where below `annotation` a key called `name` is known; () if nowhere."""
    if not (depth and isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return ()
    for key, field in annotation.model_fields.items():
        if key == name and not _is_refused(field):
            return (key,)
        for below, _ in _flatten(field.annotation, []):
            if path := _elsewhere(name, below, depth - 1):
                return (key, *path)
    return ()


def _is_refused(field: FieldInfo) -> bool:
    return any(isinstance(mark, Refused) for mark in field.metadata)


def _rewritten(value: object, noun: str, location: Location) -> str:
    """How to write what was meant: seconds for "30s", a list for a single text."""
    if not isinstance(value, str) or _is_secret(location):
        return ""
    if noun == "a list":
        return f" - write [{_shown(value, location)}]"
    match = _DURATION.fullmatch(value) if "seconds" in noun else None
    return f" - write {float(match[1]) * _SECONDS_IN[match[2]]:g}" if match else ""


def _is_secret(location: Location) -> bool:
    return any(isinstance(step, str) and _SECRET.search(step) for step in location)


def _shown(value: object, location: Location) -> str:
    """A value as it may be shown: no secret, no contents of tables and lists, at most 60 characters."""
    if _is_secret(location):
        return "the value (not shown)"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if not isinstance(value, (str, int, float)):
        return f"a value of type {type(value).__name__}"
    return shown(value) if isinstance(value, str) else repr(value)


def keys_at(model: type[object], location: Location) -> list[str]:
    """The keys that a table at `location` may have; none where they are free."""
    for annotation, _ in _walk(model, location):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [name for name, field in annotation.model_fields.items() if not _is_refused(field)]
    return []


def is_known(model: type[object], location: Location) -> bool:
    """Whether `location` means something, also an option that is refused."""
    return bool(_walk(model, location))


def free_keys_at(model: type[object], location: Location) -> bool:
    """Whether the table at `location` may have any keys, like service names."""
    return any(get_origin(annotation) is dict for annotation, _ in _walk(model, location))


def kinds_at(model: type[object], location: Location) -> set[str]:
    """What may stand at `location`: "table", "list", "nothing" or "value"."""
    kinds = set()
    for annotation, metadata in _walk(model, location):
        origin = get_origin(annotation) or annotation
        if isinstance(origin, type) and issubclass(origin, (BaseModel, dict)):
            kinds.add("table")
        elif isinstance(origin, type) and issubclass(origin, (list, tuple, set, frozenset)):
            kinds.add("list")
        else:
            kinds.add("value")
        if _OPTIONAL in metadata and origin is not str:
            kinds.add("nothing")
    return kinds


def _noun_at(model: type[object], location: Location) -> str | None:
    for _, metadata in _walk(model, location):
        for mark in metadata:
            if isinstance(mark, Noun):
                return mark.text
    return None


def _walk(model: type[object], location: Location) -> list[tuple[Any, list[object]]]:
    """What may stand at `location`: types, each with the metadata of its annotation."""
    found = _flatten(model, [])
    for step in location:
        found = [below for annotation, _ in found for below in _below(annotation, step)]
    return found


def _below(annotation: Any, step: str | int) -> list[tuple[Any, list[object]]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(step) if isinstance(step, str) else None
        return [] if field is None else _flatten(field.annotation, field.metadata)
    if origin is dict:
        return _flatten(arguments[1], [])
    if origin in (list, tuple, set, frozenset) and isinstance(step, int):
        return _flatten(arguments[0], [])
    return []


def _flatten(annotation: Any, metadata: Sequence[object]) -> list[tuple[Any, list[object]]]:
    """The members of a union, and what Annotated says of each."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _flatten(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, UnionType):
        metadata = [*metadata, _OPTIONAL] if type(None) in arguments else metadata
        return [each for member in arguments if member is not type(None) for each in _flatten(member, metadata)]
    return [(annotation, list(metadata))]
