"""The command `cache`: purges the answers that gateways keep in Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from fastapi_mesh.api_gateway.cache.door import scope_of
from fastapi_mesh.config.load import load_gateway_config
from fastapi_mesh.exceptions import ConfigurationError, MeshError

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.key import Scope
    from fastapi_mesh.config.edge.cache import CacheConfig

FAILED, WRONG = 1, 2
MEMORY = (
    "this cache is in the memory of each gateway process, where no command reaches it: call "
    "`await gateway.cache.purge(...)` in the process, or restart it; with a Redis as cache.backend this command works"
)

cache = typer.Typer(help="The answers that gateways keep.", no_args_is_help=True)


@cache.callback()
def options() -> None:
    """What is common to the commands on caches: nothing, but it makes `purge` a word of its own."""


@cache.command()
def purge(  # noqa: PLR0913  # an option of the command each
    route: Annotated[str | None, typer.Option(help="Of this route: its path as configured.")] = None,
    path: Annotated[str | None, typer.Option(help="Of this path, with every query.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Of this path and all below it.")] = None,
    key: Annotated[str | None, typer.Option(help="Of this URL, as Cache-Status shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    redis: Annotated[str | None, typer.Option(help="The Redis; else what the settings say.")] = None,
    namespace: Annotated[str | None, typer.Option(help="What its keys begin with; else what the settings say.")] = None,
    config: Annotated[Path | None, typer.Option(help="The gateway's settings file; variables count as well.")] = None,
) -> None:
    """Forget cached answers in all gateways that share a Redis; each sees it within its `cache.recheck` seconds.

    The exit code is 0 when it is done, 1 when Redis did not answer, 2 for a mistake in what was asked.
    """
    try:
        scope = scope_of(route=route, path=path, prefix=prefix, key=key, everything=everything)
        settings = _settings(redis, namespace, config)
        done = asyncio.run(_purge(scope, settings))
    except (MeshError, ImportError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(WRONG) from None
    if not done:
        typer.echo("Redis did not answer; nothing was purged", err=True)
        raise typer.Exit(FAILED)
    typer.echo("purged")


def _settings(redis: str | None, namespace: str | None, file: Path | None) -> CacheConfig:
    """What the gateway's own settings say, under what was given here."""
    given = {name: value for name, value in (("backend", redis), ("namespace", namespace)) if value is not None}
    code: dict[str, object] = {"cache": given} if given else {}
    settings = load_gateway_config(code, file=None if file is None else str(file)).cache
    if settings.backend == "memory":
        raise ConfigurationError(MEMORY)
    return settings


async def _purge(scope: Scope, settings: CacheConfig) -> bool:
    from fastapi_mesh.api_gateway.cache.redis import RedisStore

    store = RedisStore(settings.model_copy(update={"timeout": max(settings.timeout, 5.0)}))
    try:
        await store.drop(scope)
        return not store.statistics()["owed"]
    finally:
        await store.aclose()
