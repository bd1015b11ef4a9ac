"""CORS: what a browser would make of the gateway's answers, beside Starlette's own middleware."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import product

import httpx2
import pytest
from fastapi import FastAPI, Response
from pydantic import ValidationError
from starlette.middleware.cors import CORSMiddleware as StarletteCORS

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.config.edge.cors import CorsConfig
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.anyio

SHOP = "https://shop.example.com"
SAFE_METHODS = {"GET", "HEAD", "POST"}
SAFE_HEADERS = {"accept", "accept-language", "content-language", "content-type"}


def new_service() -> FastAPI:
    service = FastAPI()

    @service.api_route("/api/items", methods=["GET", "POST", "PUT", "DELETE"])
    async def items(response: Response):
        response.headers["access-control-allow-origin"] = "https://of-the-service.example"
        response.headers["access-control-allow-credentials"] = "true"
        response.headers["vary"] = "Accept"
        return []

    return service


def new_gateway(cors: object = None, *, methods: list[str] | None = None, **route: object) -> APIGateway:
    gateway = APIGateway(services={"up": new_service()}, cors=cors)
    gateway.configure_routes([{"path": "/api/*", "service": "up", "methods": methods, **route}])
    return gateway


@asynccontextmanager
async def client_of(app: object):
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gateway") as client:
        try:
            yield client
        finally:
            if isinstance(app, APIGateway):
                await app.aclose()


def asks(origin: str = SHOP, method: str = "PUT", headers: str = "", **more: str) -> dict[str, str]:
    """The headers of a preflight."""
    asked = {"origin": origin, "access-control-request-method": method, **more}
    return {**asked, "access-control-request-headers": headers} if headers else asked


def listed(answer: httpx2.Response, name: str) -> set[str]:
    return {each.strip() for each in answer.headers.get(name, "").split(",") if each.strip()}


def readable(answer: httpx2.Response, origin: str, *, credentials: bool) -> bool:
    """The CORS check (Fetch standard section 4.10)."""
    allowed = answer.headers.get_list("access-control-allow-origin")
    if allowed == ["*"] and not credentials:
        return True
    if allowed != [origin]:
        return False
    return not credentials or answer.headers.get_list("access-control-allow-credentials") == ["true"]


def goes_on(answer: httpx2.Response, origin: str, method: str, headers: set[str], *, credentials: bool) -> bool:
    """What a browser decides after a preflight (Fetch standard section 4.9)."""
    if not (readable(answer, origin, credentials=credentials) and 200 <= answer.status_code <= 299):
        return False
    methods, names = listed(answer, "access-control-allow-methods"), listed(answer, "access-control-allow-headers")
    names = {name.lower() for name in names}
    every = not credentials
    if method not in SAFE_METHODS | methods and not (every and "*" in methods):
        return False
    return all(name in SAFE_HEADERS | names or (every and "*" in names and name != "authorization") for name in headers)


CONFIGURATIONS: list[dict[str, object]] = [
    {"allow_origins": [SHOP], "allow_methods": ["GET", "PUT"], "allow_headers": ["X-One"]},
    {"allow_origins": [SHOP], "allow_methods": ["*"], "allow_headers": ["*"], "allow_credentials": True},
    {"allow_origins": ["*"], "allow_methods": ["GET", "DELETE"], "allow_headers": ["*"]},
    {"allow_origin_regex": r"https://[a-z]+\.example\.com", "allow_methods": ["PUT"], "allow_credentials": True},
]
ORIGINS = [SHOP, "https://evil.example", "http://shop.example.com", "https://shop.example.com.evil.example", "null"]


@pytest.mark.spec("S-020", "X-32")
@pytest.mark.parametrize("settings", CONFIGURATIONS, ids=str)
async def test_a_browser_decides_as_it_would_with_starlettes_middleware(settings: dict[str, object]) -> None:
    reference = new_service()
    reference.add_middleware(StarletteCORS, **settings)  # type: ignore[arg-type]
    credentials = bool(settings.get("allow_credentials"))

    async with client_of(new_gateway(settings)) as ours, client_of(reference) as theirs:
        for origin, method, header in product(ORIGINS, ["GET", "PUT", "DELETE"], ["", "x-one", "authorization"]):
            said = asks(origin, method, header)
            answers = [await client.options("/api/items", headers=said) for client in (theirs, ours)]
            headers = {header} if header else set()
            wanted, got = (goes_on(each, origin, method, headers, credentials=credentials) for each in answers)
            assert got == wanted, f"{said}: {dict(answers[1].headers)}"


@pytest.mark.spec("S-020")
async def test_an_answer_is_marked_for_the_origin_and_what_the_service_said_is_replaced() -> None:
    settings = {"allow_origins": [SHOP], "allow_credentials": True, "expose_headers": ["X-Total"]}
    async with client_of(new_gateway(settings)) as client:
        own = await client.get("/api/items", headers={"origin": SHOP})
        other = await client.get("/api/items", headers={"origin": "https://evil.example"})
        no_page = await client.get("/api/items")

    assert own.headers.get_list("access-control-allow-origin") == [SHOP]
    assert own.headers.get_list("access-control-allow-credentials") == ["true"]
    assert own.headers["access-control-expose-headers"] == "x-total"
    assert [name for answer in (other, no_page) for name in answer.headers if name.startswith("access-control")] == []
    assert [listed(answer, "vary") for answer in (own, other, no_page)] == [{"Accept", "Origin"}] * 3
    assert (other.status_code, no_page.status_code) == (200, 200)


@pytest.mark.spec("S-020")
async def test_everybody_is_a_star_and_nothing_varies() -> None:
    async with client_of(new_gateway({"allow_origins": "*"})) as client:
        answer = await client.get("/api/items", headers={"origin": SHOP})

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert listed(answer, "vary") == {"Accept"}


@pytest.mark.spec("S-020")
async def test_a_preflight_is_answered_by_the_gateway_where_no_route_has_options() -> None:
    gateway = new_gateway({"allow_origins": [SHOP], "allow_headers": ["X-One"], "max_age": 60}, methods=["GET", "PUT"])
    async with client_of(gateway) as client:
        answer = await client.options("/api/items", headers=asks(headers="X-One, content-type"))
        ordinary = await client.options("/api/items", headers={"origin": SHOP})
        other_method = await client.options("/api/items", headers=asks(method="PATCH"))

    assert answer.status_code == 204
    assert answer.content == b""
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert listed(answer, "access-control-allow-methods") == {"GET", "PUT"}
    assert listed(answer, "access-control-allow-headers") == {"x-one"}
    assert answer.headers["access-control-max-age"] == "60"
    assert listed(answer, "vary") == {"Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"}
    assert (ordinary.status_code, ordinary.headers["allow"]) == (204, "GET, HEAD, OPTIONS, PUT")
    assert "access-control-allow-methods" not in other_method.headers


@pytest.mark.spec("S-020")
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (asks(origin="https://evil.example"), "cors-origin"),
        (asks(method="DELETE"), "cors-method"),
        (asks(headers="x-one, x-two"), "cors-headers"),
        (asks(headers="x one"), "cors-headers"),
        (asks(**{"access-control-request-private-network": "true"}), "cors-private-network"),
    ],
)
async def test_a_preflight_that_asks_for_too_much_is_told_the_rule(said: dict[str, str], reason: str) -> None:
    settings = {"allow_origins": [SHOP], "allow_methods": ["PUT"], "allow_headers": ["x-one"]}
    async with client_of(new_gateway(settings)) as client:
        answer = await client.options("/api/items", headers=said)

    assert (answer.status_code, answer.headers["x-mesh-reason"]) == (403, reason)
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert "Origin" in listed(answer, "vary")


async def test_a_private_network_is_open_where_that_is_said() -> None:
    settings = {"allow_origins": [SHOP], "allow_private_network": True}
    async with client_of(new_gateway(settings)) as client:
        said = asks(**{"access-control-request-private-network": "true"})
        answer = await client.options("/api/items", headers=said)

    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.spec("S-020")
async def test_a_page_can_read_refusals_also_those_before_any_route() -> None:
    gateway = new_gateway({"allow_origins": [SHOP]}, methods=["GET"], fault={"abort": {"status": 503, "percent": 100}})
    async with client_of(gateway) as client:
        refused = await client.get("/api/items", headers={"origin": SHOP})
        wrong_method = await client.put("/api/items", headers={"origin": SHOP})
        nowhere = await client.get("/nowhere", headers={"origin": SHOP})

    answers = [refused, wrong_method, nowhere]
    assert [answer.status_code for answer in answers] == [503, 405, 404]
    assert [answer.headers["access-control-allow-origin"] for answer in answers] == [SHOP] * 3


@pytest.mark.spec("S-020")
async def test_a_route_has_its_own_rules_or_none() -> None:
    gateway = APIGateway(services={"up": new_service()}, cors={"allow_origins": [SHOP]})
    partner = {"allow_origins": ["https://partner.example"]}
    gateway.configure_routes(
        [
            {"path": "/api/*", "service": "up"},
            {"path": "/api/items", "service": "up", "methods": ["GET"], "cors": partner},
            {"path": "/api/items", "service": "up", "methods": ["PUT"], "cors": False},
        ]
    )
    async with client_of(gateway) as client:
        answer = await client.get("/api/items", headers={"origin": "https://partner.example"})
        shop = await client.get("/api/items", headers={"origin": SHOP})
        off = await client.options("/api/items", headers=asks())

    assert answer.headers["access-control-allow-origin"] == "https://partner.example"
    assert "access-control-allow-origin" not in shop.headers
    assert off.status_code == 405, "an ordinary OPTIONS request to the service behind '/api/*', which has none"
    assert "access-control-allow-methods" not in off.headers


async def test_several_origins_in_one_request_are_no_origin() -> None:
    async with client_of(new_gateway({"allow_origins": [SHOP]})) as client:
        answer = await client.get("/api/items", headers=[("origin", SHOP), ("origin", SHOP)])

    assert "access-control-allow-origin" not in answer.headers


async def test_cors_can_be_changed_while_the_gateway_runs() -> None:
    gateway = new_gateway()
    async with client_of(gateway) as client:
        before = await client.get("/api/items", headers={"origin": SHOP})
        gateway.change_route("/api/*", cors={"allow_origins": [SHOP]})
        after = await client.get("/api/items", headers={"origin": SHOP})

    assert before.headers["access-control-allow-origin"] == "https://of-the-service.example", "off: the service's word"
    assert after.headers["access-control-allow-origin"] == SHOP


async def test_an_application_around_the_gateway_gets_no_preflight_of_its_routes() -> None:
    app = FastAPI()
    app.include_router(new_gateway({"allow_origins": [SHOP]}, methods=["PUT"]).router)

    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = await client.options("/api/items", headers=asks())
        elsewhere = await client.options("/other", headers=asks())

    assert (answer.status_code, elsewhere.status_code) == (204, 404)


# Settings.


@pytest.mark.spec("S-020")
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "allow_origins is empty"),
        ({"allow_origins": ["*"], "allow_credentials": True}, "with '*' every page could act"),
        ({"allow_origin_regex": ".*", "allow_credentials": True}, "matches any"),
        ({"allow_origin_regex": "https://[^/]+", "allow_credentials": True}, "matches any"),
        ({"allow_origins": [SHOP], "allow_credentials": True, "expose_headers": "*"}, "expose_headers '*'"),
        ({"allow_origins": ["https://*.example.com"]}, "allow_origin_regex"),
        ({"allow_origins": ["shop.example.com"]}, "needs a scheme"),
        ({"allow_origins": ["https://shop.example.com/"]}, "without a slash"),
        ({"allow_origins": ["https://shop.example.com/path"]}, "is not an origin"),
        ({"allow_origins": ["https://me@shop.example.com"]}, "is not an origin"),
        ({"allow_origins": ["https://shop.example.com:x"]}, "port is not valid"),
        ({"allow_origins": ["https://shop.example.com\r\n"]}, "control character"),
        ({"allow_origins": ["https://schöp.example"]}, "Punycode"),
        ({"allow_origin_regex": "("}, "not a regular expression"),
        ({"allow_origins": [SHOP], "allow_headers": ["x one"]}, "not a token"),
    ],
)
def test_settings_that_no_browser_could_follow_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match="validation error") as refused:
        CorsConfig.model_validate(settings)
    assert text in str(refused.value)

    with pytest.raises(ConfigurationError, match="cors"):
        new_gateway(settings)


def test_origins_are_written_as_browsers_write_them() -> None:
    config = CorsConfig(allow_origins=("HTTPS://Shop.Example.com:443", "http://localhost:3000", "http://[::1]:80"))

    assert config.allow_origins == (SHOP, "http://localhost:3000", "http://[::1]")


def test_cors_is_set_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_GATEWAY__CORS__ALLOW_ORIGINS", f"{SHOP},https://b.example")

    config = APIGateway().config.cors

    assert config is not None
    assert config.allow_origins == (SHOP, "https://b.example")
