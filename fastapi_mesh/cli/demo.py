"""The command `demo`: a mesh on this machine, played through in front of your eyes."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from fastapi_mesh.cli.stage.export import export as write_apps
from fastapi_mesh.cli.stage.ports import gateway_port, is_free
from fastapi_mesh.cli.stage.run import Settings, run
from fastapi_mesh.cli.stage.screen import Screen
from fastapi_mesh.exceptions import ConfigurationError

WRONG_USE = 2


def demo(
    once: Annotated[bool, typer.Option("--once", help="End when the story is over, as without a terminal.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The gateway's port. [default: 8080, or a free one]")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write the demo's applications into DIR, to edit.")
    ] = None,
    apps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="Play with the exported applications in DIR."),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Keep the logs of all processes in DIR.")
    ] = None,
) -> None:
    """Start three services with two instances each and a gateway, kill one, break one, and watch the mesh cope.

    Nothing else is needed, and nothing leaves this machine. Without a terminal it ends by itself.

    The exit code is 1 when something did not happen as promised.
    """
    try:
        if export is not None:
            _export(export)
            return
        if port is not None and not is_free(port):
            raise ConfigurationError(f"port {port} is taken; leave --port out to get a free one")
        live = sys.stdout.isatty() and not once
        settings = Settings(
            port=port or gateway_port(),
            once=not live,
            apps=None if apps is None else apps.absolute(),
            logs=None if logs is None else logs.absolute(),
        )
        code = run(settings, Screen(live=live))
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG_USE) from None
    raise typer.Exit(code)


def _export(folder: Path) -> None:
    for path in write_apps(folder):
        typer.echo(f"wrote {path}")
    typer.echo(f"play with them: fastapi-mesh demo --apps {folder}")
