"""Where a request points: raw paths, prefixes, absolute-form targets."""

from __future__ import annotations

import pytest

from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.api_gateway.target import Place, locate, strip, target_of
from fastapi_mesh.config.gateway import GatewayConfig, RouteConfig
from fastapi_mesh.exceptions import InvalidRequestError


def seen(place: Place | None) -> tuple[bytes, bytes, bytes | None] | None:
    return None if place is None else (place.path, place.prefix, place.authority)


@pytest.mark.spec("X-22")
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/a%2Fb/../c", (b"/a%2Fb/../c", b"", None)),
        (b"http://up.example:81/p%2Fq", (b"/p%2Fq", b"", b"up.example:81")),
        (b"HTTP://up.example", (b"/", b"", b"up.example")),
        (b"https://up/", (b"/", b"", b"up")),
        (b"*", None),
        (b"host:80", None),
        (b"", None),
        (b"ftp://up/x", None),
    ],
)
def test_every_form_of_a_target_becomes_a_path_or_nothing(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw})) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/gw/users", (b"/users", b"/gw", None)),
        (b"/gw", (b"/", b"/gw", None)),
        (b"/gw/", (b"/", b"/gw", None)),
        (b"/gwx/users", None),
        (b"/users", None),
        (b"http://h/gw/users", (b"/users", b"/gw", b"h")),
    ],
)
def test_the_gateways_prefix_is_taken_off_at_a_border(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw}, b"/gw")) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/mnt/users", (b"/users", b"/mnt", None)),
        (b"/mnt", (b"/", b"/mnt", None)),
        (b"/users", (b"/users", b"", None)),  # FastAPI(root_path=...) leaves the path alone
        (b"/mntx", (b"/mntx", b"", None)),
        (b"/mnthttp://h/users", (b"/users", b"/mnt", b"h")),  # what uvicorn makes of an absolute form on h11
    ],
)
def test_a_mount_is_taken_off_at_a_border(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw, "root_path": "/mnt"})) == expected


def test_without_raw_path_the_path_is_encoded() -> None:
    assert seen(locate({"path": "/caf\xe9 x/a@b"})) == (b"/caf%C3%A9%20x/a@b", b"", None)


@pytest.mark.parametrize(
    ("path", "count", "expected"),
    [
        (b"/api/users/7", 2, (b"/api/users", b"/7")),
        (b"/api/users/", 2, (b"/api/users", b"/")),
        (b"/api/users", 2, (b"/api/users", b"/")),
        (b"/api%2Fx/users/7", 1, (b"/api%2Fx", b"/users/7")),
        (b"/x", 0, (b"", b"/x")),
    ],
)
def test_segments_are_stripped_from_the_raw_path(path: bytes, count: int, expected: tuple[bytes, bytes]) -> None:
    assert strip(path, count) == expected


@pytest.mark.spec("X-22")
def test_a_query_goes_on_as_it_is() -> None:
    assert target_of(b"/a", b"q=%20x&r=a+b&s=?") == b"/a?q=%20x&r=a+b&s=?"


