"""What has state in a gateway: kept while its settings are equal, closed when nothing uses it any more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fastapi_mesh.api_gateway.engines import Engines
from fastapi_mesh.core.tasks import Supervisor

pytestmark = pytest.mark.anyio


class Engine:
    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    supervisor = Supervisor()
    yield Engines(supervisor)
    await supervisor.aclose()


@pytest.mark.spec("X-30")
async def test_equal_settings_keep_an_engine_and_others_replace_it(engines: Engines) -> None:
    first = engines.kept("counters", {"limit": 1}, Engine)
    assert engines.kept("counters", {"limit": 1}, Engine) is first, "asked for twice in one change"
    engines.commit()
    assert engines.kept("counters", {"limit": 1}, Engine) is first
    engines.commit()
    second = engines.kept("counters", {"limit": 2}, Engine)
    engines.commit()

    assert second is not first
    assert (first.closed, second.closed) == (0, 0), "requests under way still use the first"
    await engines.aclose()
    assert (first.closed, second.closed) == (1, 1)


async def test_a_change_that_is_taken_back_leaves_what_runs(engines: Engines) -> None:
    first = engines.kept("counters", 1, Engine)
    engines.commit()

    engines.kept("counters", 2, Engine)
    engines.rollback()

    assert engines.kept("counters", 1, Engine) is first


async def test_an_engine_that_nothing_asks_for_is_closed_with_the_others(engines: Engines) -> None:
    first = engines.kept("counters", 1, Engine)
    engines.commit()
    engines.commit()

    await engines.aclose()

    assert first.closed == 1
