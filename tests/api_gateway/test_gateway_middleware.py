"""`gateway.add_middleware`: the description's objects set up layers, foreign ASGI middleware wraps the gateway."""

from __future__ import annotations

import logging

import httpx2
import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware as StarletteCORS
from starlette.middleware.gzip import GZipMiddleware

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider, JWTAuthProvider
from fastapi_mesh.api_gateway.middleware import (
    AuthenticationMiddleware,
    CachingMiddleware,
    CORSMiddleware,
    LoggingMiddleware,
    RateLimitingMiddleware,
)
from fastapi_mesh.exceptions import ConfigurationError
from tests.api_gateway.transform_support import Echo, client_of, new_gateway

pytestmark = pytest.mark.anyio

SHOP = "https://frontend.example.com"
SECRET = "a-secret-that-is-long-enough-for-HS256"
LOGGER = "fastapi_mesh.gateway"


def layers_of(gateway: APIGateway) -> list[str]:
    """The names of the layers of the first route's chain, outermost first."""
    layer, names = gateway._table.routes[0].chain, []
    while hasattr(layer, "inner"):
        names.append(type(layer).__name__)
        layer = layer.inner
    return names


DESCRIBED = [
    CORSMiddleware(
        allow_origins=["https://frontend.example.com"],
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["*"],
    ),
    AuthenticationMiddleware(jwt_secret="your-secret-key", jwt_algorithm="HS256"),
    RateLimitingMiddleware(default_rate_limit="1000/hour", storage="redis://localhost:6379"),
    CachingMiddleware(cache_backend="redis://localhost:6379", default_ttl=300),
    LoggingMiddleware(log_requests=True, log_responses=True, log_level="INFO"),
]


@pytest.mark.spec("S-017", "S-020", "S-021", "S-022", "S-023", "S-024", "S-025", "A1", "X-32")
async def test_the_descriptions_list_sets_up_five_layers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    gateway = new_gateway(Echo(), route={"auth_required": True})

    gateway.add_middleware(DESCRIBED)

    config = gateway.config
    assert config.cors is not None
    assert (config.cors.allow_origins, config.cors.allow_headers) == ((SHOP,), ("*",))
    assert config.rate_limit is not None
    assert config.rate_limit.limit == "1000/hour"
    assert config.cache_ttl == 300
    assert str(config.cache.backend) == "redis://localhost:6379"
    assert config.access_log is not None
    assert (config.access_log.level, config.access_log.requests, config.access_log.responses) == ("INFO", True, True)
    await gateway.open_in({})  # Redis is connected to when it is used first
    names = layers_of(gateway)
    await gateway.aclose()
    rows = ["Cors", "AccessLog", "Problems", "Authenticate", "RateLimit", "Cache"]
    assert [name for name in names if name in rows] == rows
    assert "add_middleware" not in caplog.text, "it is in the layers' order"


@pytest.mark.spec("S-021", "B8")
async def test_authentication_appends_one_provider_whenever_it_comes() -> None:
    keys = APIKeyAuthProvider(keys=["a-key-of-the-shop-0123456789"])
    gateway = new_gateway(Echo(), route={"auth_required": True})
    gateway.add_middleware(AuthenticationMiddleware(jwt_secret=SECRET))
    gateway.add_middleware([AuthenticationMiddleware(jwt_secret=SECRET)])
    gateway.configure_auth([keys])

    first, second = gateway._extensions.providers
    assert first is keys
    assert isinstance(second, JWTAuthProvider)

    from joserfc import jwt
    from joserfc.jwk import OctKey

    token = jwt.encode({"alg": "HS256"}, {"sub": "ana", "exp": 4_000_000_000}, OctKey.import_key(SECRET))
    async with client_of(gateway) as client:
        answers = [
            await client.get("/api/x", headers=headers)
            for headers in (
                {"authorization": f"Bearer {token}"},
                {"x-api-key": "a-key-of-the-shop-0123456789"},
                {"authorization": "Bearer no.such.token"},
                {},
            )
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401]


@pytest.mark.spec("S-022")
async def test_a_rate_limit_counts_on_all_routes() -> None:
    gateway = new_gateway(Echo())
    gateway.add_middleware(RateLimitingMiddleware(default_rate_limit="2/hour"))
    async with client_of(gateway) as client:
        answers = [(await client.get("/api/x")).status_code for _ in range(3)]

    assert answers == [200, 200, 429]


@pytest.mark.spec("S-023")
async def test_caching_is_on_for_all_routes() -> None:
    echo = Echo(b"hello")
    gateway = new_gateway(echo)
    gateway.add_middleware(CachingMiddleware(default_ttl=60))
    async with client_of(gateway) as client:
        answers = [(await client.get("/api/x")).text for _ in range(3)]

    assert answers == ["hello"] * 3
    assert len(echo.requests) == 1


@pytest.mark.spec("S-024")
def test_logging_keeps_the_format_that_was_set_and_can_be_switched_off() -> None:
    gateway = APIGateway(access_log={"format": "json"})
    gateway.add_middleware(LoggingMiddleware(log_requests=False, log_level="DEBUG"))
    log = gateway.config.access_log
    assert log is not None
    assert (log.format, log.level, log.requests, log.responses) == ("json", "DEBUG", False, True)

    gateway.add_middleware(LoggingMiddleware(log_requests=False, log_responses=False))
    assert gateway.config.access_log is None


