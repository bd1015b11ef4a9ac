"""The command `routes`: the routes of a gateway's settings file, and what each of them has."""

from __future__ import annotations

import json
import os
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastapi_mesh.cli.inspection import inspect, layers_of
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.routes import Route

COLUMNS = ("path", "methods", "service", "layers", "set for it")
WRONG, NO_FILE = 1, 2


def routes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gateway's settings: .toml, .yaml or .json.")],
    output: Annotated[Literal["text", "json"], typer.Option(help="How to say it.")] = "text",
    use_env: Annotated[
        bool, typer.Option("--env", help="With the variables of this shell (MESH_GATEWAY__*...) over the file.")
    ] = False,
) -> None:
    """List the routes of a settings file: where they lead, through which layers, and what is set for each of them."""
    try:
        found = inspect(str(file), os.environ if use_env else None)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(NO_FILE) from None
    if found.problems:
        for each in found.problems:
            typer.echo(f"{found.file}:{each.line or ''}: {each.text}", err=True)
        raise typer.Exit(WRONG)
    rows = [_document(route) for route in found.routes]
    if output == "json":
        typer.echo(json.dumps(rows, indent=2, default=str))
    elif not rows:
        typer.echo("no route is configured")
    else:
        _print([_row(row) for row in rows])


def _document(route: Route) -> dict[str, object]:
    given = route.config.model_dump(mode="json", exclude_unset=True, exclude={"path", "service", "methods"})
    methods = None if route.config.methods is None else list(route.config.methods)
    return {
        "path": route.path,
        "methods": methods,
        "service": route.service,
        "layers": layers_of(route),
        "settings": given,
    }


def _row(row: dict[str, object]) -> tuple[str, ...]:
    methods, layers, settings = row["methods"], row["layers"], row["settings"]
    assert isinstance(layers, list), "made above"
    assert isinstance(settings, dict), "made above"
    given = " ".join(f"{name}={_short(value)}" for name, value in settings.items())
    listed = ",".join(methods) if isinstance(methods, list) else "any"
    return str(row["path"]), listed, str(row["service"]), ", ".join(layers) or "-", given or "-"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
