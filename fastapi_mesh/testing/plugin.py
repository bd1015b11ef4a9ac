"""The pytest fixtures of fastapi_mesh, found by pytest through the `pytest11` entry point."""

from __future__ import annotations

import pytest

from fastapi_mesh.testing.clock import FakeClock
from fastapi_mesh.testing.fake_mesh import FakeMesh


@pytest.fixture
def fake_mesh() -> FakeMesh:
    """A FakeMesh; put it in place with `app.dependency_overrides[get_service_mesh] = lambda: fake_mesh`."""
    return FakeMesh()


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until `await fake_clock.advance(seconds)`."""
    return FakeClock()
