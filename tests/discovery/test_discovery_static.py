"""Fixed instances: `ServiceMesh(services={...})`."""

from __future__ import annotations

import re

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.static import StaticDiscovery
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.anyio


async def app(scope, receive, send):
    """An ASGI application."""


async def other_app(scope, receive, send):
    """Another ASGI application."""


@pytest.mark.spec("B25")
async def test_a_service_is_one_url_several_an_application_or_instances():
    static = StaticDiscovery(
        {
            "external-api": "https://api.example.com/v2",
            "user-service": ("http://user-service-1:8000", "http://user-service-2:8000"),
            "local": app,
            "own": [Instance("whatever", "blue", "10.0.0.1", 80, weight=2.0)],
            "nobody": [],
        }
    )

    assert static.services() == ("external-api", "local", "own", "user-service")
    assert [(each.service, each.id) for each in static.instances()] == [
        ("external-api", "external-api-1"),
        ("local", "local-1"),
        ("own", "blue"),
        ("user-service", "user-service-1"),
        ("user-service", "user-service-2"),
    ]
    assert static.instances()[1].app is app


async def test_all_problems_are_told_at_once_each_with_its_key():
    with pytest.raises(ConfigurationError) as refusal:
        StaticDiscovery(
            {
                "users": ["http://a", "gopher://b", "http://a/"],
                "orders": "http://c:0",
                "": "http://d",
                "own": [Instance("own", "1", "10.0.0.1", 1), Instance("own", "1", "0.0.0.0", 2)],
                "twice": [Instance("twice", "1", "10.0.0.1", 1), Instance("twice", "1", "10.0.0.2", 2)],
            }
        )

    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "services.users[1]",
        "services.users[2]",
        "services.orders",
        "services",
        "services.own[1]",
        "services.twice[1]",
    ]
    assert "is the same address as services.users[0]" in refusal.value.problems[1]
    assert "the id '1' is taken" in refusal.value.problems[-1]


async def test_adding_goes_on_counting_and_leaves_what_is_there_alone():
    static = StaticDiscovery({"users": "http://a"})
    lists = static.watch("users")
    assert [each.id for each in await anext(lists)] == ["users-1"]

    added = static.add("users", ["http://b", "http://a", app])

    assert [(each.id, each.address) for each in added] == [("users-2", "b"), ("users-3", "users")]
    assert [each.id for each in await anext(lists)] == ["users-1", "users-2", "users-3"]
    assert static.add("users", "http://b") == ()
    await lists.aclose()


async def test_a_number_that_an_instance_has_taken_is_left_out():
    static = StaticDiscovery({"users": [Instance("users", "users-2", "10.0.0.1", 1), "http://a", "http://b"]})

    assert [each.id for each in static.instances()] == ["users-2", "users-3", "users-4"]


async def test_an_application_without_its_scheme_is_refused():
    with pytest.raises(ConfigurationError, match="the scheme 'asgi' needs an application object"):
        StaticDiscovery({"users": Instance("users", "1", "10.0.0.1", 1, app=app)})


async def test_a_refused_change_changes_nothing():
    static = StaticDiscovery({"users": "http://a"})

    with pytest.raises(ConfigurationError, match=re.escape("services.users[1]")):
        static.replace("users", ["http://b", "nonsense://c"])

    assert [each.address for each in static.instances()] == ["a"]


async def test_replacing_an_application_by_another_is_a_change():
    static = StaticDiscovery({"users": app})
    lists = static.watch("users")
    assert (await anext(lists))[0].app is app

    static.replace("users", other_app)

    assert (await anext(lists))[0].app is other_app
    await lists.aclose()


async def test_replacing_by_nothing_removes_the_service():
    static = StaticDiscovery({"users": "http://a"})

    static.replace("users", ())

    assert static.services() == ()
    assert static.instances() == ()
