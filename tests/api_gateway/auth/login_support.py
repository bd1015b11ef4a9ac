"""What the tests of logins share: an OpenID Connect server that does as told, and a browser that logs in there."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx2
from auth_support import IssuerServer, Upstream, rsa, token

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import OAuth2AuthProvider

SECRET = "a-secret-of-sessions-with-32-bytes-or-more"
PAGE = {"accept": "text/html,application/xhtml+xml", "sec-fetch-mode": "navigate", "sec-fetch-site": "none"}
"""What a browser sends when a person goes to a page."""


class LoginIssuer(IssuerServer):
    """Its `/token` gives out what the test wants: `claims` over good ones, `answer` over a good answer, or `refusal`.

    `wall` is the time by which it dates. A code is good once, with the PKCE verifier of its login.
    """

    def __init__(self, wall: Any = time.time) -> None:
        super().__init__(rsa())
        self.wall = wall
        self.claims: dict[str, object] = {}
        self.answer: dict[str, object] = {}
        self.refusal: tuple[int, dict[str, object]] | None = None
        self.forms: list[dict[str, str]] = []
        self.codes: dict[str, dict[str, str]] = {}
        self.refresh_tokens: list[str] = []
        self.rotates = True
        self.pages["/token"] = self._token
        self.pages["/revoke"] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    def metadata(self, **changed: object) -> dict[str, object]:
        return super().metadata(
            authorization_endpoint=f"{self.url}/authorize",
            end_session_endpoint=f"{self.url}/logout",
            revocation_endpoint=f"{self.url}/revoke",
            **changed,
        )

    def authorize(self, location: str, **changed: str) -> str:
        """What a browser comes back with from `location`, once its user has logged in: the query of the callback."""
        asked = dict(parse_qsl(urlsplit(location).query))
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        said = {"code": code, "state": asked["state"], "iss": self.url, **changed}
        return urlencode({name: value for name, value in said.items() if value != "-"})

    def _token(self, body: bytes) -> Any:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        self.forms.append(form)
        if self.refusal is not None:
            return self.refusal
        nonce: object = ...
        if form["grant_type"] == "authorization_code":
            asked = self.codes.pop(form["code"], None)
            challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
            if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
                return 400, {"error": "invalid_grant"}
            nonce = asked["nonce"]
        elif form["refresh_token"] not in self.refresh_tokens:
            return 400, {"error": "invalid_grant"}
        elif self.rotates:
            self.refresh_tokens.remove(form["refresh_token"])
        self.refresh_tokens.append(f"refresh-{len(self.forms)}")
        return {
            "access_token": f"access-{len(self.forms)}",
            "token_type": "Bearer",
            "expires_in": 600,
            "refresh_token": self.refresh_tokens[-1],
            "id_token": self.id_token(nonce=nonce),
            **self.answer,
        }

    def id_token(self, **changed: object) -> str:
        now = int(self.wall())
        said = {"iss": self.url, "sub": "alice", "aud": "web", "iat": now, "exp": now + 300, **changed, **self.claims}
        return token({name: value for name, value in said.items() if value is not ...}, rsa(), "RS256")


def provider(issuer: LoginIssuer, login: Mapping[str, object] | None = None, **settings: Any) -> OAuth2AuthProvider:
    """A provider with a login at `issuer`."""
    return OAuth2AuthProvider(
        "web",
        "secret-of-web",
        **{"issuer": issuer.url, "login": {"session_secret": SECRET, **(login or {})}, **settings},
    )


@asynccontextmanager
async def gateway_with(
    upstream: Any, *providers: Any, route: Mapping[str, object] | None = None, **options: Any
) -> AsyncIterator[APIGateway]:
    """An open gateway whose paths below /app send browsers to log in; those below /api do not, /open asks nobody."""
    gateway = APIGateway(services={"up": upstream}, enable_metrics=False, **options)
    asked = {"auth": {"login": True}} if route is None else dict(route)
    gateway.configure_routes(
        [
            {"path": "/app/*", "service": "up", **asked},
            {"path": "/api/*", "service": "up", "auth_required": True},
            {"path": "/open/*", "service": "up"},
        ]
    )
    gateway.configure_auth(providers)
    async with gateway.opened({}):
        yield gateway


def browser_of(gateway: APIGateway, base: str = "https://gw.example") -> httpx2.AsyncClient:
    """A browser: it has cookies of its own."""
    transport = httpx2.ASGITransport(app=gateway)  # type: ignore[arg-type]
    return httpx2.AsyncClient(transport=transport, base_url=base)


@asynccontextmanager
async def site(
    issuer: LoginIssuer, login: Mapping[str, object] | None = None, **options: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, Upstream]]:
    """A browser at a gateway with a login, and the service behind it."""
    upstream = Upstream()
    async with gateway_with(upstream, provider(issuer, login), **options) as gateway, browser_of(gateway) as browser:
        yield browser, upstream


def reason(response: httpx2.Response) -> tuple[int, str | None]:
    """The status, and the gateway's word for why."""
    return response.status_code, response.headers.get("x-mesh-reason")


async def log_in(
    browser: httpx2.AsyncClient, issuer: LoginIssuer, path: str = "/app/x", **changed: str
) -> httpx2.Response:
    """Go to a page, log in, come back; the answer at the callback."""
    sent = await browser.get(path, headers=PAGE)
    assert sent.status_code == 302, sent.text
    return await browser.get(f"/auth/callback?{issuer.authorize(sent.headers['location'], **changed)}", headers=PAGE)
