"""Which of several registrations count, and how an instance is stored."""

from __future__ import annotations

import json

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.discovery.rows import Owner, Row, decode, encode, lists_of
from fastapi_mesh.exceptions import ConfigurationError

OLD, NEW = Owner("old", 1.0), Owner("new", 2.0)


def row(owner, service="users", id="1", port=8000, born=1, base_path=b""):
    return Row(Instance(service, id, "127.0.0.1", port, base_path=base_path), owner, born, lease=15.0, expires=100.0)


def ids(rows):
    return {service: [each.id for each in instances] for service, instances in lists_of(rows).items()}


def test_the_newer_of_two_owners_on_a_port_counts_whatever_its_service_is():
    assert ids([row(NEW, "orders", "o"), row(OLD, "users", "u")]) == {"orders": ["o"]}


def test_one_owner_may_offer_several_services_on_one_port():
    assert ids([row(NEW, "users", "u"), row(NEW, "orders", "o", born=2)]) == {"users": ["u"], "orders": ["o"]}


def test_workers_that_all_offer_several_services_on_one_port_leave_one_of_each():
    rows = [
        row(OLD, "users", "u-old", born=1),
        row(NEW, "users", "u-new", born=1),
        row(NEW, "orders", "o-new", born=2),
        row(OLD, "orders", "o-old", born=2),
    ]
    assert ids(rows) == {"users": ["u-new"], "orders": ["o-new"]}
    assert ids([rows[0], rows[3]]) == {"users": ["u-old"], "orders": ["o-old"]}


def test_different_base_paths_behind_one_proxy_are_different_places():
    rows = [row(OLD, "users", "u", base_path=b"/users"), row(NEW, "orders", "o", base_path=b"/orders")]
    assert ids(rows) == {"users": ["u"], "orders": ["o"]}


def test_the_newest_of_two_registrations_with_one_id_counts():
    rows = [row(OLD, port=8001), row(NEW, port=8002)]
    assert [each.port for each in lists_of(rows)["users"]] == [8002]
    assert [each.port for each in lists_of(reversed(rows))["users"]] == [8002]


def test_an_instance_is_stored_whole_and_later_members_are_ignored():
    full = Instance(
        "users", "1", "::1", 8000, "https", "degraded", 0.5, ("a", "ü"), {"k": "ü"}, "1.0", "eu", b"/x%20y", "/health"
    )
    document = json.dumps({**json.loads(encode(full)), "colour": "blue"})

    assert decode("users", "1", "::1", 8000, document) == full


@pytest.mark.parametrize(
    "document",
    ["", "[]", "null", "{}", '{"scheme": "http"}', encode(row(OLD).instance).replace("1.0", '"heavy"'), "\x00"],
)
def test_an_unreadable_document_is_a_configuration_error(document):
    with pytest.raises(ConfigurationError, match="row '1' of 'users' is unreadable"):
        decode("users", "1", "127.0.0.1", 8000, document)
