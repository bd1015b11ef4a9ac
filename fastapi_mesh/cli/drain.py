"""The command `drain`: lets the nodes of this machine leave the registry, and waits until others have noticed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Annotated

import typer

from fastapi_mesh.service_mesh.marker import Node, find_nodes, read_nodes

LOOK_EVERY = 0.05


def drain(
    pids: Annotated[
        list[int] | None, typer.Option("--pid", help="Only this process; may be given several times.")
    ] = None,
    service: Annotated[str | None, typer.Option(help="Only nodes of this service.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all of them.")] = 30.0,
) -> None:
    """Let the nodes of this machine leave the registry and turn unready, while they go on serving.

    Made for a preStop hook of Kubernetes: it ends when each has left and its drain_delay is over. Without an option it
    is for all nodes of this user that this process can see: in a container, those in the container.
    """
    found = [node for node in find_nodes() if _asked(node, pids, service)]
    problems = [f"process {pid}: no node of this user" for pid in pids or () if pid not in {node.pid for node in found}]
    if not found and not problems:
        problems.append(f"no node{f' of {service}' if service else ''} runs here as this user")
    problems += [
        f"{node.service} (process {node.pid}): its server uses SIGUSR1 for something else"
        for node in found
        if not node.drains
    ]
    for pid in {node.pid for node in found if node.drains}:
        with suppress(ProcessLookupError):  # it ends by itself
            os.kill(pid, signal.SIGUSR1)
    problems += _wait([node for node in found if node.drains], time.monotonic() + timeout)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)


def _asked(node: Node, pids: list[int] | None, service: str | None) -> bool:
    return (not pids or node.pid in pids) and service in (None, node.service)


def _wait(waited: list[Node], until: float) -> list[str]:
    """Report each node that has left; a line for each that has not when the time is over."""
    while waited:
        for node in tuple(waited):
            states = {each.service: each.state for each in read_nodes(node.pid)}
            if states.get(node.service, "left") == "left":
                typer.echo(f"{node.service} (process {node.pid}): {'has left' if states else 'has ended'}")
                waited.remove(node)
        if waited and time.monotonic() > until:
            return [f"{node.service} (process {node.pid}): has not left in time" for node in waited]
        if waited:
            time.sleep(LOOK_EVERY)
    return []