@pytest.mark.spec("S-025")
def test_a_list_in_another_order_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    APIGateway().add_middleware([LoggingMiddleware(), CachingMiddleware(), CORSMiddleware(allow_origins=[SHOP])])

    assert [record.getMessage() for record in caplog.records if "add_middleware" in record.getMessage()] == [
        "add_middleware: these are settings of layers, whose own order counts: Cors > Cache (the list had Cache > Cors)"
    ]


@pytest.mark.spec("A1")
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (StarletteCORS, r"CORSMiddleware is a class; write starlette.middleware.Middleware\(CORSMiddleware, ...\) or "),
        ([StarletteCORS], r"or fastapi_mesh.api_gateway.middleware.CORSMiddleware\(...\)"),
        (CORSMiddleware, r"CORSMiddleware is a class; give an object"),
        (StarletteCORS(FastAPI()), "is made already, around another application"),
        ([5], r"\[0\]: a value of type int is no middleware"),
        ("cors", "a value of type str is no middleware"),
        ([CORSMiddleware()], "allow_origins is empty"),
        (CORSMiddleware(allow_origins="*", allow_credentials=True), "every page could act"),
        (RateLimitingMiddleware(default_rate_limit="1000/hor"), "rate_limit"),
        (CachingMiddleware(cache_backend="redis//x"), "cache.backend"),
        (LoggingMiddleware(log_level="LOUD"), "access_log.level"),
    ],
)
def test_what_is_no_middleware_or_wrong_is_refused_and_changes_nothing(given: object, text: str) -> None:
    gateway = APIGateway()
    before = gateway.config
    with pytest.raises(ConfigurationError, match=text):
        gateway.add_middleware(given)
    assert gateway.config == before


def test_no_secret_is_shown() -> None:
    shown = repr(
        [
            AuthenticationMiddleware("s3cret"),
            CachingMiddleware("redis://:s3cret@x"),
            RateLimitingMiddleware("1/s", "redis://:s3cret@x"),
        ]
    )
    assert "s3cret" not in shown


# Foreign middleware.


class Mark:
    """Says that it was there, before and after."""

    def __init__(self, app, name: str, path: str | None = None) -> None:
        self.app = app
        self.name = name.encode()
        self.path = path

    async def __call__(self, scope, receive, send) -> None:
        async def marked(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-mark", self.name)]}
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": [*scope["headers"], (b"x-mark", self.name)]}
        if self.path is not None:
            scope |= {"path": self.path, "raw_path": self.path.encode()}
        await self.app(scope, receive, marked)


@pytest.mark.spec("A1")
async def test_foreign_middleware_wraps_the_whole_gateway_the_first_outermost() -> None:
    echo = Echo()
    gateway = new_gateway(echo)
    gateway.add_middleware([Middleware(Mark, name="outer"), LoggingMiddleware(), (Mark, {"name": "inner"})])
    async with client_of(gateway) as client:
        answer = await client.get("/api/x")
        refused = await client.get("/nowhere")
        health = await client.get("/health")

    assert [value for name, value in echo.last["headers"] if name == "x-mark"] == ["outer", "inner"]  # type: ignore[attr-defined]
    assert [each.headers.get_list("x-mark") for each in (answer, refused, health)] == [["inner", "outer"]] * 3
    assert (answer.status_code, refused.status_code, health.status_code) == (200, 404, 200)


@pytest.mark.spec("A1")
async def test_foreign_middleware_wraps_routes_in_an_application_and_nothing_else_of_it() -> None:
    gateway = new_gateway(Echo())
    gateway.add_middleware((Mark, {"name": "one"}))
    app = FastAPI()

    @app.get("/own")
    async def own():
        return "own"

    app.include_router(gateway.router)
    transport = httpx2.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
        answer, mine = await client.get("/api/x"), await client.get("/own")

    assert answer.headers.get_list("x-mark") == ["one"]
    assert mine.headers.get_list("x-mark") == []


async def test_a_foreign_middleware_can_change_where_a_request_points() -> None:
    echo = Echo()
    gateway = new_gateway(echo)
    gateway.add_middleware((Mark, {"name": "x", "path": "/api/other"}))
    async with client_of(gateway) as client:
        await client.get("/whatever")

    assert echo.last["path"] == "/api/other"


async def test_a_common_middleware_of_starlette_works_and_streams_are_its_own_business() -> None:
    gateway = new_gateway(Echo(b"x" * 5000, {"content-type": "text/plain"}))
    gateway.add_middleware(Middleware(GZipMiddleware, minimum_size=1000))
    async with client_of(gateway) as client:
        answer = await client.get("/api/x")

    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text == "x" * 5000


async def test_foreign_middleware_can_be_added_live_and_one_that_can_not_be_made_changes_nothing() -> None:
    gateway = new_gateway(Echo())
    async with client_of(gateway) as client:
        assert (await client.get("/api/x")).headers.get_list("x-mark") == []
        gateway.add_middleware((Mark, {"name": "one"}))
        with pytest.raises(TypeError):
            gateway.add_middleware((Mark, {"nme": "two"}))
        assert (await client.get("/api/x")).headers.get_list("x-mark") == ["one"]
