"""A child process of the tests: registers one instance in a local registry, and beats until it is killed.

Arguments: path, namespace, id, port, lease, heartbeat.
"""

from __future__ import annotations

import asyncio
import sys

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.local import LocalRegistry


async def main() -> None:
    path, namespace, id, port, lease, heartbeat = sys.argv[1:]
    async with LocalRegistry(path, namespace=namespace, lease=float(lease), heartbeat=float(heartbeat)) as registry:
        registration = await registry.register(Instance("users", id, "127.0.0.1", int(port)))
        print("registered", flush=True)
        while True:
            await asyncio.sleep(registration.interval)
            await registration.beat()


asyncio.run(main())
