"""What the documentation says of settings, errors, metrics and orders is what the code says."""

from __future__ import annotations

import inspect

import pytest

from fastapi_mesh import exceptions
from tests.docs.generate import DOCS, PARTS, WHAT_TO_DO, updated


@pytest.mark.parametrize("page", PARTS)
def test_a_generated_page_is_up_to_date(page):
    assert (DOCS / page).read_text() == updated(page), "run `python -m tests.docs.generate`"


def test_every_error_says_what_to_do():
    classes = {
        name for name, value in vars(exceptions).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert set(WHAT_TO_DO) == classes
