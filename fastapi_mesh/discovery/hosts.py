"""A discovery backend that takes a service's name as its host name: what is left when the mesh is switched off.

With `SERVICE_MESH_ENABLED=false` a call goes to `http://SERVICE` (port 80), which is what Kubernetes' Service DNS, an
/etc/hosts line or a compose network gives.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi_mesh.core.instance import Instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class HostNames:
    """Every service has exactly one instance: the host of its name."""

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`; yields once."""
        yield (Instance(service=service, id=service, address=service, port=80),)
        await asyncio.get_running_loop().create_future()
