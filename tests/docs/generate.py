"""Writes the parts of the documentation that say what the code says: settings, errors, metrics, orders of layers.

`python -m tests.docs.generate` writes them; with `--check` it only says what is out of date.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fastapi_mesh import exceptions
from fastapi_mesh.config import environment
from fastapi_mesh.config.fields import Noun
from fastapi_mesh.config.later import Refused

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

WHAT_TO_DO = {
    "MeshError": "Catch this to catch everything the library raises.",
    "ServiceUnavailableError": "Degrade: answer from a cache, or without this part. `status_code` and `body` have the "
    "service's last answer, if there was one.",
    "CircuitBreakerOpenError": "Degrade at once; `retry_after` says when a trial call will be let through.",
    "BulkheadFullError": "Shed the request, or raise `bulkhead.max_concurrent` if the service can take more.",
    "UpstreamConnectionError": "Nothing, it was retried where that was safe. If it lasts: is the service up, is its "
    "address right?",
    "UpstreamProtocolError": "Look at the instance: it does not speak valid HTTP, or something that is no HTTP server "
    "listens there.",
    "UpstreamTimeoutError": "Find out why the service is slow; `phase` says what took too long.",
    "DeadlineExceededError": "The caller's time is over; don't call again for this request.",
    "ServiceDiscoveryError": "Check the name and the registry; fall back to a fixed address if you have one.",
    "ServiceResponseError": "Read `status_code` and `body`: your request was wrong for this service. Not retried.",
    "InvalidRequestError": "Correct the path, header or body that the message names.",
    "ClientDisconnectedError": "Nothing: your own client went away.",
    "ConfigurationError": "Correct every line of `problems`.",
    "ConfigStoreError": "Look at the store that it names; what was read before stays in force until it is back.",
    "IdentityError": "Reserved: nothing in this version raises it.",
}

ROOTS = (
    ("fastapi_mesh.config.mesh", "MeshConfig", "a node's settings"),
    ("fastapi_mesh.config.gateway", "GatewayConfig", "a gateway's settings"),
)

PART = r"<!-- generated: {name} -->\n.*?<!-- end of generated -->"


def errors() -> str:
    """The tree and the table of errors."""
    tree = (exceptions.__doc__ or "").split("\n\n", 1)[1].strip()
    lines = [
        "```text",
        tree,
        "```",
        "",
        "| error | status | reason | retryable | what to do |",
        "|---|---|---|---|---|",
    ]
    for name, what_to_do in WHAT_TO_DO.items():
        each = getattr(exceptions, name)
        retryable = "yes" if each.retryable else "no"
        lines.append(f"| `{name}` | {each.status} | `{each.reason}` | {retryable} | {what_to_do} |")
    return "\n".join(lines)


def metrics() -> str:
    """The table of metrics, read from where they are made."""
    lines = ["| metric | type | labels | what it is |", "|---|---|---|---|"]
    for path in sorted((ROOT / "fastapi_mesh" / "observability").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            kind = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and kind in ("Counter", "Gauge", "Histogram"):
                name, text, *rest = (ast.literal_eval(argument) for argument in node.args[:3])
                labels = rest[0] if rest else ()
                shown = ", ".join(f"`{label}`" for label in labels)
                lines.append(f"| `{name}` | {kind.lower()} | {shown} | {text} |")
    return "\n".join(lines)


def order(module: str) -> str:
    """The rows of an order table, outermost first."""
    table = importlib.import_module(module)
    lines = ["| layer | stands outside | because |", "|---|---|---|"]
    lines += [f"| {row.name} | {', '.join(row.outside)} | {row.because} |" for row in table.ORDER]
    return "\n".join(lines)


def settings() -> str:
    """A table for each settings model: the node's, the gateway's, and everything below them, each once."""
    described: dict[type[BaseModel], list[str]] = {}
    refused: list[str] = []
    for module, name, place in ROOTS:
        _describe(getattr(importlib.import_module(module), name), (place,), described, refused)
    parts = [
        f"### {model.__name__}\n\n{_first_paragraph(model)} At {' and '.join(places[:2])}.\n\n{_table(model)}"
        for model, places in described.items()
    ]
    known = ", ".join(f"`{key}`" for key in refused)
    return "\n\n".join([*parts, f"### Refused in this version\n\nKnown by name and refused unless off: {known}."])


def _describe(
    model: type[BaseModel], path: tuple[str, ...], described: dict[type[BaseModel], list[str]], refused: list[str]
) -> None:
    places = described.setdefault(model, [])
    places.append("`" + ".".join(path[1:]) + "`" if path[1:] else f"the top level of {path[0]}")
    for key, field in model.model_fields.items():
        if _is_refused(field) and len(places) == 1:
            refused.append(".".join((*path[1:], key)))
        several, shape = _models_in(field.annotation)
        for nested in several:
            if nested is not model:  # a chain has the settings of its first
                _describe(nested, (*path, f"{key}{shape}"), described, refused)


def _table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{key}` | {_kind(field)} | {_default(field)} | {field.description or ''} |"
        for key, field in model.model_fields.items()
        if not _is_refused(field)
    ]
    return "\n".join(["| key | kind | default | meaning |", "|---|---|---|---|", *rows])


def _is_refused(field: FieldInfo) -> bool:
    return any(isinstance(mark, Refused) for mark in field.metadata)


def _first_paragraph(model: type[BaseModel]) -> str:
    return re.sub(r"\s+", " ", (model.__doc__ or "").strip().split("\n\n")[0])


def _models_in(annotation: Any) -> tuple[list[type[BaseModel]], str]:
    """The settings models that a field may hold, and what stands after its key: "" for one, else how many."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (dict, list, tuple):
        inner, _ = _models_in(arguments[1] if origin is dict else arguments[0])
        return inner, ".NAME" if origin is dict else "[]"
    if origin in (Union, UnionType, Annotated):
        found = [_models_in(each) for each in arguments]
        models = [model for several, _ in found for model in several]
        return models, next((shape for several, shape in found if several), "")
    return [], ""


