"""The commands of `fastapi-mesh`, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from fastapi_mesh.cli.cache import cache
from fastapi_mesh.cli.check import check
from fastapi_mesh.cli.demo import demo
from fastapi_mesh.cli.drain import drain
from fastapi_mesh.cli.gateway import gateway
from fastapi_mesh.cli.routes import routes
from fastapi_mesh.cli.schema import schema
from fastapi_mesh.cli.services import services

application = typer.Typer(
    help="A service mesh and an API gateway for FastAPI, in process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastapi-mesh {version('fastapi-mesh')}")
        raise typer.Exit


@application.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What every command has."""


application.command()(gateway)
application.command()(check)
application.command()(routes)
application.command()(demo)
application.command()(services)
application.command()(drain)
application.command()(schema)
application.add_typer(cache, name="cache")
