"""The command `gateway`: runs a gateway from a settings file, or one that was made in code."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from fastapi_mesh.api_gateway.run import Options, run


def gateway(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its settings: .toml, .yaml or .json; watched for changes.")
    ] = None,
    app: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A gateway made in code, instead of a file.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on. [default: 0.0.0.0]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one. [default: 8080]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the port, each a node of its own. [default: 1]")
    ] = None,
) -> None:
    """Run an API gateway until SIGTERM or Ctrl-C; SIGHUP makes it read its settings again.

    What is given here counts over MESH_GATEWAY__* and GATEWAY_* variables, and those over the file. The exit code is 3
    when it can't start.
    """
    if config is not None and app is not None:
        raise typer.BadParameter("--config and --app exclude each other")
    raise typer.Exit(run(Options(None if config is None else str(config), app, host, port, workers)))
