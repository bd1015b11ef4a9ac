"""Routes that ask for a host, headers or query parameters: which one a request finds, and at what cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.choice import Conditions
from fastapi_mesh.api_gateway.routes import new_table
from fastapi_mesh.api_gateway.table import Entry, Refusal, RouteTable
from fastapi_mesh.config.compat_gateway import routes_from_description
from fastapi_mesh.config.edge.routing import ValueMatch
from fastapi_mesh.exceptions import ConfigurationError

Given = dict[str, object]


def finder(*routes: Given) -> Callable[..., object]:
    """Looks up in a table of routes, and gives the name of the one found (its refusal, or None)."""
    described = [
        {"path": "/api/*", "service": "up", "name": str(number), **route} for number, route in enumerate(routes)
    ]
    table = new_table(routes_from_description(described))

    def find(
        path: bytes = b"/api/x",
        method: str = "GET",
        *,
        host: bytes = b"any.example",
        headers: list[tuple[bytes, bytes]] | None = None,
        query: bytes = b"",
        authority: bytes | None = None,
    ) -> object:
        scope = {"headers": [(b"host", host), *(headers or [])], "query_string": query}
        found = table.find(path, method, scope, authority)
        return found if found is None or isinstance(found, Refusal) else found.config.name

    return find


# Hosts.


@pytest.mark.spec("X-20")
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"shop.example.com", "exact"),
        (b"SHOP.Example.COM", "exact"),
        (b"shop.example.com:8443", "exact"),
        (b"shop.example.com.", "exact"),
        (b"a.shop.example.com", "longer"),
        (b"a.b.shop.example.com:80", "longer"),
        (b"blog.example.com", "shorter"),
        (b"a.b.example.com", "shorter"),
        (b"example.com", "none"),
        (b".example.com", "none"),
        (b"badexample.com", "none"),
        (b"[::1]:80", "address"),
        (b"", "none"),
        (b"a." * 130 + b"example.com", "none"),
    ],
)
def test_an_exact_host_goes_before_a_pattern_and_a_longer_one_before_a_shorter(host: bytes, expected: str) -> None:
    find = finder(
        {"name": "none"},
        {"name": "shorter", "host": "*.example.com"},
        {"name": "longer", "host": "*.shop.example.com"},
        {"name": "exact", "host": ["Shop.example.com", "other.example"]},
        {"name": "address", "host": "[::1]"},
    )

    assert find(host=host) == expected


@pytest.mark.spec("X-20")
def test_the_host_of_an_absolute_form_target_is_the_one_that_counts() -> None:
    find = finder({"name": "a", "host": "a.example"}, {"name": "b", "host": "b.example"})

    assert find(host=b"a.example", authority=b"B.example:80") == "b"


def test_a_host_that_no_route_has_is_no_path_of_the_gateway() -> None:
    find = finder({"host": "a.example"}, {"host": "*.b.example"})

    assert find(host=b"c.example") is None
    assert find(host=b"b.example", method="OPTIONS") is None


def test_a_less_specific_path_is_tried_when_the_host_is_another() -> None:
    find = finder({"path": "/api/users/*", "host": "a.example"}, {"path": "/api/*", "name": "rest"})

    assert find(b"/api/users/1", host=b"b.example") == "rest"


# Headers and query.


@pytest.mark.spec("X-20")
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "none"),
        ([(b"x-version", b"2")], "exact"),
        ([(b"x-version", b"2 ")], "present"),
        ([(b"x-version", b"12")], "regex"),
        ([(b"x-version", b"1"), (b"x-version", b"2")], "exact"),
        ([(b"x-version", b"")], "present"),
        ([(b"X-Version", b"2")], "exact"),
        ([(b"x-version", b"2"), (b"x-beta", b"yes")], "two"),
    ],
)
def test_a_header_is_compared_as_a_value_as_a_pattern_or_by_its_presence(
    headers: list[tuple[bytes, bytes]], expected: str
) -> None:
    find = finder(
        {"name": "none"},
        {"name": "exact", "headers": {"X-Version": "2"}},
        {"name": "regex", "headers": {"x-version": {"regex": "1[0-9]"}}},
        {"name": "present", "headers": {"x-version": True}},
        {"name": "two", "headers": {"x-version": "2", "x-beta": {"present": True}}},
    )

    assert find(headers=headers) == expected


@pytest.mark.spec("X-20")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", "none"),
        (b"v=2", "exact"),
        (b"a=1&v=2", "exact"),
        (b"v=3&v=2", "exact"),
        (b"%76=%32", "exact"),
        (b"v=3", "present"),
        (b"v", "present"),
        (b"v=", "present"),
        (b"w=2", "none"),
        (b"q=caf%C3%A9+x", "text"),
        (b"&&=&%&", "none"),
    ],
)
def test_a_query_parameter_is_compared_decoded(query: bytes, expected: str) -> None:
    find = finder(
        {"name": "none"},
        {"name": "exact", "query": {"v": "2"}},
        {"name": "present", "query": {"v": True}},
        {"name": "text", "query": {"q": "café x"}},
    )

    assert find(query=query) == expected


def test_a_condition_may_be_that_a_header_is_absent() -> None:
    find = finder({"name": "anonymous", "headers": {"authorization": False}}, {"name": "known"})

    assert find() == "anonymous"
    assert find(headers=[(b"authorization", b"Bearer x")]) == "known"


# Order.


@pytest.mark.spec("X-20")
def test_priority_goes_before_host_and_conditions_but_not_before_the_path() -> None:
    find = finder(
        {"name": "exact host", "host": "a.example", "headers": {"x": "1"}},
        {"name": "urgent", "priority": 1},
        {"path": "/*", "name": "elsewhere", "priority": 9},
        {"name": "late", "priority": -1, "host": "a.example", "query": {"q": "1"}},
    )

    assert find(host=b"a.example", headers=[(b"x", b"1")]) == "urgent"
    assert find(b"/x", host=b"a.example") == "elsewhere"


@pytest.mark.spec("X-20")
def test_a_host_goes_before_more_conditions_and_those_before_the_method() -> None:
    find = finder(
        {"name": "get", "methods": ["GET"]},
        {"name": "headers", "headers": {"x": "1"}, "query": {"q": "1"}},
        {"name": "host", "host": "a.example"},
    )
    both = {"headers": [(b"x", b"1")], "query": b"q=1"}

    assert find(host=b"a.example", **both) == "host"
    assert find(**both) == "headers"
    assert find() == "get"
    assert find(method="POST", **both) == "headers"


def test_equal_ranks_are_asked_in_the_order_they_were_given() -> None:
    find = finder({"name": "one", "headers": {"x": "1"}}, {"name": "two", "headers": {"y": "1"}})

    assert find(headers=[(b"y", b"1"), (b"x", b"1")]) == "one"
    assert find(headers=[(b"y", b"1")]) == "two"


@pytest.mark.spec("S-006", "X-20")
def test_a_refused_method_names_those_of_the_routes_whose_other_conditions_hold() -> None:
    find = finder(
        {"methods": ["GET"], "host": "a.example"},
        {"methods": ["PUT"], "host": "b.example"},
        {"methods": ["DELETE"], "headers": {"x": "1"}, "host": "a.example"},
        {"path": "/*", "methods": ["POST"], "host": "a.example"},
    )

    plain = find(method="PATCH", host=b"a.example")
    with_header = find(method="PATCH", host=b"a.example", headers=[(b"x", b"1")])

    assert isinstance(plain, Refusal)
    assert isinstance(with_header, Refusal)
    assert (plain.status, plain.allow) == (405, ("GET", "HEAD", "OPTIONS", "POST"))
    assert with_header.allow == ("DELETE", "GET", "HEAD", "OPTIONS", "POST")
    assert find(method="PATCH", host=b"c.example") is None


@pytest.mark.spec("S-006", "X-22")
def test_options_is_answered_with_allow_unless_a_route_has_it() -> None:
    find = finder(
        {"path": "/get", "methods": ["GET"]},
        {"path": "/any", "name": "any"},
        {"path": "/own", "methods": ["OPTIONS"], "name": "own"},
    )

    allowed = find(b"/get", "OPTIONS")

    assert isinstance(allowed, Refusal)
    assert (allowed.status, allowed.allow) == (204, ("GET", "HEAD", "OPTIONS"))
    assert find(b"/any", "OPTIONS") == "any"
    assert find(b"/own", "OPTIONS") == "own"
    assert find(b"/other", "OPTIONS") is None


def test_head_follows_the_get_route_that_fits_and_trace_is_nobodys() -> None:
    find = finder(
        {"name": "a", "methods": ["GET"], "host": "a.example"},
        {"name": "any"},
        {"name": "head", "methods": ["HEAD"], "host": "b.example"},
    )

    assert find(method="HEAD", host=b"a.example") == "a"
    assert find(method="HEAD", host=b"b.example") == "head"
    assert find(method="HEAD") == "any"
    refusal = find(method="TRACE", host=b"a.example")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 405


# What can't be told apart.


@pytest.mark.spec("X-20")
@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ({}, {}, True),
        ({"path": "/api/{a}"}, {"path": "/api/{b}"}, True),
        ({"host": "a.example"}, {"host": "A.Example."}, True),
        ({"host": ["a.example", "b.example"]}, {"host": "b.example"}, True),
        ({"headers": {"x": "1"}}, {"headers": {"X": {"exact": "1"}}}, True),
        ({"methods": ["GET", "PUT"]}, {"methods": ["PUT"]}, True),
        ({"query": {"a": True, "b": "1"}}, {"query": {"b": "1", "a": True}}, True),
        ({}, {"priority": 1}, False),
        ({}, {"host": "a.example"}, False),
        ({"host": "*.example"}, {"host": "a.example"}, False),
        ({}, {"headers": {"x": "1"}}, False),
        ({"headers": {"x": "1"}}, {"headers": {"x": "2"}}, False),
        ({"headers": {"x": "1"}}, {"query": {"x": "1"}}, False),
        ({"methods": ["GET"]}, {}, False),
        ({"path": "/api"}, {"path": "/api/*"}, False),
    ],
)
def test_two_routes_that_can_not_be_told_apart_are_refused_by_name(one: Given, other: Given, clash: bool) -> None:
    routes = [{"path": "/api/*", "service": "a", "name": "first", **one}, {"path": "/api/*", "service": "b", **other}]

    if not clash:
        assert len(new_table(routes_from_description(routes))) == 2
        return
    with pytest.raises(ConfigurationError) as refused:
        routes_from_description(routes)
    (problem,) = refused.value.problems
    assert problem.startswith("routes[1]: ")
    assert "routes[0] ('first')" in problem


def test_the_table_refuses_by_itself_what_can_not_be_told_apart() -> None:
    entries = [Entry("/a/%61", None, 1, Conditions(["a"])), Entry("/a/a", None, 2, Conditions(["a"]))]

    with pytest.raises(ConfigurationError, match="same path, conditions"):
        RouteTable(entries)


# Several ways to read a path.


@pytest.mark.spec("X-20")
def test_conditions_are_no_way_around_an_ambiguous_path() -> None:
    find = finder(
        {"path": "/public/*", "name": "public"},
        {"path": "/public/admin/*", "name": "admin", "headers": {"x-admin": True}},
    )

    plain = find(b"/public/x/..%2Fadmin/y")
    asked = find(b"/public/x/..%2Fadmin/y", headers=[(b"x-admin", b"1")])

    assert plain == "public"
    assert isinstance(asked, Refusal)
    assert asked.status == 400


@pytest.mark.parametrize(
    "path", [b"/../x", b"/a/../../x", b"/a/..%2F..%2Fx", b"/a//../../x", b"/..;/x", b"/a/..\\..\\x"]
)
def test_a_path_that_leads_above_its_root_is_refused(path: bytes) -> None:
    found = RouteTable([Entry("/*", None, "all")]).find(path, "GET")

    assert isinstance(found, Refusal)
    assert (found.status, found.reason) == (400, "ambiguous-path")


# A table over another one.


@pytest.mark.spec("S-203")
def test_a_fallback_is_asked_only_where_no_route_has_the_path() -> None:
    below = RouteTable([Entry("/api/users/*", None, "dynamic"), Entry("/api/orders/*", None, "orders")])
    table = RouteTable([Entry("/api/users/*", ["GET"], "explicit"), Entry("/api/users/admin/*", None, "admin")])
    both = table.over(below)

    assert both.find(b"/api/users/1", "GET") == "explicit"
    assert isinstance(both.find(b"/api/users/1", "DELETE"), Refusal)
    assert both.find(b"/api/orders/1", "DELETE") == "orders"
    assert both.find(b"/other", "GET") is None
    assert table.find(b"/api/orders/1", "GET") is None
    assert len(both) == 4
    assert both.over(None).routes == table.routes


def test_an_ambiguous_path_is_read_in_both_tables() -> None:
    below = RouteTable([Entry("/api/users/*", None, "dynamic")])
    table = RouteTable([Entry("/api/users/admin/*", None, "explicit")]).over(below)

    for path in (b"/api/users//admin/x", b"/api/users/x/..%2fadmin/x", b"/api/users/x;/../admin/x"):
        found = table.find(path, "GET")
        assert isinstance(found, Refusal)
        assert found.status == 400


# Against a reference.

HOSTS = ["a.x", "b.x", "a.b.x", "y"]
PATTERNS = ["a.x", "*.x", "*.b.x", "y"]
route_of = st.fixed_dictionaries(
    {},
    optional={
        "host": st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2, unique=True),
        "headers": st.dictionaries(st.sampled_from(["h", "i"]), st.sampled_from(["1", "2", True, False]), min_size=1),
        "query": st.dictionaries(st.sampled_from(["q"]), st.sampled_from(["1", True]), min_size=1),
        "methods": st.lists(st.sampled_from(["GET", "POST"]), min_size=1, unique=True),
        "priority": st.integers(-1, 1),
    },
)


def fits(match: object, value: str | None) -> bool:
    return (value is not None) is match if isinstance(match, bool) else value == match


def rank_of(route: Given, host: str) -> tuple[object, ...] | None:
    """How a route is ordered for a host, smaller first; None where it is not for this host."""
    patterns = route.get("host")
    ranks: list[tuple[int, int]] = []
    for pattern in patterns if isinstance(patterns, list) else []:
        if pattern == host:
            ranks.append((0, 0))
        elif pattern.startswith("*.") and host.endswith(pattern[1:]) and len(host) > len(pattern[1:]):
            ranks.append((1, -len(pattern)))
    if patterns is None:
        ranks.append((2, 0))
    if not ranks:
        return None
    count = sum(len(route.get(each, ())) for each in ("headers", "query"))  # type: ignore[arg-type,misc]  # dicts
    return (-int(str(route.get("priority", 0))), min(ranks), -count, "methods" not in route)


@pytest.mark.spec("X-20")
@given(
    st.lists(route_of, max_size=6),
    st.sampled_from(HOSTS),
    st.dictionaries(st.sampled_from(["h", "i"]), st.sampled_from(["1", "2"])),
    st.sampled_from([None, "1", "2"]),
    st.sampled_from(["GET", "POST"]),
)
@settings(max_examples=120, deadline=None)
def test_the_choice_agrees_with_trying_every_route(
    routes: list[Given], host: str, headers: dict[str, str], q: str | None, method: str
) -> None:
    try:
        find = finder(*routes)
    except ConfigurationError:
        return
    candidates = []
    for index, route in enumerate(routes):
        rank = rank_of(route, host)
        own = route.get("headers", {}), route.get("query", {})
        assert isinstance(own[0], dict)
        assert isinstance(own[1], dict)
        holds = all(fits(match, headers.get(name)) for name, match in own[0].items())
        if rank is not None and holds and all(fits(match, q) for match in own[1].values()):
            candidates.append((rank, index, route))
    having = [
        each for each in sorted(candidates, key=lambda each: each[:2]) if method in each[2].get("methods", [method])
    ]  # type: ignore[operator]  # a list

    found = find(
        method=method,
        host=host.encode(),
        headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        query=b"" if q is None else b"q=" + q.encode(),
    )

    if having:
        assert found == str(having[0][1])
    else:
        assert isinstance(found, Refusal) if candidates else found is None


# Cost.


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python `work` runs: a measure that doesn't depend on the machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def plain(number: int) -> Entry[int]:
    return Entry(f"/api/service-{number}/{{id}}/*", None, number)


def by_host(number: int) -> Entry[int]:
    return Entry("/api/*", None, number, Conditions([f"shop-{number}.example.com"]))


def by_pattern(number: int) -> Entry[int]:
    return Entry("/api/*", None, number, Conditions([f"*.shop-{number}.example.com"]))


def by_host_and_header(number: int) -> Entry[int]:
    conditions = Conditions([f"shop-{number // 2}.example.com"], {"x": ValueMatch(exact="1")} if number % 2 else None)
    return Entry("/api/*", None, number, conditions)


@pytest.mark.spec("X-20")
@pytest.mark.parametrize("entry", [plain, by_host, by_pattern, by_host_and_header])
def test_ten_thousand_routes_cost_the_same_work_as_ten(entry: Callable[[int], Entry[int]]) -> None:
    paths = [b"/api/service-3/7/x", b"/api/x", b"/nowhere"]
    hosts = [b"shop-3.example.com", b"a.shop-3.example.com", b"other"]
    costs = []
    for size in (10, 10_000):
        table = RouteTable(entry(number) for number in range(size))
        cost = 0
        for path in paths:
            for host in hosts:
                for method in ("GET", "TRACE"):
                    scope = {"headers": [(b"host", host), (b"x", b"2")], "query_string": b""}
                    cost += lines_run(lambda: table.find(path, method, scope))  # noqa: B023  # run at once
        costs.append(cost)

    assert costs[0] == costs[1]
