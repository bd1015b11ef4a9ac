"""The command `services`: what is registered."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from fastapi_mesh.config.load import load_mesh_config
from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.closing import closing
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.base import ServiceList
from fastapi_mesh.discovery.local import LocalRegistry
from fastapi_mesh.exceptions import MeshError, ServiceDiscoveryError
from fastapi_mesh.service_mesh.backends import Closed, Opened, Surroundings, discoveries_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi_mesh.core.instance import Instance
    from fastapi_mesh.discovery.base import Discovery

T = TypeVar("T")
ANSWER = 10.0
"""Seconds to wait for each answer of the registry."""
COLUMNS = ("service", "id", "address", "version", "health")


def services(
    path: Annotated[
        Path | None,
        typer.Option(help="A local registry's file; else the registry is that of the settings (MESH_DISCOVERY__...)."),
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="The namespace; else what MESH_NAMESPACE says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """List the instances in the registry that the settings name: by default the nodes of this machine."""
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


async def _instances(path: Path | None, namespace: str | None) -> list[Instance]:
    """What each of the configured backends knows; a service that two of them know is that of the first."""
    if path is not None:
        config = load_mesh_config(discovery_backend="local", discovery_config={"path": path}, namespace=namespace)
    else:
        config = load_mesh_config(namespace=namespace)
    supervisor = Supervisor()
    found: dict[str, tuple[Instance, ...]] = {}
    async with AsyncExitStack() as life:
        life.push_async_callback(supervisor.aclose)
        backends = discoveries_of(config, Surroundings(config.namespace, SystemClock(), supervisor))
        for backend in backends:
            if isinstance(backend, LocalRegistry) and not backend.path.exists():
                continue  # looking must not make one
            if not isinstance(backend, ServiceList):
                raise ServiceDiscoveryError(
                    f"the backend {config.discovery.backend!r} can't say which services there are; ask for one by name"
                )
            if isinstance(backend, Closed):
                life.push_async_callback(backend.aclose)
            if isinstance(backend, Opened):
                await backend.open()
            for service in await _first(backend.watch_services()):
                if service.name not in found:
                    found[service.name] = await _first(cast("Discovery", backend).watch(service.name))
    return [each for name in sorted(found) for each in found[name]]


async def _first(lists: AsyncIterator[tuple[T, ...]]) -> tuple[T, ...]:
    """The first list of a watch, which is then ended. Raises ServiceDiscoveryError when there is none in time."""
    try:
        async with asyncio.timeout(ANSWER), closing(lists):
            return await anext(lists)
    except TimeoutError:
        raise ServiceDiscoveryError(f"the registry did not answer within {ANSWER:g} s") from None


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
