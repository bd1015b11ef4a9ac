"""Each row of the page on failures names the tests that show it, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.spec("X-57")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "failure-modes.md"
_TESTS = re.compile(r"<!-- test: (.+?) -->")


def rows() -> list[str]:
    lines = PAGE.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| what happens")]


def test_each_row_names_a_test() -> None:
    assert len(rows()) > 30
    assert [row for row in rows() if not _TESTS.search(row)] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip())
def test_the_tests_of_a_row_are_there(row: str) -> None:
    (names,) = _TESTS.findall(row)
    for name in names.split(", "):
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert function in {
            each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }, name
