"""A node that knows as many services of Consul as it is told, and does nothing; started by a scenario.

Arguments: the port of Consul, and how many services it uses. Prints "ready" when it has a list of each.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from fastapi_mesh import ServiceMesh


async def main(port: int, used: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = {"host": "127.0.0.1", "port": port}
    async with ServiceMesh("watcher", discovery_backend="consul", discovery_config=config) as mesh:
        for number in range(used):
            found = await mesh.discover_services(f"service-{number}")
            print(f"service-{number}", len(found), flush=True)
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
