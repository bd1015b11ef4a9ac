"""The route table: which route a path finds, and that it agrees with a matcher that is slow and obvious."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.table import AMBIGUOUS, OUTSIDE, Entry, Refusal, RouteTable
from fastapi_mesh.exceptions import ConfigurationError


def table(*routes: str | tuple[str, list[str] | None]) -> RouteTable[str]:
    """Routes named by their path (and methods)."""
    entries = [(route, None) if isinstance(route, str) else route for route in routes]
    return RouteTable(Entry(path, methods, f"{path} {','.join(methods or ())}".strip()) for path, methods in entries)


@pytest.mark.spec("S-004", "A7")
@pytest.mark.parametrize(
    "path", [b"/api/v1/users", b"/api/v1/users/", b"/api/v1/users/1", b"/api/v1/users/1/x", b"/api/v1/users/a//b"]
)
def test_a_tail_matches_its_border_and_everything_below(path: bytes) -> None:
    assert table("/api/v1/users/*").find(path, "GET") == "/api/v1/users/*"


@pytest.mark.spec("S-004", "A7")
@pytest.mark.parametrize("path", [b"/api/v1/usersX", b"/api/v1/user", b"/api/v1", b"/", b"/x/api/v1/users/1"])
def test_a_tail_never_matches_beside_its_border(path: bytes) -> None:
    assert table("/api/v1/users/*").find(path, "GET") is None


@pytest.mark.spec("X-20")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/users/me", "/users/me"),
        (b"/users/7", "/users/{id}"),
        (b"/users/7/orders", "/users/{id}/orders"),
        (b"/users/7/orders/1", "/users/*"),
        (b"/users/me/orders", "/users/{id}/orders"),
        (b"/users/", "/users/*"),
        (b"/users", "/users/*"),
        (b"/elsewhere", "/*"),
        (b"/", "/*"),
    ],
)
def test_a_literal_goes_before_a_parameter_and_that_before_a_tail(path: bytes, expected: str) -> None:
    routes = table("/*", "/users/*", "/users/{id}", "/users/{id}/orders", "/users/me")

    assert routes.find(path, "GET") == expected


@pytest.mark.spec("X-20")
def test_a_parameter_is_exactly_one_segment_that_is_not_empty() -> None:
    routes = table("/a/{x}/b")

    assert routes.find(b"/a/1/b", "GET") == "/a/{x}/b"
    assert [routes.find(path, "GET") for path in (b"/a//b", b"/a/b", b"/a/1/2/b")] == [None, None, None]


@pytest.mark.spec("S-006", "X-20")
def test_the_most_specific_route_that_has_the_method_wins() -> None:
    routes = table(("/users/me", ["GET"]), ("/users/{id}", ["DELETE"]), ("/users/*", ["POST"]))

    assert routes.find(b"/users/me", "GET") == "/users/me GET"
    assert routes.find(b"/users/me", "DELETE") == "/users/{id} DELETE"
    assert routes.find(b"/users/me", "POST") == "/users/* POST"


@pytest.mark.spec("S-006", "X-20")
def test_a_method_that_no_route_of_the_path_has_is_405_with_all_methods_of_the_path() -> None:
    routes = table(("/users/me", ["GET"]), ("/users/{id}", ["DELETE"]), ("/users/*", ["POST"]))

    found = routes.find(b"/users/me", "PUT")

    assert isinstance(found, Refusal)
    assert (found.status, found.reason) == (405, "method-not-allowed")
    assert found.allow == ("DELETE", "GET", "HEAD", "OPTIONS", "POST")


@pytest.mark.spec("X-22")
def test_head_is_allowed_where_get_is() -> None:
    routes = table(("/a", ["GET"]), ("/b", ["POST"]))

    assert routes.find(b"/a", "HEAD") == "/a GET"
    assert isinstance(routes.find(b"/b", "HEAD"), Refusal)


def test_a_route_for_any_method_does_not_mean_trace_and_connect() -> None:
    routes = table("/a", ("/b", ["TRACE"]))

    found = routes.find(b"/a", "TRACE")

    assert isinstance(found, Refusal)
    assert "TRACE" not in found.allow
    assert "PATCH" in found.allow
    assert routes.find(b"/a", "PURGE") == "/a"
    assert routes.find(b"/b", "TRACE") == "/b TRACE"


def test_services_may_share_a_path_by_method() -> None:
    routes = table(("/a/*", ["GET"]), ("/a/*", ["POST"]))

    assert routes.find(b"/a/1", "POST") == "/a/* POST"


def test_two_routes_with_the_same_shape_and_method_are_refused_together() -> None:
    with pytest.raises(ConfigurationError) as refused:
        table(("/a/{x}", ["GET", "POST"]), ("/a/{y}", ["POST"]), "/b", "/b")

    assert len(refused.value.problems) == 2
    assert "POST" in refused.value.problems[0]


@pytest.mark.parametrize(
    "path", ["a/b", "/a/*/b", "/a*", "/a/x{id}", "/a?b", "/a/../b", "/a//b", "/a%2Fb", "/a;b", "/a\\b", "/{not ok}"]
)
def test_a_path_that_could_never_match_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError):
        table(path)


@pytest.mark.spec("X-20")
@pytest.mark.parametrize("path", [b"/caf%C3%A9/adm%69n", b"/caf%c3%a9/admin", b"/%63af%C3%A9/ad%6Din"])
def test_percent_encoding_is_no_way_around_a_route(path: bytes) -> None:
    assert table("/café/admin", "/café/*").find(path, "GET") == "/café/admin"


def test_an_encoded_slash_stays_inside_its_segment() -> None:
    routes = table("/files/*")

    assert routes.find(b"/files/a%2Fb", "GET") == "/files/*"
    assert routes.find(b"/files%2Fa", "GET") is None


@pytest.mark.parametrize(
    "path",
    [
        b"/public/admin%2Fsecret",
        b"/public/x/../admin/secret",
        b"/public/x/%2e%2E/admin/secret",
        b"/public/x/..%2Fadmin/secret",
        b"/public//admin/secret",
        b"/public/.//admin/secret",
        b"/public/admin;x=1/secret",
        b"/public/x/..;/admin/secret",
        b"/public/admin\\secret",
        b"/public/admin%5csecret",
        b"/public/x/..\\admin",
        b"/public/../private",
        b"/public/..",
        b"/public/a%00b",
    ],
)
def test_a_path_that_another_server_would_take_to_another_route_is_refused(path: bytes) -> None:
    routes = table("/public/*", "/public/admin/*", "/private")

    assert routes.find(path, "GET") is AMBIGUOUS


@pytest.mark.parametrize(
    "path",
    [
        b"/public/a/../b",
        b"/public/./b",
        b"/public/a%2Fb",
        b"/public/http://other/x",
        b"/public/a;b=1",
        b"/public/.well-known/x",
        b"/public/...",
        b"/public/100%",
        b"/public/a%252Fb",
    ],
)
def test_an_unusual_path_that_leads_to_one_route_only_is_fine(path: bytes) -> None:
    assert table("/public/*").find(path, "GET") == "/public/*"


def test_a_path_that_leaves_the_gateway_when_read_otherwise_is_refused() -> None:
    routes = table("/users/{id}")

    assert routes.find(b"/users/7%2Forders", "GET") is AMBIGUOUS
    assert routes.find(b"/users/..", "GET") is AMBIGUOUS


def test_a_long_path_with_many_readings_is_refused_quickly_but_a_long_plain_one_is_not() -> None:
    routes = table("/a/*")

    assert routes.find(b"/a" + b"/..;" * 2000, "GET") is AMBIGUOUS
    assert routes.find(b"/a/" + b"%C3%A9" * 2000, "GET") == "/a/*"


# Against a reference.

SEGMENTS = st.sampled_from(["a", "b", "{p}", "c"])
METHODS = st.one_of(st.none(), st.lists(st.sampled_from(["GET", "POST"]), min_size=1, max_size=2, unique=True))


@st.composite
def routes_of(draw: st.DrawFn) -> list[tuple[str, list[str] | None]]:
    found: dict[str, list[str] | None] = {}
    for _ in range(draw(st.integers(0, 12))):
        segments = draw(st.lists(SEGMENTS, max_size=4))
        tail = draw(st.booleans())
        path = "/" + "/".join([*segments, "*"] if tail else segments)
        found.setdefault(path, draw(METHODS))
    return list(found.items())


PATHS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"", b"%61"]), max_size=5).map(
    lambda segments: b"/" + b"/".join(segments)
)


def specificity(path: str, segments: list[bytes]) -> tuple[int, ...] | None:
    """How well a route fits, smaller is better, compared from the left; None if it does not fit."""
    parts = path[1:].split("/")
    rank: list[int] = []
    for position, part in enumerate(parts):
        if part == "*":
            return (*rank, 2)
        if position == len(segments):
            return None
        if part == "{p}":
            if not segments[position]:
                return None
            rank.append(1)
        elif part.encode() == unquote_to_bytes(segments[position]):
            rank.append(0)
        else:
            return None
    return tuple(rank) if len(parts) == len(segments) else None


def reference(routes: list[tuple[str, list[str] | None]], path: bytes, method: str) -> str | bool | None:
    """The route's path; False when only the method is missing; None when no route has the path."""
    fitting = [
        (rank, route, methods)
        for route, methods in routes
        if (rank := specificity(route, path[1:].split(b"/"))) is not None
    ]
    allowed = [(rank, route) for rank, route, methods in sorted(fitting) if methods is None or method in methods]
    if allowed:
        return allowed[0][1]
    return False if fitting else None


