"""Sees that a file has changed, by its place on the disk and its times: works with every editor and every mount."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.core.clock import Clock

Signature = tuple[int, int, int, int] | None
"""Device, inode, time of the last change of the content in ns, and size; None for no file. Symbolic links are followed,
so that the swap of a Kubernetes mount's `..data` is a change.
"""


def signature(path: str | os.PathLike[str]) -> Signature:
    """What `path` is now."""
    try:
        found = os.stat(path)
    except OSError:  # not there, not readable, a broken link in the middle of a swap
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


async def wait_settled(
    path: str | os.PathLike[str] | Callable[[], Signature],
    seen: Signature,
    *,
    interval: float,
    clock: Clock,
    vanished: int = 4,
) -> Signature:
    """Wait until `path` is something else than `seen`, and has been so for one `interval` (seconds).

    As a function it says itself what is there now.

    A file that is being written changes from look to look, so it is not taken half. A missing one must be missing for
    `vanished` looks: some editors move the old one away before the new one comes.
    """
    look = path if callable(path) else partial(signature, path)
    before, same = seen, 0
    while True:
        await clock.sleep(interval)
        now = look()
        same = same + 1 if now == before else 0
        before = now
        if now != seen and same >= (1 if now is not None else vanished):
            return now
