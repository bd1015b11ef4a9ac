"""A real OpenID Connect server, npm's `oidc-provider`, in a process of its own: started, asked for tokens, killed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from tests.support.process import free_port
from tests.support.servers import find

if TYPE_CHECKING:
    from tests.support.process import ChildProcess, Processes

SCRIPT = Path(__file__).with_name("oidc_server.mjs")
READY = re.compile(r"^ready$", re.MULTILINE)
RESOURCE = "https://shop.example"
"""What a JWT is for; it becomes its `aud`."""
SECRET = "a-client-secret-of-32-bytes-or-more"
"""Of all clients: `caller`, who gets tokens, `gateway`, who asks about them, and `web`, at which users log in."""


class OidcServer:
    """One server, on one port for its life, however often it is started. `keys` are private JWKs, `web_ttl` seconds of
    the access tokens of `web`, at which users log in.
    """

    def __init__(self, processes: Processes, *keys: dict[str, Any], ttl: int = 600, web_ttl: int = 600) -> None:
        self._processes = processes
        self._port = free_port()
        self._ttl = ttl
        self._web_ttl = web_ttl
        self.keys = list(keys)
        self.url = f"http://127.0.0.1:{self._port}"
        self._child: ChildProcess | None = None

    async def start(self) -> None:
        """Start it, with the keys that it has now."""
        node, module = shutil.which("node"), find("oidc")
        assert node is not None
        assert module is not None
        clients = [{"id": name, "secret": SECRET, "scope": "read write"} for name in ("caller", "gateway")]
        settings = {
            "port": self._port,
            "keys": self.keys,
            "clients": clients,
            "resource": RESOURCE,
            "ttl": self._ttl,
            "web": {"id": "web", "secret": SECRET, "ttl": self._web_ttl},
        }
        self._child = self._processes.start(
            [node, str(SCRIPT), module],
            name="oidc",
            port=self._port,
            environment={"OIDC_SETTINGS": json.dumps(settings)},
        )
        await self._child.ready(READY)

    def kill(self) -> None:
        """End it at once; what it knew of opaque tokens is lost."""
        assert self._child is not None
        self._child.kill()

    async def token(self, *, resource: str | None = RESOURCE, scope: str = "read") -> str:
        """An access token of `caller` by its own credentials: a JWT for a resource, else an opaque one."""
        form = {"grant_type": "client_credentials", "scope": scope} | ({"resource": resource} if resource else {})
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(f"{self.url}/token", data=form, auth=("caller", SECRET))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])
