"""One line per change of state."""

import logging

import pytest

from fastapi_mesh.core.events import (
    BudgetExhausted,
    CircuitChanged,
    ExcessDropped,
    InstanceEjected,
    InstanceRestored,
    InstancesChanged,
)
from fastapi_mesh.observability.event_log import log_changes


def test_changes_are_logged_and_calls_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for event in (
        CircuitChanged("users", "closed", "open"),
        CircuitChanged("users", "half-open", "closed"),
        InstanceEjected("users", "users-1", 30.0),
        InstanceRestored("users", "users-1"),
        InstancesChanged("users", ("users-2",), ("users-1",), 1),
        BudgetExhausted("users"),
        ExcessDropped("users", "10.0.0.1:8080", True),
        ExcessDropped("users", "10.0.0.1:8080", False),
    ):
        log_changes(event)
    assert caplog.messages == [
        "the circuit of users is open (it was closed): calls to it are refused at once",
        "the circuit of users is closed (it was half-open)",
        "users-1 of users keeps failing; it gets no calls for 30 s",
        "users-1 of users is back",
        "users has 1 instance, new: users-2, gone: users-1",
        (
            "users at 10.0.0.1:8080 sends more than its answers say (a wrong Content-Length?); what is over is dropped "
            "and the connection closed; said once, counted in mesh_excess_dropped_total"
        ),
    ]
