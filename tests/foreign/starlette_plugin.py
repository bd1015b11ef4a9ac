"""A pytest plugin that puts every application of Starlette's tests under ServiceMeshMiddleware.

`nox -s starlette -- CHECKOUT` runs them. Nothing of theirs is in this repository.
"""

from __future__ import annotations

import pytest
from starlette import testclient

from fastapi_mesh import ServiceMeshMiddleware

_init = testclient.TestClient.__init__


def _under_a_mesh(self: testclient.TestClient, app: object, *args: object, **kwargs: object) -> None:
    three = app if testclient._is_asgi3(app) else testclient._WrapASGI2(app)  # as the client does with what it is given
    node = ServiceMeshMiddleware(three, service_name="under-test", enable_service_discovery=False)
    _init(self, node, *args, **kwargs)
    self.app = app  # what a test asks its client for


testclient.TestClient.__init__ = _under_a_mesh


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave trio out: the mesh runs on asyncio."""
    others = [item for item in items if "trio" in item.name]
    items[:] = [item for item in items if "trio" not in item.name]
    config.hook.pytest_deselected(items=others)
