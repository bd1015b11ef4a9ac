"""The order of the layers is the table's, and each row's reason is checkable."""

import pytest

from fastapi_mesh.config.balancing import BalancingPolicy, LoadBalancingStrategy
from fastapi_mesh.config.policies import BulkheadPolicy, CallPolicy, HedgingPolicy, ServicePolicy
from fastapi_mesh.service_mesh.stack import ORDER, WIRE, Parts, Stack
from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.wire import ScriptedWire


def test_every_row_sits_outside_of_what_it_says() -> None:
    names = [row.name for row in ORDER] + [WIRE]
    for position, row in enumerate(ORDER):
        for inner in row.outside:
            assert names.index(inner) > position, f"{row.name} must sit outside {inner}, because {row.because}"


def test_every_row_gives_a_reason_and_names_real_rows() -> None:
    names = {row.name for row in ORDER} | {WIRE}
    for row in ORDER:
        assert len(row.because) > 20
        assert set(row.outside) <= names
        assert row.outside


def test_layers_whose_policy_is_off_are_not_in_the_chain() -> None:
    clock = FakeClock()
    stack = Stack(ScriptedWire([200], clock=clock), Parts(clock, lambda event: None, "tests", None))
    bare = CallPolicy.compile(ServicePolicy(retry=None, circuit_breaker=None, outlier=None))
    quickest = BalancingPolicy(strategy=LoadBalancingStrategy.LEAST_RESPONSE_TIME)
    seats = BulkheadPolicy(max_concurrent=1)
    full = CallPolicy.compile(ServicePolicy(bulkhead=seats, load_balancing=quickest, hedging=HedgingPolicy()))

    assert stack.layers_of(bare) == ("Observe", "Deadline", "Resolve", "Balance", "Attempt", WIRE)
    assert stack.layers_of(full) == (*(row.name for row in ORDER), WIRE)


def test_the_compiled_chain_has_the_layers_that_the_table_names() -> None:
    clock = FakeClock()
    stack = Stack(ScriptedWire([200], clock=clock), Parts(clock, lambda event: None, "tests", None))
    policy = CallPolicy.compile(ServicePolicy(bulkhead=BulkheadPolicy(max_concurrent=1)))

    layer = stack._compile(policy)
    found = []
    while hasattr(layer, "inner"):
        found.append(type(layer).__name__)
        layer = layer.inner

    assert tuple(found) == stack.layers_of(policy)[:-1]
    assert isinstance(layer, ScriptedWire)


@pytest.mark.parametrize("section", ["retry", "circuit_breaker", "outlier"])
def test_switching_a_section_off_changes_the_compiled_sections(section: str) -> None:
    on = CallPolicy.compile(ServicePolicy())
    off = CallPolicy.compile(ServicePolicy().model_copy(update={section: None}))
    assert on.sections != off.sections
