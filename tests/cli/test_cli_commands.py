"""The commands that need no process: help, version, services, export, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastapi_mesh import Instance, cli
from fastapi_mesh.cli.application import application
from fastapi_mesh.cli.stage.live import Logs
from fastapi_mesh.cli.stage.ports import CHOICE, free_ports, is_free
from fastapi_mesh.discovery.local import LocalRegistry

APPS = Path(cli.__file__).parent / "demo_apps"


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make a module look as if it were not installed."""

    def hide(name: str) -> None:
        for loaded in [each for each in sys.modules if each.startswith("fastapi_mesh.cli.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize("missing", ["typer", "uvicorn"])
def test_without_the_extra_one_line_says_what_to_install(without, missing, capsys):
    without(missing)

    with pytest.raises(SystemExit) as end:
        cli.main()

    assert end.value.code == 2
    assert capsys.readouterr().err == 'fastapi-mesh needs typer and uvicorn: pip install "fastapi-mesh[cli]"\n'


def test_another_missing_module_is_not_taken_for_the_extra(without):
    without("json")

    with pytest.raises(ModuleNotFoundError, match="json"):
        cli.main()


def test_the_version_is_the_distribution_s(runner):
    result = runner.invoke(application, ["--version"])

    assert (result.exit_code, result.output) == (0, f"fastapi-mesh {version('fastapi-mesh')}\n")


# services


@pytest.mark.anyio
async def test_services_lists_what_is_registered(runner, tmp_path):
    path = tmp_path / "registry.db"
    async with LocalRegistry(path) as registry:
        await registry.register(Instance("user-service", "user-1", "127.0.0.1", 8001, version="1.2.3"))
        await registry.register(Instance("order-service", "order-1", "127.0.0.1", 8002))

        table = await asyncio.to_thread(runner.invoke, application, ["services", "--path", str(path)])
        document = await asyncio.to_thread(runner.invoke, application, ["services", "--json", "--path", str(path)])
        other = await asyncio.to_thread(
            runner.invoke, application, ["services", "--path", str(path), "--namespace", "other"]
        )

    assert table.exit_code == document.exit_code == other.exit_code == 0
    assert [line.split() for line in table.output.splitlines()] == [
        ["service", "id", "address", "version", "health"],
        ["order-service", "order-1", "http://127.0.0.1:8002", "-", "healthy"],
        ["user-service", "user-1", "http://127.0.0.1:8001", "1.2.3", "healthy"],
    ]
    found = {each["id"]: (each["service"], each["address"], each["port"]) for each in json.loads(document.output)}
    assert found == {
        "order-1": ("order-service", "127.0.0.1", 8002),
        "user-1": ("user-service", "127.0.0.1", 8001),
    }
    assert other.output == "no instance is registered\n"


def test_services_finds_the_registry_as_nodes_do_and_makes_none(runner, tmp_path):
    path = tmp_path / "registry.db"

    result = runner.invoke(application, ["services"], env={"MESH_DISCOVERY__PATH": str(path)})

    assert (result.exit_code, result.output) == (0, "no instance is registered\n")
    assert not path.exists()


def test_services_says_what_is_wrong_with_a_file_that_is_no_registry(runner, tmp_path):
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE something (x)")
    other.commit()
    other.close()

    result = runner.invoke(application, ["services", "--path", str(path)])

    assert result.exit_code == 1
    assert "is a SQLite database of something else" in result.output
    assert "Traceback" not in result.output


# demo: what needs no process


def test_export_writes_the_files_that_the_demo_runs(runner, tmp_path):
    result = runner.invoke(application, ["demo", "--export", str(tmp_path / "new" / "shop")])

    assert result.exit_code == 0
    written = {path.name: path.read_text() for path in (tmp_path / "new" / "shop").iterdir()}
    assert written == {path.name: path.read_text() for path in APPS.iterdir() if path.suffix in (".py", ".md")}
    assert {"gateway.py", "order_service.py", "profile_service.py", "user_service.py", "README.md"} < set(written)
    applications = [text for name, text in written.items() if name.endswith(".py") and not name.startswith("test")]
    assert sum(len(text.splitlines()) for text in applications) < 80


def test_export_overwrites_nothing(runner, tmp_path):
    (tmp_path / "gateway.py").write_text("mine")

    result = runner.invoke(application, ["demo", "--export", str(tmp_path)])

    assert result.exit_code == 2
    assert result.output == f"{tmp_path} has gateway.py already; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.py"]
    assert (tmp_path / "gateway.py").read_text() == "mine"


def test_every_application_of_the_demo_is_a_node_by_one_line():
    for name in ("user_service", "profile_service", "order_service"):
        lines = re.findall(r"^.*ServiceMeshMiddleware, .*$", (APPS / f"{name}.py").read_text(), re.MULTILINE)
        service = name.replace("_", "-")
        assert lines[-1] == f'app.add_middleware(ServiceMeshMiddleware, service_name="{service}")'


def test_a_taken_port_is_refused_before_anything_starts(runner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        result = runner.invoke(application, ["demo", "--once", "--port", str(port)])

    assert result.exit_code == 2
    assert result.output == f"port {port} is taken; leave --port out to get a free one\n"


def test_free_ports_are_different_and_below_those_of_outgoing_connections():
    ports = free_ports(7)

    assert len(set(ports)) == 7
    assert set(ports) <= set(CHOICE)
    assert all(is_free(port) for port in ports)


def test_logs_are_followed_line_by_line_from_where_they_are(tmp_path):
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("old\n")
    logs = Logs({"gateway": first, "user-1": second})

    with first.open("a") as log:
        log.write('INFO:     127.0.0.1:53350 - "GET /users/3 HTTP/1.1" 200 OK\nnot yet wh')
    assert logs.new_lines() == ["gateway  GET /users/3  200 OK"]
    second.write_text("a warning\n")
    with first.open("a") as log:
        log.write("ole\n")
    assert logs.new_lines() == ["gateway  not yet whole", "user-1   a warning"]
    assert logs.new_lines() == []


# schema


@pytest.mark.spec("X-51", "X-53")
def test_schema_is_printed_and_written(runner, tmp_path):
    printed = runner.invoke(application, ["schema"])
    file = tmp_path / "schema.json"
    written = runner.invoke(application, ["schema", "-o", str(file)])
    refused = runner.invoke(application, ["schema", "-o", str(tmp_path / "none" / "x.json")])

    assert json.loads(printed.output)["properties"]["service_name"]
    assert (written.exit_code, written.output) == (0, "")
    assert json.loads(file.read_text()) == json.loads(printed.output)
    assert refused.exit_code == 1
    assert "can't be written: No such file or directory" in refused.output