def _kind(field: FieldInfo) -> str:
    several, shape = _models_in(field.annotation)
    if several:
        link = " or ".join(f"[{each.__name__}](#{each.__name__.lower()})" for each in several)
        return {"": link, ".NAME": f"a table of names and {link}", "[]": f"a list of {link}"}[shape]
    nouns = [mark.text for mark in field.metadata if isinstance(mark, Noun)]
    return nouns[0] if nouns else _kind_of(field.annotation)


def _kind_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        nouns = [mark.text for mark in arguments[1:] if isinstance(mark, Noun)]
        return nouns[0] if nouns else _kind_of(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind_of(each) for each in arguments if each is not NoneType))
    if origin is dict:
        return "a table"
    if origin in (tuple, list, set, frozenset):
        return "a list"
    if hasattr(annotation, "__members__"):
        return " or ".join(f"`{each.value}`" for each in annotation)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, frozenset | tuple | list):
        return ", ".join(f"`{each}`" for each in sorted(value))
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def variables() -> str:
    """The variables of the product description, beside the settings that they mean."""
    rows = [f"| `{name}` | `{'.'.join(place)}` of a node |" for name, place in environment.MESH_NAMES.items()]
    rows += [f"| `{name}` | `{'.'.join(place)}` of a gateway |" for name, place in environment.GATEWAY_NAMES.items()]
    return "\n".join(["| variable | setting |", "|---|---|", *rows])


PARTS = {
    "reference/errors.md": {"errors": errors},
    "reference/metrics.md": {"metrics": metrics},
    "reference/configuration.md": {
        "settings": settings,
        "variables": variables,
    },
    "design.md": {
        "stack": lambda: order("fastapi_mesh.service_mesh.stack"),
        "pipeline": lambda: order("fastapi_mesh.api_gateway.pipeline"),
    },
}


def updated(page: str) -> str:
    """The text that a page should have."""
    text = (DOCS / page).read_text()
    for name, make in PARTS[page].items():
        pattern = re.compile(PART.format(name=name), re.DOTALL)
        if not pattern.search(text):
            raise LookupError(f"{page} has no part {name!r}")
        part = f"<!-- generated: {name} -->\n\n{make()}\n\n<!-- end of generated -->"
        text = pattern.sub(lambda _, part=part: part, text)
    return text


def main() -> None:
    stale = [page for page in PARTS if updated(page) != (DOCS / page).read_text()]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; `python -m tests.docs.generate` writes them")
        return
    for page in stale:
        (DOCS / page).write_text(updated(page))
        print(f"written: docs/{page}")


if __name__ == "__main__":
    main()
