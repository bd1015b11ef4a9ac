"""Which instances one client of many calls, so that each instance has few connections and all have as many.

Deterministic subsetting (Google, Site Reliability Engineering, chapter 20): the clients are numbered, as many as there
are subsets form a round, and within a round each instance is in one subset. Each round has an order of its own. It is
by hash instead of shuffled, so that an instance that comes or goes moves the others by one place and no more, as long
as the number of subsets stays the same.
"""

from __future__ import annotations

import os
import socket
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.core.instance import InstanceState


def subset_of(instances: Sequence[InstanceState], size: int, client: int) -> list[InstanceState]:
    """All of `instances`, the ones that the client with the number `client` should call first: the first `size`.

    Who needs a replacement for one of them, as it isn't well, takes the next.
    """
    count = len(instances) // size
    if count < 2:
        return sorted(instances, key=_id)
    turn, position = divmod(client, count)
    salt = turn.to_bytes(8, "big")
    order = sorted(
        instances,
        key=lambda each: (blake2b(each.instance.id.encode(), digest_size=8, salt=salt).digest(), each.instance.id),
    )
    start = position * size
    return order[start:] + order[:start]


def _id(instance: InstanceState) -> str:
    return instance.instance.id


def number_of(name: str) -> int:
    """A number for this process of the service `name`, where none was given: another for each process."""
    text = f"{name}/{socket.gethostname()}/{os.getpid()}"
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
