"""A node's limit of requests comes from its config store too, while it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastapi_mesh import ServiceMesh

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.mark.spec("X-07")
async def test_a_limit_in_the_config_store_counts_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "node.toml"
    document.write_text("[inbound_limit]\nmax_concurrent = 3\n")
    monkeypatch.setenv("MESH_CONFIG_STORE__KEY", "node.toml")
    monkeypatch.setenv("MESH_CONFIG_STORE__BACKEND", "file")
    monkeypatch.setenv("MESH_CONFIG_STORE__PATH", str(tmp_path))
    async with ServiceMesh("orders", discovery_backend="memory") as mesh:
        assert mesh.config.inbound_limit is not None
        assert mesh.config.inbound_limit.max_concurrent == 3

        document.write_text("[inbound_limit]\nmax_concurrent = 5\nadaptive = { min_concurrent = 2 }\n")

        async with asyncio.timeout(20):
            while mesh.config.inbound_limit.max_concurrent != 5:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.02)
        assert mesh.config.inbound_limit.adaptive is not None
