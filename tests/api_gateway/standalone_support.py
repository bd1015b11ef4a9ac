"""What the tests of a standalone gateway share: one that serves itself in this event loop, and TLS material."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.core.tasks import Supervisor
from tests.support.process import free_port

UPSTREAM = "http://127.0.0.1:1"


def standalone(upstream: str = UPSTREAM, **options: object) -> APIGateway:
    """A gateway on a free port of its own whose paths below /api lead to one service."""
    options = {"host": "127.0.0.1", "port": free_port(), "max_retries": 0, **options}
    gateway = APIGateway(services={"up": upstream}, **options)  # type: ignore[arg-type] # the test's own options
    gateway.configure_routes([{"path": "/api/*", "service": "up"}])
    return gateway


@asynccontextmanager
async def started(gateway: APIGateway) -> AsyncIterator[int]:
    """`await gateway.start()` in the background; gives the port when it accepts connections."""
    supervisor = Supervisor()
    task = supervisor.start(gateway.start(), name="gateway of a test")
    try:
        while not await accepts(gateway.config.port):
            assert not task.done(), "it ended before it served"
        yield gateway.config.port
    finally:
        await gateway.stop()
        await task
        await supervisor.aclose()


async def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        await asyncio.sleep(0.01)
        return False
    writer.close()
    await writer.wait_closed()
    return True


class Authority:
    """A certificate authority that writes PEM files as a renewal does: one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"

    def issue(self, *, expires: datetime.datetime | None = None, combined: bool = False) -> bytes:
        """Write a new pair; gives the certificate."""
        made = self._authority.issue_cert("127.0.0.1", "localhost", not_after=expires)
        chain = b"".join(each.bytes() for each in made.cert_chain_pems)
        key = made.private_key_pem.bytes()
        self.cert.write_bytes(chain + key if combined else chain)
        self.key.write_bytes(key)
        return chain

    def client(self) -> ssl.SSLContext:
        """A client's context that trusts it."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context
