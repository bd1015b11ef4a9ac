"""A gateway in front of an issuer of tokens: keys found by discovery, API keys beside them, a service that learns who.

    python examples/gateway_auth.py

The issuer is an application in this process, served on a port, as yours is a server on the network. It changes its keys
while the gateway runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from fastapi_mesh import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, JWTAuthProvider

KEY_OF_BILLING = "long-and-random-like-6f1d0b5c"

service = FastAPI()


@service.get("/{path:path}")
async def whoami(request: Request) -> str:
    """What the service learns: who it is, and no credential."""
    assert "authorization" not in request.headers
    name = request.headers.get("x-auth-subject", "nobody")
    return f"{name}, {request.headers.get('x-auth-scopes', 'no scopes')}"


class Issuer:
    """The smallest OpenID Connect server that there can be: metadata, keys, and tokens for everybody who asks."""

    def __init__(self) -> None:
        self.url = ""
        self.keys = [ECKey.generate_key("P-256", {"kid": "2026-01"})]
        self.app = FastAPI()
        self.app.get("/.well-known/openid-configuration")(self.metadata)
        self.app.get("/keys")(self.published)

    async def metadata(self) -> dict[str, str]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    async def published(self) -> dict[str, object]:
        return dict(KeySet(self.keys).as_dict(private=False))

    def token(self, subject: str, scope: str) -> str:
        """A token for a minute, by the newest key."""
        key = self.keys[-1]
        claims = {"iss": self.url, "sub": subject, "aud": "shop", "scope": scope, "exp": int(time.time()) + 60}
        return jwt.encode({"alg": "ES256", "kid": str(key.kid)}, claims, key)


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[int]:
    """Serve an application in this event loop; gives its port. (You would run it by `uvicorn module:app`.)"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
            server.should_exit = True


async def main() -> None:
    issuer = Issuer()
    async with serving(issuer.app) as port:
        issuer.url = f"http://127.0.0.1:{port}"
        gateway = APIGateway(services={"shop": service})
        gateway.configure_routes(
            [
                {"path": "/orders/*", "service": "shop", "auth_required": True},
                {"path": "/refunds/*", "service": "shop", "auth": {"scopes": ["refund"]}},
            ]
        )
        gateway.configure_auth(
            [
                JWTAuthProvider(issuer=issuer.url, audience="shop", algorithm="ES256"),
                APIKeyAuthProvider(keys={"billing": {"key": KEY_OF_BILLING, "scopes": ["refund"]}}),
            ]
        )
        transport = httpx2.ASGITransport(app=gateway)
        async with gateway.opened({}), httpx2.AsyncClient(transport=transport, base_url="http://gw") as client:

            async def ask(who: str, path: str, headers: dict[str, str] | None = None) -> None:
                answer = await client.get(path, headers=headers)
                said = answer.json() if answer.is_success else answer.headers["x-mesh-reason"]
                print(f"{who}: {answer.status_code} {said}")

            ana = {"authorization": f"Bearer {issuer.token('ana', 'read')}"}
            await ask("nobody", "/orders/1")
            await ask("ana", "/orders/1", ana)
            await ask("ana, who wants money back", "/refunds/1", ana)
            await ask("billing", "/refunds/1", {"x-api-key": KEY_OF_BILLING})
            await ask("somebody with another key", "/refunds/1", {"x-api-key": "guessed"})
            issuer.keys.append(ECKey.generate_key("P-256", {"kid": "2026-02"}))
            ben = {"authorization": f"Bearer {issuer.token('ben', 'read refund')}"}
            await ask("ben, by a new key of the issuer", "/refunds/1", ben)
            issuer.keys.pop(0)
            stranger = {"authorization": f"Bearer {Issuer().token('root', 'refund')}"}
            await ask("a stranger", "/refunds/1", stranger)


if __name__ == "__main__":
    asyncio.run(main())