@pytest.mark.spec("X-20")
@given(routes_of(), PATHS, st.sampled_from(["GET", "POST", "PUT"]))
@settings(max_examples=300, deadline=None)
def test_the_table_agrees_with_an_obvious_matcher(
    routes: list[tuple[str, list[str] | None]], path: bytes, method: str
) -> None:
    found = RouteTable(Entry(route, methods, route) for route, methods in routes).find(path, method)

    expected = reference(routes, path, method)
    if found is AMBIGUOUS:  # empty segments only: the reference must see another route without them
        merged = b"/" + b"/".join([*(s for s in path[1:].split(b"/")[:-1] if s), path[1:].split(b"/")[-1]])
        assert merged != path
        assert reference(routes, merged, method) != expected
    elif isinstance(found, Refusal):
        assert expected is False
    else:
        assert found == expected


@given(st.binary(max_size=60), st.sampled_from(["GET", "POST"]))
@settings(max_examples=500, deadline=None)
def test_no_path_makes_the_table_raise(path: bytes, method: str) -> None:
    found = table("/*", "/a/{b}/c", ("/x/*", ["GET"])).find(b"/" + path, method)

    assert found in (AMBIGUOUS, OUTSIDE) or found in ("/*", "/a/{b}/c", "/x/* GET")
