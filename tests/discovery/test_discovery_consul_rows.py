"""How instances stand in Consul, and how those of others are read."""

from __future__ import annotations

import json
import logging
from types import MappingProxyType

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.consul_rows import OWN, Reader, registration
from fastapi_mesh.discovery.rows import Owner
from fastapi_mesh.exceptions import ConfigurationError
from tests.discovery.consul_script import entry

pytestmark = pytest.mark.spec("S-102", "S-110", "S-113")

OWNER = Owner("abc", 1000.0)


def body(instance: Instance, *, namespace: str = "shop", owner: Owner = OWNER, born: int = 1) -> dict:
    return registration(instance, owner, born, namespace=namespace, lease=15.0, deregister_after=60.0)


def answered(registered: dict, *statuses: str, lease: str = "passing") -> dict:
    """What Consul answers for something registered."""
    checks = [{"CheckID": registered["Check"]["CheckID"], "Status": lease}]
    checks += [{"CheckID": f"other-{number}", "Status": status} for number, status in enumerate(statuses)]
    service = {**registered, "Service": registered["Name"]}
    return {"Node": {"Node": "n1", "Address": "10.9.9.9", "Meta": {}}, "Service": service, "Checks": checks}


def read(*entries: object, service: str = "web", namespace: str = "shop") -> dict[str, Instance]:
    return Reader(service, namespace, "zone").read(list(entries))


def test_what_we_register_is_what_any_program_expects_of_a_service_in_consul():
    made = body(
        Instance(
            "web",
            "web-1",
            "10.0.0.1",
            8001,
            weight=3.0,
            tags=("api",),
            metadata=MappingProxyType({"team": "core"}),
            version="1.2.3",
            zone="eu-1",
        )
    )

    assert (made["Name"], made["Address"], made["Port"]) == ("web", "10.0.0.1", 8001)
    assert made["Tags"] == ["api", "mesh-namespace=shop"]
    assert made["Weights"] == {"Passing": 3, "Warning": 1}
    assert {key: value for key, value in made["Meta"].items() if not key.startswith(OWN)} == {
        "team": "core",
        "version": "1.2.3",
        "zone": "eu-1",
        "scheme": "http",
    }
    assert made["Check"]["TTL"] == "15000ms"
    assert made["Check"]["DeregisterCriticalServiceAfter"] == "60s"
    assert made["Check"]["Status"] == "passing"


@pytest.mark.parametrize(
    "instance",
    [
        Instance("web", "web-1", "10.0.0.1", 8001),
        Instance("web", "w", "::1", 1, scheme="h2", weight=0.25, zone="z", version="2", base_path=b"/a%20b"),
        Instance("web", "ü/ 1", "a.example", 65535, health="unhealthy", health_check="/h", tags=("größe", "")),
        # Keys that Consul does not take, that we write ourselves, or that are too long.
        Instance(
            "web",
            "w",
            "10.0.0.1",
            1,
            version="1",
            metadata=MappingProxyType(
                {
                    "": "e",
                    "ü": "1",
                    "version": "other",
                    "consul-x": "1",
                    OWN: "mine",
                    "long": "x" * 2000,
                    "k" * 200: "v",
                }
            ),
        ),
        Instance("web", "w", "10.0.0.1", 1, metadata=MappingProxyType({f"k{n}": str(n) for n in range(100)})),
    ],
    ids=["plain", "full", "unicode", "odd metadata", "much metadata"],
)
def test_what_we_register_is_read_as_it_was(instance):
    made = body(instance)

    assert read(answered(made)) == {instance.id: instance}
    assert len(made["Meta"]) <= 64
    assert all(len(value.encode()) <= 512 for value in made["Meta"].values())


def test_metadata_that_consul_can_not_keep_is_refused_with_its_limits():
    huge = Instance("web", "w", "10.0.0.1", 1, metadata=MappingProxyType({"a": "x" * 40_000}))

    with pytest.raises(ConfigurationError, match="64 pairs of 512 bytes"):
        body(huge)


def test_ids_are_unique_for_each_registration_and_plain_text():
    one = body(Instance("web", "ü 1/2", "10.0.0.1", 1))["ID"]
    again = body(Instance("web", "ü 1/2", "10.0.0.1", 1), born=2)["ID"]
    other_service = body(Instance("orders", "ü 1/2", "10.0.0.1", 1))["ID"]

    assert len({one, again, other_service}) == 3
    assert one == "web:__1_2-abc-1"


def test_an_instance_whose_lease_is_over_is_left_out_and_one_that_is_unwell_is_not():
    made = body(Instance("web", "web-1", "10.0.0.1", 8001))

    assert read(answered(made, lease="critical")) == {}
    assert read(answered(made, "warning"))["web-1"].health == "degraded"
    assert read(answered(made, "passing", "critical"))["web-1"].health == "unhealthy"


def test_instances_of_other_namespaces_of_the_mesh_are_not_seen():
    made = body(Instance("web", "web-1", "10.0.0.1", 8001), namespace="shop")

    assert read(answered(made), namespace="other") == {}


