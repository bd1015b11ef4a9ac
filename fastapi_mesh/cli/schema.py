"""The command `schema`: the JSON schema of a settings file."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from fastapi_mesh.config.schema import json_schema


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; else it is printed.")
    ] = None,
) -> None:
    """Print the JSON schema of a settings file, for editors that complete and check TOML and YAML by one."""
    text = json.dumps(json_schema(), indent=2)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        typer.echo(f"{output} can't be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None
