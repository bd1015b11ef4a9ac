"""The layer: who is counted, what it costs, what clients are told, and what happens without a storage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from fastapi_mesh.api_gateway.engines import Engines
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.api_gateway.extensions import Extensions
from fastapi_mesh.api_gateway.problems import Problems
from fastapi_mesh.api_gateway.ratelimit.layer import RateLimit, RateLimitedError, RateLimitUnavailableError
from fastapi_mesh.api_gateway.ratelimit.limits import rate_limits
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.core.message import Response
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.exceptions import ConfigurationError, UpstreamConnectionError
from tests.api_gateway.ratelimit.ratelimit_support import Service, new_request

pytestmark = pytest.mark.anyio


class Meter:
    def __init__(self) -> None:
        self.limited: list[tuple[str, str]] = []
        self.failed: list[str] = []

    def rate_limited(self, path: str, limit: str) -> None:
        self.limited.append((path, limit))

    def rate_limit_failed(self, outcome: str) -> None:
        self.failed.append(outcome)


class Gateway:
    """The layers of some routes, as a gateway makes them."""

    def __init__(self, routes: Sequence[Mapping[str, object]] = (), **settings: object) -> None:
        given = routes or [{"path": "/users/*", "service": "users"}]
        self.extensions = Extensions()
        self.meter = Meter()
        self.service = Service()
        self.supervisor = Supervisor()
        self.engines = Engines(self.supervisor)
        self.load(given, **settings)

    def load(self, routes: Sequence[Mapping[str, object]], **settings: object) -> None:
        self.config = GatewayConfig.model_validate({"routes": list(routes), **settings})
        self.routes = [Route(each) for each in self.config.routes]
        limits = rate_limits(self.config, self.routes, self.extensions, self.engines, self.supervisor, self.meter)
        assert limits is not None
        self.engines.commit()
        self.layers = [limits.layer(self.service, route) for route in self.routes]
        self.ip_layers = [
            limits.ip_layer(layer or self.service, route) for layer, route in zip(self.layers, self.routes, strict=True)
        ]

    def request(self, route: int = 0, **options: object) -> Exchange:
        return new_request(route=self.routes[route], **options)  # type: ignore[arg-type]

    async def send(self, route: int = 0, **options: object) -> Response:
        layer = self.ip_layers[route] or self.layers[route]
        assert layer is not None
        return await layer(self.request(route, **options))

    async def passed(self, count: int, route: int = 0, **options: object) -> int:
        """How many of so many requests pass."""
        total = 0
        for _ in range(count):
            try:
                await self.send(route, **options)
            except RateLimitedError:
                continue
            total += 1
        return total

    async def aclose(self) -> None:
        await self.engines.aclose()
        await self.supervisor.aclose()


# Who is counted.


@pytest.mark.spec("B13")
async def test_a_principal_is_counted_wherever_it_comes_from_and_nobody_by_the_address() -> None:
    gateway = Gateway(rate_limit="3/hour")

    assert await gateway.passed(2, principal="alice", address="192.0.2.1") == 2
    assert await gateway.passed(5, principal="alice", address="192.0.2.2") == 1
    assert await gateway.passed(5, principal="bob", address="192.0.2.1") == 3
    assert await gateway.passed(5, address="192.0.2.1") == 3
    assert await gateway.passed(5, address="192.0.2.2") == 3


@pytest.mark.spec("B13")
async def test_an_api_key_that_nobody_has_checked_gives_nobody_a_count_of_its_own() -> None:
    gateway = Gateway(rate_limit="3/hour")

    results = [await gateway.passed(1, headers=[(b"x-api-key", b"%d" % number)]) for number in range(10)]

    assert sum(results) == 3


@pytest.mark.spec("B13")
async def test_the_address_is_the_one_that_trusted_proxies_name() -> None:
    gateway = Gateway(rate_limit="3/hour")
    forwarded = [(b"x-forwarded-for", b"203.0.113.9")]
    trusted = {"trusted": ["10.0.0.0/8"], "address": "10.0.0.1"}

    assert await gateway.passed(5, headers=forwarded, **trusted) == 3
    assert await gateway.passed(5, headers=[(b"x-forwarded-for", b"203.0.113.8")], **trusted) == 3
    assert await gateway.passed(1, headers=[(b"x-forwarded-for", b"8.8.8.8, 203.0.113.8")], **trusted) == 0
    assert await gateway.passed(5, headers=forwarded, address="198.51.100.1") == 3
    spoofed = [
        await gateway.passed(1, headers=[(b"x-forwarded-for", b"203.0.113.%d" % number)], address="198.51.100.1")
        for number in range(9)
    ]
    assert sum(spoofed) == 0


async def test_a_whole_network_of_ipv6_is_one_client() -> None:
    gateway = Gateway(rate_limit="3/hour")
    wide = Gateway(rate_limit="3/hour", rate_limiting={"ipv6_prefix": 128})

    assert sum([await gateway.passed(1, address=f"2001:db8:0:1::{number:x}") for number in range(20)]) == 3
    assert await gateway.passed(5, address="2001:db8:0:2::1") == 3
    assert sum([await wide.passed(1, address=f"2001:db8:0:1::{number:x}") for number in range(20)]) == 20
    assert await gateway.passed(5, address="::ffff:192.0.2.7") == 3, "an IPv4 address in IPv6's clothes"
    assert await gateway.passed(5, address="192.0.2.7") == 0
    assert await gateway.passed(5, address="192.0.2.8") == 3


async def test_clients_without_an_address_are_one_client() -> None:
    gateway = Gateway(rate_limit="3/hour")

    assert await gateway.passed(5, address="") == 3


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("client", [3, 3, 3, 3]),
        ("ip", [3, 0, 3, 0]),
        ("principal", [3, 3, 3, 0]),
        ("route", [3, 0, 0, 0]),
        ("global", [3, 0, 0, 0]),
    ],
)
async def test_the_key_says_who_shares_a_count(key: str, expected: list[int]) -> None:
    gateway = Gateway([{"path": "/users/*", "service": "users", "rate_limit": {"limit": "3/hour", "key": key}}])

    results = [
        await gateway.passed(4, address="192.0.2.1", principal="alice"),
        await gateway.passed(4, address="192.0.2.1"),
        await gateway.passed(4, address="192.0.2.2", principal="bob"),
        await gateway.passed(4, address="192.0.2.2"),
    ]

    assert results == expected


async def test_a_header_can_be_the_key_and_without_it_the_client_is() -> None:
    limit = {"limit": "3/hour", "key": "header:X-Tenant"}
    gateway = Gateway([{"path": "/users/*", "service": "users", "rate_limit": limit}])

    assert await gateway.passed(5, headers=[(b"x-tenant", b"acme")], address="192.0.2.1") == 3
    assert await gateway.passed(5, headers=[(b"x-tenant", b"acme")], address="192.0.2.2") == 0
    assert await gateway.passed(5, headers=[(b"x-tenant", b"\xff\x00")]) == 3
    assert await gateway.passed(5, headers=[(b"x-tenant", b"acme"), (b"x-tenant", b"b")]) == 3
    assert await gateway.passed(5, address="192.0.2.1") == 3
    assert await gateway.passed(5, address="192.0.2.2") == 3


async def test_a_function_can_be_the_key_also_an_asynchronous_one() -> None:
    async def plan(request: Exchange) -> str | None:
        await asyncio.sleep(0)
        return None if request.principal is None else request.principal.subject[0]

    gateway = Gateway(rate_limit="100/hour")
    gateway.extensions = Extensions(
        rate_limit_keys={"plan": plan, "path": lambda request: request.path.decode(), "wrong": lambda request: 7}  # type: ignore[dict-item,return-value]
    )
    gateway.load(
        [
            {"path": f"/{name}", "service": "users", "rate_limit": {"limit": "3/hour", "key": f"function:{name}"}}
            for name in ("plan", "path", "wrong")
        ]
    )

    assert await gateway.passed(5, 0, principal="alice") == 3
    assert await gateway.passed(5, 0, principal="anna") == 0
    assert await gateway.passed(5, 0, principal="bob") == 3
    assert await gateway.passed(5, 0) == 3
    assert await gateway.passed(5, 1, address="192.0.2.1") == 3
    assert await gateway.passed(5, 1, address="192.0.2.2") == 0
    with pytest.raises(TypeError, match="'wrong' returned int"):
        await gateway.send(2)


def test_a_function_that_nobody_gave_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Gateway(
            [{"path": "/a", "service": "a", "rate_limit": {"limit": "3/hour", "key": "function:plan"}}],
            rate_limit={"limit": "3/hour", "cost": "function:size"},
        )

    given = "is a function that nobody gave; configure_rate_limits"
    assert refused.value.problems == (
        f"rate_limit.cost: 'function:size' {given}(costs={{'size': ...}}) does",
        f"routes[0].rate_limit.key: 'function:plan' {given}(keys={{'plan': ...}}) does",
    )


def test_a_limit_before_authentication_can_not_count_principals() -> None:
    with pytest.raises(ConfigurationError, match=r"ip_rate_limit\.key: 'principal' is not known yet"):
        Gateway(ip_rate_limit={"limit": "3/hour", "key": "principal"})


async def test_no_key_shows_who_it_is_about() -> None:
    limit = {"limit": "3/hour", "key": "header:X-API-Key"}
    gateway = Gateway([{"path": "/users/*", "service": "users", "rate_limit": limit}], rate_limit="5/hour")
    seen: list[str] = []
    engine = gateway.layers[0]._engine  # type: ignore[union-attr]
    charge = engine.charge

    async def spy(charges):  # type: ignore[no-untyped-def]
        seen.extend(key for key, _, _ in charges)
        return await charge(charges)

    class Spy:
        memory = engine.memory

        def __init__(self) -> None:
            self.charge = spy

    gateway.layers[0]._engine = Spy()  # type: ignore[union-attr,assignment]

    await gateway.send(headers=[(b"x-api-key", b"s3cret")], principal="alice@example.com", address="192.0.2.77")

    assert len(seen) == 2
    for secret in ("s3cret", "alice", "192.0.2.77"):
        assert not any(secret in key for key in seen)
    assert all(key.startswith("fastapi-mesh:{") for key in seen)


# Which limits apply.


@pytest.mark.spec("S-008", "B13")
async def test_the_limit_of_a_route_and_the_gateway_s_both_apply() -> None:
    gateway = Gateway(
        [
            {"path": "/a/*", "service": "a", "rate_limit": "3/hour"},
            {"path": "/b/*", "service": "b", "rate_limit": "5/hour"},
            {"path": "/c/*", "service": "c"},
            {"path": "/d/*", "service": "d", "default_rate_limit": False, "rate_limit": "1/hour"},
        ],
        rate_limit="7/hour",
    )

    assert await gateway.passed(10, 0) == 3
    assert await gateway.passed(10, 1) == 4, "of which the gateway's limit leaves four"
    assert await gateway.passed(10, 2) == 0
    assert await gateway.passed(10, 3) == 1


@pytest.mark.spec("B44")
async def test_without_a_limit_there_is_no_layer() -> None:
    gateway = Gateway([{"path": "/a", "service": "a", "rate_limit": "3/hour"}, {"path": "/b", "service": "b"}])

    assert isinstance(gateway.layers[0], RateLimit)
    assert gateway.layers[1] is None
    assert gateway.ip_layers == [None, None]
    config = GatewayConfig()
    assert rate_limits(config, [], Extensions(), gateway.engines, gateway.supervisor, None) is None


async def test_routes_are_counted_apart_unless_their_limits_have_one_name() -> None:
    gateway = Gateway(
        [
            {"path": "/a", "service": "a", "methods": ["GET"], "rate_limit": "3/hour"},
            {"path": "/a", "service": "a", "methods": ["POST"], "rate_limit": "3/hour"},
            {"path": "/b", "service": "a", "rate_limit": {"limit": "3/hour", "name": "search"}},
            {"path": "/c", "service": "a", "rate_limit": {"limit": "3/hour", "name": "search"}},
            {"path": "/d", "service": "a", "rate_limit": {"limit": "3/hour", "key": "global"}},
            {"path": "/e", "service": "a", "rate_limit": {"limit": "3/hour", "key": "global"}},
        ]
    )

    assert [await gateway.passed(2, route) for route in range(6)] == [2, 2, 2, 1, 2, 1]


@pytest.mark.parametrize(
    "shared", [{"key": "global"}, {"key": "route"}, {"name": "plan"}, {"name": "plan", "key": "ip"}], ids=str
)
async def test_a_request_counts_once_where_two_of_its_limits_have_one_count(shared: dict[str, str]) -> None:
    route = {"path": "/a", "service": "a", "rate_limit": {"limit": "6/hour", **shared}}
    gateway = Gateway([route], rate_limit={"limit": "100/hour", **shared})
    stricter = Gateway([route], rate_limit={"limit": "4/hour", **shared})
    mixed = Gateway([route], rate_limit={"limit": "100/hour", **shared, "key": "client"})

    assert await gateway.passed(10) == 6
    assert await stricter.passed(10) == 4
    assert await mixed.passed(10) == 6


async def test_limits_of_one_name_all_apply() -> None:
    gateway = Gateway(
        [{"path": "/a", "service": "a", "rate_limit": {"limit": "5/minute", "name": "plan"}}],
        rate_limit={"limit": "3/hour;9/minute", "name": "plan"},
    )

    headers = dict((await gateway.send()).headers)

    assert headers[b"ratelimit-policy"] == b'"plan";q=5;w=60, "plan-3600";q=3;w=3600, "plan-60";q=9;w=60'
    assert await gateway.passed(10) == 2


@pytest.mark.parametrize("shared", [{"key": "global"}, {"name": "plan"}], ids=str)
async def test_a_limit_by_address_shares_no_count_with_those_behind_it(shared: dict[str, str]) -> None:
    gateway = Gateway(rate_limit={"limit": "6/hour", **shared}, ip_rate_limit={"limit": "100/hour", **shared})

    assert await gateway.passed(10) == 6


async def test_routes_that_differ_in_what_they_match_are_counted_apart() -> None:
    place = {"path": "/a", "service": "a", "rate_limit": "3/hour"}
    gateway = Gateway([{**place, "host": "one.example"}, {**place, "host": "two.example"}])

    assert await gateway.passed(5, 0) == 3
    assert await gateway.passed(5, 1) == 3


async def test_a_limit_by_address_counts_before_anybody_is_known() -> None:
    gateway = Gateway(ip_rate_limit="3/hour")

    assert gateway.layers == [None]
    assert await gateway.passed(2, principal="alice") == 2
    assert await gateway.passed(5, principal="bob") == 1
    assert gateway.meter.limited == [("/users/*", "ip")] * 4


# What it costs.


@pytest.mark.spec("X-25")
async def test_a_route_has_a_cost_and_a_function_can_say_it() -> None:
    gateway = Gateway(rate_limit="100/hour")
    gateway.extensions = Extensions(
        rate_limit_costs={
            "size": lambda request: int(dict(request.scope["headers"]).get(b"x-size", b"1")),
            "wrong": lambda request: "many",  # type: ignore[dict-item,return-value]
        }
    )
    gateway.load(
        [
            {"path": "/a", "service": "a", "rate_limit": {"limit": "10/hour", "cost": 4}},
            {"path": "/b", "service": "a", "rate_limit": {"limit": "10/hour", "cost": "function:size"}},
            {"path": "/c", "service": "a", "rate_limit": {"limit": "10/hour", "cost": "function:wrong"}},
        ]
    )

    assert await gateway.passed(10, 0) == 2
    assert await gateway.passed(1, 1, headers=[(b"x-size", b"8")]) == 1
    assert await gateway.passed(1, 1, headers=[(b"x-size", b"3")]) == 0
    assert await gateway.passed(5, 1, headers=[(b"x-size", b"0")]) == 5
    assert await gateway.passed(5, 1) == 2
    with pytest.raises(ValueError, match="returned -1"):
        await gateway.send(1, headers=[(b"x-size", b"-1")])
    with pytest.raises(TypeError, match="returned str"):
        await gateway.send(2)
    with pytest.raises(RateLimitedError, match="more than the limit of 10 per hour ever allows") as never:
        await gateway.send(1, headers=[(b"x-size", b"11")])
    assert never.value.retry_after is None


async def test_a_refused_request_costs_nothing_in_its_other_limits() -> None:
    gateway = Gateway(
        [{"path": "/a", "service": "a", "rate_limit": "1/hour"}, {"path": "/b", "service": "b"}], rate_limit="3/hour"
    )

    assert await gateway.passed(50, 0) == 1
    assert await gateway.passed(50, 1) == 2
    assert gateway.service.calls == 3


async def test_what_was_counted_stays_counted_when_the_service_fails_or_the_client_goes() -> None:
    gateway = Gateway(rate_limit="3/hour")

    async def fails(request: Exchange) -> Response:
        raise UpstreamConnectionError("refused")

    async def hangs(request: Exchange) -> Response:
        await asyncio.sleep(60)
        raise AssertionError

    layer = gateway.layers[0]
    assert layer is not None
    layer.inner = fails
    with pytest.raises(UpstreamConnectionError):
        await gateway.send()
    layer.inner = hangs
    task = asyncio.ensure_future(gateway.send())  # noqa: TID251
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    layer.inner = gateway.service

    assert await gateway.passed(5) == 1


# What clients are told.


@pytest.mark.spec("X-25", "B13")
async def test_every_answer_tells_the_tightest_limit_and_all_policies() -> None:
    gateway = Gateway(
        [{"path": "/a", "service": "a", "rate_limit": "10/minute;100/hour"}],
        rate_limit={"limit": "50/day", "name": "plan"},
    )

    headers = dict((await gateway.send()).headers)

    assert headers[b"ratelimit-policy"] == b'"route-60";q=10;w=60, "route-3600";q=100;w=3600, "plan";q=50;w=86400'
    name, remaining, seconds = headers[b"ratelimit"].split(b";")
    assert (name, remaining) == (b'"route-60"', b"r=9")
    assert 0 < int(seconds.removeprefix(b"t=")) <= 61 + 60
    assert headers[b"x-ratelimit-limit"] == b"10"
    assert headers[b"x-ratelimit-remaining"] == b"9"
    assert headers[b"x-ratelimit-reset"] == seconds.removeprefix(b"t=")
    assert b"retry-after" not in headers


@pytest.mark.spec("X-25", "B13")
async def test_a_refusal_is_a_429_that_says_when_to_come_back() -> None:
    gateway = Gateway(rate_limit={"limit": "2/minute", "strategy": "fixed"})
    layer = gateway.layers[0]
    assert layer is not None
    await gateway.passed(2)

    response = await Problems(layer)(gateway.request())

    headers = dict(response.headers)
    body = (await response.read_all()).decode()
    assert response.status == 429
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-mesh-reason"] == b"rate-limited"
    assert headers[b"ratelimit"].startswith(b'"default";r=0;t=')
    assert headers[b"ratelimit-policy"] == b'"default";q=2;w=60'
    assert headers[b"x-ratelimit-remaining"] == b"0"
    assert headers[b"retry-after"] == headers[b"x-ratelimit-reset"] in (b"60", b"59")
    assert "The limit of 2 per minute is used up; try again in" in body
    assert gateway.meter.limited == [("/users/*", "default")]


async def test_retry_after_is_never_before_the_reset_that_is_told() -> None:
    gateway = Gateway(rate_limit={"limit": "10/minute", "cost": 4})
    await gateway.passed(2)

    with pytest.raises(RateLimitedError) as refused:
        await gateway.send()

    told = dict(refused.value.headers)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= int(told[b"x-ratelimit-reset"]) - 1
    assert told[b"x-ratelimit-remaining"] == b"2"


async def test_a_service_s_own_limits_give_way_to_the_gateway_s() -> None:
    gateway = Gateway(rate_limit="10/minute")
    own = [(b"x-ratelimit-limit", b"7"), (b"ratelimit", b'"x";r=1'), (b"x-other", b"1")]
    gateway.service = Service(lambda: Response.of(200, list(own), b""))
    layer = gateway.layers[0]
    assert layer is not None
    layer.inner = gateway.service

    headers = (await gateway.send()).headers

    assert [value for name, value in headers if name == b"x-ratelimit-limit"] == [b"10"]
    assert len([name for name, _ in headers if name == b"ratelimit"]) == 1
    assert (b"x-other", b"1") in headers


async def test_the_headers_can_be_left_out() -> None:
    gateway = Gateway(rate_limit="1/minute", rate_limiting={"headers": False})

    response = await gateway.send()

    assert response.headers == [(b"content-type", b"text/plain")]
    with pytest.raises(RateLimitedError) as refused:
        await gateway.send()
    assert refused.value.headers == ()
    assert refused.value.retry_after


# Changed settings.


async def test_counts_outlive_a_reload_also_one_that_changes_a_limit() -> None:
    routes = [
        {"path": "/a", "service": "a", "rate_limit": "3/hour"},
        {"path": "/b", "service": "b", "rate_limit": "3/hour"},
    ]
    gateway = Gateway(routes)
    assert await gateway.passed(3, 0) == await gateway.passed(3, 1) == 3

    gateway.load(
        [{**routes[0], "rate_limit": "5/hour"}, routes[1]],
        rate_limiting={"strategy": "sliding", "on_failure": "closed"},
    )

    assert await gateway.passed(9, 0) == 2
    assert await gateway.passed(9, 1) == 0
    gateway.load(routes, rate_limiting={"max_keys": 200})
    assert await gateway.passed(9, 1) == 3, "another storage"
    await gateway.aclose()


async def test_another_strategy_counts_anew() -> None:
    gateway = Gateway(rate_limit={"limit": "3/hour", "strategy": "fixed"})
    await gateway.passed(3)

    gateway.load([{"path": "/users/*", "service": "users"}], rate_limit={"limit": "3/hour", "strategy": "moving"})

    assert await gateway.passed(5) == 3


def test_a_moving_window_of_all_limits_is_checked_against_each() -> None:
    with pytest.raises(ConfigurationError, match=r"routes\[0\]\.rate_limit: '20000/hour': a moving window keeps"):
        Gateway([{"path": "/a", "service": "a", "rate_limit": "20000/hour"}], rate_limiting={"strategy": "moving"})


# Without a storage.

NOWHERE = "redis://127.0.0.1:1"
"""A port on which nobody listens."""


async def sent(gateway: Gateway, count: int) -> list[str]:
    results = []
    for _ in range(count):
        try:
            response = await gateway.send()
        except RateLimitedError:
            results.append("limited")
        except RateLimitUnavailableError as error:
            results.append(f"unavailable {error.status} {error.retry_after}")
        else:
            results.append("counted" if response.header(b"ratelimit") else "passed")
    return results


@pytest.mark.spec("X-25", "B13")
@pytest.mark.parametrize(
    ("on_failure", "expected"),
    [
        ("open", ["passed"] * 5),
        ("closed", ["unavailable 503 1"] * 5),
        ("local", ["counted"] * 3 + ["limited"] * 2),
    ],
)
async def test_a_storage_that_is_down_lets_pass_refuses_or_is_replaced(on_failure: str, expected: list[str]) -> None:
    pytest.importorskip("redis")
    gateway = Gateway(rate_limit="3/hour", rate_limiting={"storage": NOWHERE, "on_failure": on_failure})

    assert await sent(gateway, 5) == expected
    assert gateway.meter.failed == [on_failure] * 5
    await gateway.aclose()


async def test_a_limit_has_its_own_rule_for_failures() -> None:
    pytest.importorskip("redis")
    gateway = Gateway(
        [{"path": "/users/*", "service": "users", "rate_limit": {"limit": "2/hour", "on_failure": "local"}}],
        rate_limit="1/hour",
        rate_limiting={"storage": NOWHERE},
    )

    assert await sent(gateway, 4) == ["counted", "counted", "limited", "limited"]
    await gateway.aclose()
