"""Every snippet of the README and of the documentation does what its page says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.docs.snippets import run, snippets_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _a_machine_of_its_own(tmp_path, monkeypatch):
    """No setting of this machine reaches a page, and no page's registry reaches this machine's."""
    for name in ("MESH_DISCOVERY__PATH", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("MESH_DRAIN_DELAY", "0.1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets_of(page)], ids=lambda page: str(page.relative_to(ROOT))
)
async def test_the_snippets_of_a_page_run(page):
    ran = await run(page)
    assert ran > 0, f"{page} has Python, and none of it runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_on_a_page_are_valid_toml(page):
    for snippet in snippets_of(page, "toml"):
        tomllib.loads(snippet.source)


def test_a_failing_snippet_is_reported_with_the_line_of_its_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nanswer = 42\n```\n\nThen:\n\n```python\n\nassert answer == 41\n```\n")
    first, second = snippets_of(page)

    namespace: dict[str, object] = {}
    exec(first.compiled(), namespace)
    with pytest.raises(AssertionError) as failure:
        exec(second.compiled(), namespace)

    assert failure.traceback[-1].lineno + 1 == 11
