"""A pytest plugin that puts a gateway in front of the httpbin that the tests of `requests` talk to.

`nox -s requests -- CHECKOUT` runs them. Nothing of theirs is in this repository.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from httpbin import app as httpbin_app
from pytest_httpbin import certs, serve

from fastapi_mesh.api_gateway import APIGateway

CERTIFICATES = Path(certs.where()).parent


@dataclass(frozen=True)
class Front:
    """What the tests ask of a httpbin: its URL."""

    url: str


@contextmanager
def _gateway(scheme: str, **tls: object) -> Iterator[Front]:
    """A gateway of its own, in a thread, in front of a plain httpbin."""
    with serve.Server(application=httpbin_app) as server, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        gateway = APIGateway(services={"httpbin": server.url}, **tls)
        gateway.configure_routes([{"path": "/*", "service": "httpbin"}])
        loop = asyncio.new_event_loop()

        def run() -> None:
            loop.run_until_complete(gateway.start([listener]))
            loop.close()

        thread = threading.Thread(target=run, name=f"gateway-{scheme}")
        thread.start()
        _wait_ready(gateway, thread)
        try:
            yield Front(f"{scheme}://127.0.0.1:{port}")
        finally:
            asyncio.run_coroutine_threadsafe(gateway.stop(), loop)
            thread.join()


def _wait_ready(gateway: APIGateway, thread: threading.Thread) -> None:
    end = time.monotonic() + 10
    while gateway.life is None or not gateway.life.mesh.life.is_open:
        if not thread.is_alive() or time.monotonic() > end:
            raise RuntimeError("the gateway did not start")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def httpbin() -> Iterator[Front]:
    with _gateway("http") as front:
        yield front


@pytest.fixture(scope="session")
def httpbin_secure() -> Iterator[Front]:
    with _gateway("https", ssl_cert=CERTIFICATES / "server.pem", ssl_key=CERTIFICATES / "server.key") as front:
        yield front


@pytest.fixture
def httpbin_ca_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certs.where())
