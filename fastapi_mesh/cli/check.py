"""The command `check`: what is wrong with a gateway's settings file, without starting it."""

from __future__ import annotations

import json
import os
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastapi_mesh.cli.inspection import inspect
from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fastapi_mesh.cli.inspection import Finding, Inspection

WRONG, NO_FILE = 1, 2


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gateway's settings: .toml, .yaml or .json.")],
    output: Annotated[Literal["text", "json"], typer.Option(help="How to say it.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are problems too.")] = False,
    use_env: Annotated[
        bool, typer.Option("--env", help="With the variables of this shell (MESH_GATEWAY__*...) over the file.")
    ] = False,
) -> None:
    """Say everything that is wrong with a settings file, each with its line and the likeliest fix; start nothing.

    The exit code is 0 when a gateway can start with it, 1 when it can't, 2 when there is no such file.
    """
    try:
        found = inspect(str(file), os.environ if use_env else None)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(NO_FILE) from None
    code = WRONG if found.problems or (strict and found.warnings) else 0
    if output == "json":
        typer.echo(json.dumps(_document(found), indent=2))
    else:
        _print(found)
    raise typer.Exit(code)


def _document(found: Inspection) -> dict[str, object]:
    return {
        "file": found.file,
        "valid": not found.problems,
        "problems": [{"line": each.line, "text": each.text} for each in found.problems],
        "warnings": [{"line": each.line, "text": each.text} for each in found.warnings],
    }


def _print(found: Inspection) -> None:
    for kind, findings in (("error", found.problems), ("warning", found.warnings)):
        for each in findings:
            typer.echo(f"{_place(found.file, each)}: {kind}: {each.text}")
    count = len(found.problems)
    if count:
        typer.echo(f"{found.file}: {count} problem{'' if count == 1 else 's'}")
    else:
        routes = 0 if found.config is None else len(found.config.routes)
        typer.echo(f"{found.file}: good (routes: {routes}, warnings: {len(found.warnings)})")


def _place(file: str, finding: Finding) -> str:
    return file if finding.line is None else f"{file}:{finding.line}"
