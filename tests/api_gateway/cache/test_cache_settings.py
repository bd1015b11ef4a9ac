"""Settings of the cache: what is on, what overrides what, and what is refused."""

from __future__ import annotations

import pytest

from fastapi_mesh.api_gateway.cache.wiring import policy_of
from fastapi_mesh.config.edge.cache import CacheConfig, CachePolicy
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.load import load_gateway_config
from tests.config.config_support import problems_of


def policy(route: dict[str, object], **gateway: object) -> CachePolicy | None:
    """How a route is cached."""
    config = GatewayConfig.model_validate({"routes": [{"path": "/a/*", "service": "a", **route}], **gateway})
    return policy_of(config, config.routes[0])


@pytest.mark.spec("S-009", "B12")
def test_a_route_is_cached_where_it_or_the_gateway_says_so() -> None:
    assert policy({}) is None
    assert policy({"cache_ttl": 300}) == CachePolicy(ttl=300.0, credentials=CacheConfig().credentials)
    assert (found := policy({"cache": True})) is not None
    assert found.ttl == 0.0
    assert (found := policy({}, cache_ttl=60)) is not None
    assert found.ttl == 60.0
    assert (found := policy({"cache_ttl": 5}, cache_ttl=60)) is not None
    assert found.ttl == 5.0
    assert (found := policy({"cache": {}, "cache_ttl": 0}, cache_ttl=60)) is not None
    assert found.ttl == 0.0


@pytest.mark.parametrize("off", [{"cache_ttl": 0}, {"cache_ttl": False}, {"cache_ttl": "off"}, {"cache": False}])
def test_a_route_can_be_left_out(off: dict[str, object]) -> None:
    assert policy(off, cache_ttl=60) is None


def test_a_route_overrides_the_gateway_s_rules_one_by_one() -> None:
    found = policy({"cache": {"grace": 5}, "cache_ttl": 9}, cache={"sharing": "rfc", "grace": 60})

    assert found is not None
    assert (found.grace, found.sharing, found.ttl) == (5.0, "rfc", 9.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cache_ttl": -1}, "cache_ttl: -1 is too small: it must be at least 0"),
        ({"cache_ttl": True}, "cache_ttl: true"),
        (
            {"cache": {"backend": "memcached://x"}},
            "cache.backend: 'memcached://x' is not a store: 'memory', or a Redis",
        ),
        (
            {"cache": {"backend": "redis+cluster://a:1,b:1"}},
            "cache.backend: 'redis+cluster://a:1,b:1': a cache needs one",
        ),
        ({"cache": {"heuristic": 2}}, "cache.heuristic"),
        ({"cache": {"sharing": "all"}}, "cache.sharing"),
        ({"cache": {"max_byte": 1}}, "cache.max_byte"),
        (
            {"routes": [{"path": "/a", "service": "a", "cache": {"force": True}}]},
            "routes[0].cache: force needs a cache_ttl",
        ),
    ],
)
def test_what_is_refused_is_named(settings: dict[str, object], problem: str) -> None:
    problems = problems_of(GatewayConfig, **settings)

    assert len(problems) == 1
    assert problems[0].startswith(problem), problems


def test_all_of_it_can_be_said_by_variables() -> None:
    config = load_gateway_config(
        {},
        env={
            "MESH_GATEWAY__CACHE_TTL": "30",
            "MESH_GATEWAY__CACHE__BACKEND": "redis://user:s3cret@127.0.0.1:6379/1",
            "MESH_GATEWAY__CACHE__MAX_BYTES": "1000",
            "MESH_GATEWAY__CACHE__FORCE": "true",
        },
    )

    assert (config.cache_ttl, config.cache.max_bytes, config.cache.force) == (30.0, 1000, True)
    assert config.cache.backend == "redis://user:s3cret@127.0.0.1:6379/1"
    assert "s3cret" not in repr(config)
