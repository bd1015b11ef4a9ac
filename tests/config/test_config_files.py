"""Settings files: three formats, the line of every problem, and files that can't be read."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_mesh.config.files import read_file
from fastapi_mesh.config.load import load_gateway_config, load_mesh_config
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.config.problems import keys_at
from fastapi_mesh.config.toml_lines import toml_lines
from tests.config.config_support import gateway_problems, mesh_problems, refused

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.spec("X-53")

TOML = """\
service_name = "user-service" # who we are
"drain_delay" = 1

[services]
profile-service = ["http://127.0.0.1:8001"]

[policies.profile-service.retry]
max_attempts = 2
"""

YAML = """\
service_name: user-service
drain_delay: 1
services:
  profile-service: ["http://127.0.0.1:8001"]
policies:
  profile-service:
    retry: {max_attempts: 2}
"""

JSON = json.dumps(
    {
        "service_name": "user-service",
        "drain_delay": 1,
        "services": {"profile-service": ["http://127.0.0.1:8001"]},
        "policies": {"profile-service": {"retry": {"max_attempts": 2}}},
    }
)


def write(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    file.write_text(text, encoding="utf-8")
    return file


def test_every_format_says_the_same(tmp_path: Path) -> None:
    pyproject = TOML.replace("[services]", "[tool.fastapi-mesh.services]").replace(
        "[policies", "[tool.fastapi-mesh.policies"
    )
    files = [
        write(tmp_path, "mesh.toml", TOML),
        write(tmp_path, "mesh.yaml", YAML),
        write(tmp_path, "mesh.YML", YAML),
        write(tmp_path, "mesh.json", JSON),
        write(tmp_path, "pyproject.toml", f'[project]\nname = "x"\n[tool.fastapi-mesh]\n{pyproject}'),
        write(tmp_path, "bom.json", f"\ufeff{JSON}"),
    ]

    configs = [load_mesh_config(file=file, env={}) for file in files]

    assert configs[0].policy_of("profile-service").retry is not None
    assert all(config == configs[0] for config in configs)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    for name in ("a.toml", "a.yaml"):
        assert load_mesh_config(file=write(tmp_path, name, ""), env={}) == load_mesh_config(env={})


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("mesh.ini", "", "is not a .toml, .yaml, .yml or .json file"),
        ("mesh", "", "is not a .toml, .yaml, .yml or .json file"),
        ("absent.toml", None, "there is no such file"),
        ("mesh.toml", "port = \n", "is not valid TOML: Invalid value (at line 1, column 8)"),
        ("mesh.toml", "port = 1\nport = 2\n", "is not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        (
            "mesh.json",
            "{",
            "is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ("mesh.json", "[]", "holds a list, not a table of settings"),
        ("mesh.json", '{"port": 1, "port": 2}', "has the key 'port' twice in a table"),
        ("mesh.yaml", "text", "holds a str, not a table of settings"),
        ("mesh.yaml", "port: 1\nservices:\n  a: x\nport: 2\n", "has the key 'port' twice in a table (line 4)"),
        ("pyproject.toml", "[tool.other]\n", "has no table [tool.fastapi-mesh]"),
        ("pyproject.toml", "[tool]\nfastapi-mesh = 1\n", "has no table [tool.fastapi-mesh]"),
    ],
)
def test_a_file_that_is_no_use_is_named_with_the_reason(
    tmp_path: Path, name: str, text: str | None, problem: str
) -> None:
    file = tmp_path / name if text is None else write(tmp_path, name, text)

    error = refused(lambda: load_mesh_config(file=file, env={}))

    assert str(error) == f"{file}: {problem}"
    assert error.problems == (str(error),)
    assert error.source == str(file)


def test_wrong_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    error = refused(lambda: load_mesh_config(file=write(tmp_path, "mesh.yaml", "a: b\n  c: {\n"), env={}))

    assert "mesh.yaml: is not valid YAML: " in str(error)
    assert "line 2" in str(error)


def test_yaml_can_not_make_objects(tmp_path: Path) -> None:
    file = write(tmp_path, "mesh.yaml", "port: !!python/object/apply:os.getpid []\n")

    assert "is not valid YAML" in str(refused(lambda: load_mesh_config(file=file, env={})))


def test_a_file_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    directory = tmp_path / "mesh.toml"
    directory.mkdir()
    assert str(refused(lambda: read_file(directory))) == f"{directory}: can't be read: Is a directory"

    file = tmp_path / "latin.toml"
    file.write_bytes('service_name = "é"'.encode("latin-1"))
    assert str(refused(lambda: read_file(file))) == f"{file}: is not UTF-8"


def test_a_missing_file_that_the_environment_names_says_so() -> None:
    error = refused(lambda: load_gateway_config(env={"MESH_CONFIG_FILE": "absent.toml"}))

    assert str(error) == "absent.toml (MESH_CONFIG_FILE): there is no such file"


def test_yaml_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    file = write(tmp_path, "mesh.yaml", "port: 1")

    assert str(refused(lambda: load_mesh_config(file=file, env={}))) == (
        f"{file}: reading YAML needs PyYAML: pip install 'fastapi-mesh[yaml]'"
    )


def test_problems_of_toml_have_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "all.toml",
        '''\
service_name = "a b"
description = """
port = 0
"""
port = 0
policies."user.service".retry.jitter = "x"
[defaults.timeouts]
timeout = "x" # not 30
[gateway]
port = -1
[[gateway.routes]]
path = "/a"
service = "a"
[[gateway.routes]]
path = "b"
[gateway.services.a]
instances = [
  "http://a",
  "ftp://b",
]
circuit_breaker = { failure_threshold = 0 }
''',
    )

    assert sorted(mesh_problems(file=file), key=lambda line: line.partition("(line ")[2]) == [
        (
            "service_name (line 1): 'a b' is not a service name: letters, digits, '-', '_' and '.', a letter or digit "
            "at both ends"
        ),
        f"description (line 2): unknown key; known here: {', '.join(keys_at(MeshConfig, ()))}",
        "port (line 5): 0 is too small: it must be at least 1",
        "policies.'user.service'.retry.jitter (line 6): 'x' is not true or false",
        "defaults.timeouts.timeout (line 8): 'x' is not a number of seconds",
    ]
    assert gateway_problems(file=file) == [
        "port (line 10): -1 is too small: it must be at least 0",
        (
            "services.a.instances[1] (line 17): 'ftp://b' is not an address like 'http://127.0.0.1:8000': "
            "its scheme is not one of http, https, h2, h2c"
        ),
        "services.a.circuit_breaker.failure_threshold (line 21): 0 is too small: it must be at least 1",
        "routes[1].path (line 15): 'b' does not start with '/'",
        "routes[1].service (line 14): is missing",
    ]


def test_problems_of_yaml_have_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "gateway.yaml",
        "routes:\n  - path: /a\n    service: a\n    rate_limit: 100/min\n  - {path: b}\nservices:\n"
        "  a:\n    - http://a\n    - ftp://b\n",
    )

    assert gateway_problems(file=file) == [
        (
            "services.a.instances[1] (line 9): 'ftp://b' is not an address like 'http://127.0.0.1:8000': "
            "its scheme is not one of http, https, h2, h2c"
        ),
        "routes[0].rate_limit (line 4): '100/min' is not a rate limit - did you mean '100/minute'?",
        "routes[1].path (line 5): 'b' does not start with '/'",
        "routes[1].service (line 5): is missing",
    ]


# Lines of TOML: write a tree, note where each key went, and read them back.

keys = st.text("ab-_. \"'é#[]=", min_size=1, max_size=3)
letters = "a#=[]{}'.\"\n "
scalars = st.one_of(
    st.integers(-5, 5).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.text(letters, max_size=5).map(json.dumps),
    st.text(letters.replace("'", "").replace("\n", ""), max_size=5).map(lambda text: f"'{text}'"),
    st.text(letters, max_size=6).map(lambda text: '"""{}"""'.format(text.replace('"', '\\"'))),
    st.text(letters.replace("'", ""), max_size=6).map(lambda text: f"'''{text}''''"),
)
values = scalars | st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(
        lambda items: "[\n" + "".join(f"{each}, # ]\n" for each in items) + "]"
    ),
    max_leaves=4,
)
tables = st.dictionaries(keys, values, max_size=4)


def quoted(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else f"'{key}'"


@settings(max_examples=300)
@given(tables, st.dictionaries(keys, tables, max_size=3), st.lists(tables, max_size=3))
def test_the_line_of_a_toml_key_is_where_it_was_written(
    top: dict[str, str], named: dict[str, dict[str, str]], many: list[dict[str, str]]
) -> None:
    written: list[str] = []
    expected: dict[tuple[str | int, ...], int] = {}

    def put(place: tuple[str | int, ...], text: str) -> None:
        expected.setdefault(place, sum(each.count("\n") for each in written) + 1)
        written.append(f"{text}\n")

    def put_all(place: tuple[str | int, ...], table: dict[str, str]) -> None:
        for key, value in table.items():
            if "'" not in key:
                put((*place, key), f"  {quoted(key)} = {value} # {key}")

    put_all((), top)
    for name, table in named.items():
        if "'" not in name:
            put(("named", name), f"[named.{quoted(name)}]")
            put_all(("named", name), table)
    for index, table in enumerate(many):
        put(("many", index), "[[many]]")
        put_all(("many", index), table)

    text = "".join(written)
    tomllib.loads(text)
    found = toml_lines(text)

    assert {place: found.get(place) for place in expected} == expected