@pytest.mark.spec("X-22")
@pytest.mark.parametrize(("path", "query"), [(b"/a b", b""), (b"/a", b"x#y"), (b"/a", b"\xc3"), (b"/a\r\n", b"")])
def test_a_byte_that_no_target_has_is_refused(path: bytes, query: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        target_of(path, query)


# What a route makes of a path.


def new_route(path: str, **settings: object) -> Route:
    return Route(RouteConfig.model_validate({"path": path, "service": "up", **settings}))


@pytest.mark.spec("X-21", "B1")
@pytest.mark.parametrize(
    ("path", "template", "asked", "sent"),
    [
        ("/users/{id}", "/v2/users/{id}", b"/users/7", b"/v2/users/7"),
        ("/users/{id}", "/v2/users/{id}", b"/users/a%20b%3Fx=1%23", b"/v2/users/a%20b%3Fx=1%23"),
        ("/users/{id}", "/v2/users/{id}", b"/users/100%25", b"/v2/users/100%25"),
        ("/users/{id}", "/v2/users/{id}", b"/users/a;v=1", b"/v2/users/a;v=1"),
        ("/{a}/{b}", "/{b}-{a}.json", b"/x/y", b"/y-x.json"),
        ("/api/*", "/*", b"/api/users/7", b"/users/7"),
        ("/api/*", "/*", b"/api", b"/"),
        ("/api/*", "/*", b"/api/", b"/"),
        ("/api/*", "/v2/*", b"/api", b"/v2"),
        ("/api/*", "/v2/*", b"/api/", b"/v2/"),
        ("/api/*", "/v2/{rest}", b"/api/a%2Fb//c;d=e/%2e%2e", b"/v2/a%2Fb//c;d=e/%2e%2e"),
        ("/t/{tenant}/*", "/{tenant}/api/*", b"/t/acme/x/y", b"/acme/api/x/y"),
        ("/*", "/v2/*", b"/a", b"/v2/a"),
        ("/*", "/v2/*", b"/", b"/v2/"),
        ("/a", "/caf\u00e9/%C3%A9", b"/a", b"/caf%C3%A9/%C3%A9"),
        ("/a/*", "/fixed", b"/a/b/c", b"/fixed"),
    ],
)
def test_a_rewrite_puts_the_bytes_that_came_into_its_template(
    path: str, template: str, asked: bytes, sent: bytes
) -> None:
    route = new_route(path, rewrite=template)

    assert route.target(asked, b"") == sent
    assert route.target(asked, b"q=%20&r=/") == sent + b"?q=%20&r=/"


@pytest.mark.spec("X-21")
@pytest.mark.parametrize(
    ("path", "settings", "asked"),
    [
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/a%2Fb"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/a%5cb"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/a\\b"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/.."),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/%2e%2E"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/..;a"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users/%2e"),
        ("/users/{id}", {"rewrite": "/v2/{id}/x"}, b"/users"),
        ("/users/{id}", {"rewrite": "/fixed"}, b"/users/a b"),
        ("/users/{id}", {"rewrite": "/fixed"}, b"/users/a\r\nx: y"),
        ("/*", {"rewrite": "/public/*"}, b"/../secret"),
        ("/api/*", {"rewrite": "/public/*"}, b"/api/x/../../api/secret"),
        ("/api/*", {"rewrite": "/public/*"}, b"/api/x%2F..%2F..%2Fsecret"),
        ("/api/*", {"rewrite": "/public/*"}, b"/api/..;/secret"),
        ("/api/*", {"strip_prefix": True}, b"/api/x/../../api/secret"),
        ("/api/*", {"strip_prefix": True}, b"/api/%2e%2e/api/secret"),
    ],
)
def test_what_could_lead_out_of_a_template_is_refused(path: str, settings: dict[str, object], asked: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        new_route(path, **settings).target(asked, b"")


@pytest.mark.spec("X-21", "B1")
def test_a_prefix_is_kept_unless_it_is_to_be_stripped() -> None:
    assert new_route("/api/*").target(b"/api/users/7", b"") == b"/api/users/7"
    assert new_route("/api/*", strip_prefix=True).target(b"/api/users/7", b"a=b") == b"/users/7?a=b"
    assert new_route("/api/*", strip_prefix=True).target(b"/api/a/../b", b"") == b"/a/../b"


def test_the_parameters_of_a_path_are_its_raw_segments() -> None:
    assert new_route("/users/{id}/x/{part}/*").values(b"/users/a%2Fb/x/7/y") == {"id": b"a%2Fb", "part": b"7"}


# What a gateway's own defaults do to a route.


@pytest.mark.spec("X-21", "S-010")
def test_a_route_has_the_gateways_settings_where_it_has_none() -> None:
    gateway = GatewayConfig(max_body=10, require_https=True, https_port=8443, preserve_host=False)

    plain = Route(RouteConfig(path="/a", service="up"), gateway)
    own = Route(
        RouteConfig(path="/a", service="up", max_body=None, require_https=False, preserve_host="shop.example"), gateway
    )

    assert (plain.max_body, plain.https_port, plain.host) == (10, 8443, False)
    assert (own.max_body, own.https_port, own.host) == (None, None, b"shop.example")
