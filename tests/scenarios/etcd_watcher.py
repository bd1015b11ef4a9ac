"""A node that registers itself, knows as many services of etcd as it is told, and does nothing; started by a scenario.

Arguments: the port of etcd, its prefix of keys, and how many services it uses. Prints "ready" when it has a list of
each.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress

from fastapi_mesh import ServiceMesh
from fastapi_mesh.exceptions import ServiceDiscoveryError


async def main(port: int, prefix: str, used: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = {"host": "127.0.0.1", "port": port, "etcd": {"prefix": prefix}}
    async with ServiceMesh("watcher", discovery_backend="etcd", discovery_config=config) as mesh:
        await mesh.register_service(address="127.0.0.1", port=1)
        with suppress(ServiceDiscoveryError):  # on a busy machine the first list takes its time
            await mesh.discover_services("service-0")
        for number in range(used):
            found = await mesh.discover_services(f"service-{number}")
            print(f"service-{number}", len(found), flush=True)
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
