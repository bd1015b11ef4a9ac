"""The command `services`: what is registered on this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from fastapi_mesh.config.load import load_mesh_config
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.exceptions import MeshError

if TYPE_CHECKING:
    from fastapi_mesh.core.instance import Instance

COLUMNS = ("service", "id", "address", "version", "health")


def services(
    path: Annotated[
        Path | None, typer.Option(help="The registry's file; else what MESH_DISCOVERY__PATH says, else the default.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="The namespace; else what MESH_NAMESPACE says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """List the instances in the local registry: the nodes that run on this machine."""
    try:
        found = asyncio.run(_instances(path, namespace))
    except MeshError as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps([_document(each) for each in found], indent=2))
    elif not found:
        typer.echo("no instance is registered")
    else:
        _print_table([_row(each) for each in found])


async def _instances(path: Path | None, namespace: str | None) -> tuple[Instance, ...]:
    config = load_mesh_config(discovery_backend="local", namespace=namespace)
    registry = LocalRegistry(path or config.discovery.path, namespace=config.namespace)
    if not registry.path.exists():  # looking must not make one
        return ()
    async with registry:
        return await registry.instances()


def _document(instance: Instance) -> dict[str, object]:
    return {
        "service": instance.service,
        "id": instance.id,
        "address": instance.address,
        "port": instance.port,
        "scheme": instance.scheme,
        "version": instance.version,
        "health": instance.health,
        "tags": list(instance.tags),
        "metadata": dict(instance.metadata),
    }


def _row(instance: Instance) -> tuple[str, ...]:
    address = f"{instance.scheme}://{instance.authority.decode()}"
    return instance.service, instance.id, address, instance.version or "-", instance.health


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