def test_of_two_processes_on_one_port_the_later_one_counts():
    crashed = body(Instance("web", "before", "10.0.0.1", 8001), owner=Owner("zzz", 1000.0))
    later = body(Instance("web", "after", "10.0.0.1", 8001), owner=Owner("aaa", 2000.0))

    assert list(read(answered(later), answered(crashed))) == ["after"]


@pytest.mark.parametrize(
    ("checks", "health"),
    [
        ((), "healthy"),
        (("passing", "passing"), "healthy"),
        (("passing", "warning"), "degraded"),
        (("critical", "passing"), "unhealthy"),
    ],
)
def test_the_checks_of_an_instance_of_others_say_its_health(checks, health):
    assert read(entry(checks=checks))["web-1"].health == health


def test_an_instance_of_others_has_what_consul_says_of_it():
    found = read(
        entry(
            Tags=["v1"],
            Meta={"version": "2", "zone": "a", "scheme": "https", "base_path": "/x", "health_check": "/up"},
            Weights={"Passing": 5, "Warning": 2},
        )
    )["web-1"]

    assert found == Instance(
        "web",
        "web-1",
        "10.0.0.1",
        8001,
        scheme="https",
        weight=5.0,
        tags=("v1",),
        metadata=found.metadata,
        version="2",
        zone="a",
        base_path=b"/x",
        health_check="/up",
    )
    assert found.metadata["version"] == "2"


def test_without_an_address_of_its_own_it_is_at_its_node_s_and_the_node_may_say_the_zone():
    found = read(entry(address="", node={"Address": "fd00::7", "Meta": {"zone": "b"}}))["web-1"]

    assert (found.address, found.zone, found.authority) == ("fd00::7", "b", b"[fd00::7]:8001")


def test_weights_follow_the_checks_and_none_means_no_requests():
    weights = {"Passing": 4, "Warning": 0}

    assert (read(entry(Weights=weights))["web-1"].weight, read(entry(Weights=weights))["web-1"].health) == (
        4.0,
        "healthy",
    )
    assert read(entry(Weights=weights, checks=("warning",)))["web-1"].health == "unhealthy"


def test_ids_that_two_nodes_have_are_told_apart():
    found = read(entry(node={"Node": "a"}), entry(node={"Node": "b"}, address="10.0.0.2"), entry("web-2", port=9))

    assert sorted(found) == ["a/web-1", "b/web-1", "web-2"]


def test_what_can_not_be_called_is_left_out_and_told_once(caplog):
    reader = Reader("web", "shop", "zone")
    broken = entry("ours", Meta={OWN: "{"})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert list(reader.read([entry("no-port", port=0), broken, entry()])) == ["web-1"]

    assert [line.split(" of ")[0] for line in caplog.messages] == ["n1/no-port", "n1/ours"]


@pytest.mark.parametrize("answer", [{}, None, "x", [1], [{}], [{"Service": {}, "Node": {}, "Checks": []}]], ids=repr)
def test_what_is_no_list_of_consul_s_is_refused_as_a_whole(answer):
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Reader("web", "shop", "zone").read(answer)


@pytest.mark.parametrize(
    "own",
    [
        "[" * 5000,
        "[]",
        "{}",
        json.dumps({"ns": "shop"}),
        json.dumps({"ns": "shop", "id": "x", "of": "a", "at": "soon", "n": 1, "added": [], "scheme": "http"}),
        json.dumps({"ns": "shop", "id": "x", "of": "a", "at": 1, "n": 1, "added": 5, "scheme": "http"}),
        json.dumps({"ns": "shop", "id": "x", "of": "a", "at": 1, "n": 1, "added": [], "scheme": "http", "more": [1]}),
        json.dumps({"ns": "shop", "id": "x", "of": "a", "at": 1, "n": 1, "added": [], "scheme": "gopher"}),
        '{"ns": "shop", "id": "x", "of": "a", "at": 1, "n": 1, "added": [], "scheme": "http", "weight": Infinity}',
    ],
    ids=range(9),
)
def test_nonsense_in_what_is_ours_costs_that_instance_and_no_other(own):
    parts = [own[start : start + 512] for start in range(0, len(own), 512)]
    meta = {f"{OWN}-{number}" if number else OWN: part for number, part in enumerate(parts)}

    assert list(read(entry("bad", Meta=meta), entry("good"))) == ["good"]


def test_values_of_other_types_are_texts():
    own = {"ns": "shop", "id": "x", "of": "a", "at": 1, "n": 1, "added": [], "scheme": "http"}
    own |= {"zone": {"a": 1}, "version": 5, "health_check": [1], "more": {"k": {"v": 1}}}

    found = read(entry("x", Meta={OWN: json.dumps(own)}))["x"]

    assert {type(found.zone), type(found.version), type(found.health_check), type(found.metadata["k"])} == {str}


def test_a_later_version_may_add_to_what_is_ours():
    made = body(Instance("web", "web-1", "10.0.0.1", 8001))
    made["Meta"][OWN] = json.dumps({**json.loads(made["Meta"][OWN]), "new": [1]})

    assert list(read(answered(made))) == ["web-1"]
