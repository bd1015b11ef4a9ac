"""Policies changed in code and settings that are replaced while a mesh runs: which of them counts."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.policies import ServicePolicy
from fastapi_mesh.config.probes import ProbePolicy
from fastapi_mesh.service_mesh.policy_table import PolicyTable

CONFIG = MeshConfig(policies={"users": ServicePolicy(health_check=ProbePolicy(path="/configured", fall=9))})


@pytest.mark.spec("X-30")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"interval": 2.0}], ProbePolicy(path="/configured", interval=2.0, fall=9)),
        ([{"interval": 2.0}, {"rise": 3}], ProbePolicy(path="/configured", interval=2.0, fall=9, rise=3)),
        ([ProbePolicy(path="/code")], ProbePolicy(path="/code")),
        ([ProbePolicy(path="/code"), {"interval": 2.0}], ProbePolicy(path="/code", interval=2.0)),
        ([{"interval": 2.0}, ProbePolicy(path="/code")], ProbePolicy(path="/code")),
        ([None], None),
        ([None, {"path": "/again"}], ProbePolicy(path="/again")),
        ([{"interval": 2.0}, None], None),
    ],
)
def test_what_was_changed_in_code_counts_over_other_settings_as_it_did_before(
    changes: list[object], expected: ProbePolicy | None
) -> None:
    table = PolicyTable(CONFIG)
    for change in changes:
        table.change("users", health_check=change)  # type: ignore[arg-type]
    assert table.policy_of("users").health_check == expected

    table.replace(CONFIG.model_copy(update={"drain_delay": 1.0}), ["users"])

    assert table.policy_of("users").health_check == expected


def test_a_listener_hears_of_replaced_settings_that_make_a_difference() -> None:
    table, heard = PolicyTable(CONFIG), []
    table.on_change(lambda service, before, after: heard.append((service, before.health_check, after.health_check)))
    defaults = ServicePolicy(health_check=ProbePolicy(path="/everywhere"))

    table.replace(CONFIG, ["users", "orders"])
    table.replace(CONFIG.model_copy(update={"defaults": defaults}), ["users", "orders"])

    assert heard == [("orders", None, ProbePolicy(path="/everywhere"))]
