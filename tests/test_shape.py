"""The shape of the project: its public names, the orders of its layers, where tasks start, how long its files are."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastapi_mesh
from tests.support.bare import EXTRAS

PACKAGE = Path(fastapi_mesh.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in FILES}

TASK_STARTERS = {"create_task", "ensure_future", "start_soon", "run_coroutine_threadsafe", "create_task_group"}
BROUGHT_IN_BY_PYBREAKER = ("redis", "opentelemetry.sdk")
"""pybreaker imports redis wherever it is installed, and redis the SDK."""
LONGEST = 600
MOST_PUBLIC_NAMES = 30
PROMISED = {
    "APIGateway",
    "ServiceMesh",
    "ServiceMeshMiddleware",
    "get_service_mesh",
    "circuit_breaker",
    "retry_policy",
    "trace_calls",
}


def _public_modules() -> list[ModuleType]:
    names = [each.name for each in pkgutil.walk_packages(fastapi_mesh.__path__, "fastapi_mesh.")]
    return [fastapi_mesh, *(importlib.import_module(name) for name in names if "plugin" not in name)]


def _is_documented(name: str) -> bool:
    value = getattr(fastapi_mesh, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return bool(inspect.getdoc(value))
    source = Path(inspect.getsourcefile(_home_of(name)) or "").read_text()
    body = ast.parse(source).body
    for statement, following in itertools.pairwise(body):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return False


def _home_of(name: str) -> ModuleType:
    """The module that assigns a public value such as a type alias, which does not know where it comes from."""
    value = getattr(fastapi_mesh, name)
    for module in _public_modules():
        tree = TREES[Path(module.__file__ or "").relative_to(PACKAGE).as_posix()]
        assigned = {
            target.id
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        if name in assigned and getattr(module, name) is value:
            return module
    raise AssertionError(f"no module assigns {name}")


@pytest.mark.spec("S-200")
def test_the_promised_names_are_exported():
    assert sorted(PROMISED - set(fastapi_mesh.__all__)) == []


def test_all_is_exactly_what_is_visible_and_short():
    visible = {name for name in dir(fastapi_mesh) if name[0].isalpha()}
    submodules = {each.name for each in pkgutil.iter_modules(fastapi_mesh.__path__)}

    assert sorted(fastapi_mesh.__all__) == sorted(set(fastapi_mesh.__all__))
    assert visible - submodules == set(fastapi_mesh.__all__) - submodules
    assert set(fastapi_mesh.__all__) <= visible
    assert len(fastapi_mesh.__all__) <= MOST_PUBLIC_NAMES


def test_every_public_name_says_what_it_is():
    assert [name for name in fastapi_mesh.__all__ if not _is_documented(name)] == []


def test_the_first_line_of_each_file_says_what_it_is():
    first = {name: path.read_text().partition("\n")[0] for name, path in zip(TREES, FILES, strict=True)}
    assert [name for name, line in first.items() if not line.startswith('"""') or len(line) < 10] == []


def test_no_file_is_too_long_for_one_idea():
    lengths = {name: len(path.read_text().splitlines()) for name, path in zip(TREES, FILES, strict=True)}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_tasks_start_in_the_supervisor_only():
    starts = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in TREES.items()
        if name != "core/tasks.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in TASK_STARTERS
    ]
    assert starts == []


def test_nothing_derives_from_starlette_s_base_middleware():
    imports = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [line for line in imports if "BaseHTTPMiddleware" in line or "middleware.base" in line] == []


def test_public_signatures_have_no_bags_of_anything():
    """Settings are models; dictionaries of anything are read in config/compat*.py and nowhere else."""
    bags = [
        f"{name}:{function.lineno} {function.name}({argument.arg}: {ast.unparse(argument.annotation)})"
        for name, tree in TREES.items()
        if name not in ("config/compat.py", "config/compat_gateway.py")
        for function in _public_functions(tree)
        for argument in _arguments(function)
        if argument.annotation is not None and _is_a_bag(argument.annotation)
    ]
    assert bags == []


def _public_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return [
        node
        for scope in scopes
        for node in scope.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (not node.name.startswith("_") or node.name == "__init__")
    ]


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = function.args
    return [*found.posonlyargs, *found.args, *found.kwonlyargs, *filter(None, (found.vararg, found.kwarg))]


def _is_a_bag(annotation: ast.expr) -> bool:
    text = ast.unparse(annotation).replace(" ", "")
    return any(f"{kind}[str,Any]" in text for kind in ("dict", "Dict", "Mapping", "MutableMapping"))


def test_importing_the_package_imports_nothing_that_belongs_to_an_extra():
    code = "import fastapi_mesh, sys; print([name for name in sys.argv[1:] if name in sys.modules])"
    ours = [name for name in EXTRAS if name not in BROUGHT_IN_BY_PYBREAKER]
    result = subprocess.run([sys.executable, "-c", code, *ours], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def _misplaced(names: list[str], outside: dict[str, tuple[str, ...]]) -> list[str]:
    """Which rows of an order do not stand outside those that they must stand outside of."""
    problems = []
    for number, name in enumerate(names):
        for inner in outside[name]:
            if inner not in names:
                problems.append(f"{name} must be outside {inner}, which is no row")
            elif names.index(inner) <= number:
                problems.append(f"{name} must be outside {inner}, and is not")
    return problems


@pytest.mark.parametrize("module", ["fastapi_mesh.service_mesh.stack", "fastapi_mesh.api_gateway.pipeline"])
def test_every_layer_stands_where_its_reason_says(module):
    table = importlib.import_module(module)
    names = [row.name for row in table.ORDER]
    outside = {row.name: row.outside for row in table.ORDER}
    innermost = getattr(table, "WIRE", None) or table.MESH
    names, outside = [*names, innermost], {**outside, innermost: ()}

    assert len(set(names)) == len(names)
    assert _misplaced(names, outside) == []
    assert [row.name for row in table.ORDER if not row.because or not row.outside] == []
    for first, second in itertools.pairwise(names):
        swapped = [{first: second, second: first}.get(name, name) for name in names]
        if second in outside[first]:
            assert _misplaced(swapped, outside) != [], f"{first} and {second} could change places unnoticed"
