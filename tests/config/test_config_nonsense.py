"""Settings files that nobody means: each is told as a problem of the file, in bounded time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastapi_mesh.config.load import load_gateway_config
from fastapi_mesh.exceptions import ConfigurationError

pytestmark = pytest.mark.spec("X-30")

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
ROUTE = 'services = { a = "http://127.0.0.1:1" }\n[[routes]]\npath = "/a"\nservice = "a"\n'


def problems(folder: Path, name: str, text: str) -> tuple[str, ...]:
    file = folder / name
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_gateway_config(file=file, env={})
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("deep.json", "[" * 100_000, "is nested too deeply"),
        ("deep.toml", "a = " + "[" * 5_000, "is nested too deeply"),
        ("deep.yaml", "[" * 5_000, "is nested too deeply"),
        ("itself.yaml", "a: &a [*a, *a]\n", "is nested too deeply"),
        ("bomb.yaml", BOMB, "has more than 500000 settings, counting what its aliases stand for each time"),
        ("key.yaml", "? [a, b]\n: 1\n", "has a key that is a list or a table (line 1)"),
        ("code.yaml", "a: !!python/object:os.system 1\n", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_settings_file_is_told(name: str, text: str, said: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, name, text)

    assert f"{name}: {said}" in found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cache = { forse = true }", "routes[0].cache.forse (line 5): unknown key - did you mean 'force'?"),
        ('cache = "yes"', "routes[0].cache (line 5): 'yes' is not a table of settings"),
        ('cors = { allow_origin = ["*"] }', "did you mean 'allow_origins'?"),
    ],
)
def test_of_settings_that_may_also_be_false_the_table_s_problem_is_told(line: str, said: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "gateway.toml", ROUTE + line)

    assert said in found
    assert "literal" not in found
    assert "function" not in found
