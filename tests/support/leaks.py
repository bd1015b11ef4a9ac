"""Finds what a test left behind: tasks of the event loop, and sockets of this process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_TURNS = 20
"""Turns of the loop for what is on its way out: a closed transport needs two, a cancelled task one or more."""


def open_sockets() -> dict[int, str]:
    """The sockets of this process by file descriptor; empty where /proc is missing."""
    found: dict[int, str] = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return found
    for number in numbers:
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # it was the descriptor of the listing itself
            continue
        if link.startswith("socket:"):
            found[int(number)] = link
    return found


async def leaked_tasks(before: set[asyncio.Task[object]]) -> list[str]:
    """A line for each task that is neither in `before` nor about to end."""
    for _ in range(_TURNS):
        left = [task for task in asyncio.all_tasks() - before if not _is_the_runner(task)]
        if not left:
            return []
        await asyncio.sleep(0)
    return [f"task {task.get_name()}: {task.get_coro()}" for task in left]


def _is_the_runner(task: asyncio.Task[object]) -> bool:
    """anyio's test runner makes a task of its own for each fixture and test."""
    return task.get_coro().__qualname__.startswith("TestRunner.")  # type: ignore[union-attr] # coroutines have one


async def leaked_sockets(before: dict[int, str]) -> list[str]:
    """A line for each socket that was not in `before` and does not close by itself in the loop's next turns."""
    for _ in range(_TURNS):
        left = {
            number: link for number, link in open_sockets().items() if before.get(number) != link and _is_internet(link)
        }
        if not left:
            return []
        await asyncio.sleep(0)
    return [f"file descriptor {number}: {_peers(link)}" for number, link in left.items()]


def _is_internet(link: str) -> bool:
    """uvloop wakes itself through a new pair of unnamed Unix sockets in each run: those are not a test's."""
    inode = link.removeprefix("socket:[").removesuffix("]")
    lines = Path("/proc/self/net/unix").read_text().splitlines()[1:]
    return not any(fields[6] == inode and len(fields) == 7 for fields in map(str.split, lines))


def _peers(link: str) -> str:
    inode = link.removeprefix("socket:[").removesuffix("]")
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] == inode:
                local, remote = (int(fields[index].rpartition(":")[2], 16) for index in (1, 2))
                return f"TCP socket, local port {local}, remote port {remote}"
    return link
