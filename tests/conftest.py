"""Fixtures for every test: the event loop's backend, the checks for leaks, and the marker for real servers."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.leaks import leaked_sockets, leaked_tasks, open_sockets
from tests.support.process import Processes
from tests.support.servers import explain_missing, hide_requirement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


pytest_plugins = [
    "fastapi_mesh.testing.plugin",
    "tests.support.redis",
    "tests.support.consul",
    "tests.support.etcd",
    "tests.support.kubernetes",
]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the run's own environment out of the tests: its variables, the user's registry, and how busy it is."""
    with suppress(ImportError):  # the pages' snippets are tested without it
        from hypothesis import settings

        settings.register_profile("tests", deadline=None)
        settings.load_profile("tests")
    hide_requirement()
    # The tests start some two hundred processes, each of which would compile the whole package for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fastapi-mesh-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose real server isn't here, visibly; fail it where servers are required."""
    for marker in item.iter_markers("server"):
        for name in marker.args:
            missing = explain_missing(name)
            if missing is None:
                continue
            if missing.is_failure:
                pytest.fail(missing.text, pytrace=False)
            pytest.skip(missing.text)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def _nothing_left_in_the_loop() -> AsyncIterator[None]:
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    yield
    problems = [*await leaked_tasks(tasks), *await leaked_sockets(sockets)]
    if problems:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(problems), pytrace=False)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    """After each asynchronous test: no task and no socket more than before it."""
    marked = request.node.get_closest_marker("anyio") is not None  # perhaps by its module, which has sync tests too
    if marked and inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_nothing_left_in_the_loop")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Runs applications in child processes, ends them by pid, and fails the test if a log has a traceback."""
    with Processes(tmp_path) as running:
        yield running
