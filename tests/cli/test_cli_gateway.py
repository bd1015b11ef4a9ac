"""The commands `check` and `routes`: what they say of a settings file, and that nothing is started for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from fastapi_mesh.cli.application import application

pytestmark = pytest.mark.spec("X-51")

GOOD = """\
[services]
users = "http://127.0.0.1:1"

[[routes]]
path = "/api/users/*"
service = "users"
methods = ["GET", "HEAD"]
rate_limit = "100/minute"

[[routes]]
path = "/api/users/{user}"
service = "users"
auth_required = true

[[auth.providers]]
type = "jwt"
secret_key = "0123456789abcdef0123456789abcdef"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(application, [str(each) for each in arguments])
    return result.exit_code, result.output


def test_a_good_file_is_good(file: Path) -> None:
    assert run("check", file) == (
        0,
        (
            f"{file}: warning: ssl_cert: credentials come over plain HTTP, unless a proxy in front (name it in "
            f"trusted_proxies) has TLS\n{file}: good (routes: 2, warnings: 1)\n"
        ),
    )
    assert run("check", "--strict", file)[0] == 1


def test_every_problem_is_told_with_its_line_and_the_likeliest_fix(file: Path) -> None:
    file.write_text(
        GOOD.replace("rate_limit", "rate_limt").replace('service = "users"\nauth', 'service = "user"\nauth')
        + "prt = 1\n"
    )

    code, said = run("check", file)

    assert code == 1
    assert f"{file}:8: error: routes[0].rate_limt: unknown key - did you mean 'rate_limit'?" in said
    assert f"{file}:18: error: auth.providers[0].prt" in said


def test_a_service_that_nobody_knows_is_a_problem(file: Path) -> None:
    file.write_text(GOOD.replace('service = "users"\nauth', 'service = "user"\nauth'))

    code, said = run("check", file)

    assert code == 1
    assert "error: routes[1].service: 'user' is not a known service - did you mean 'users'?" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0123456789abcdef0123456789abcdef", "short", "warning: authentication provider jwt: the secret has 5 bytes"),
        (
            "[services]",
            'trusted_proxies = "0.0.0.0/0"\n[services]',
            ":1: warning: trusted_proxies: everybody is trusted",
        ),
        ("[services]", '[services]\nunused = "http://a:1"', ":2: warning: services.unused: no route leads there"),
        ("auth_required = true", "", "warning: auth: no route asks who its client is"),
        ("[services]", 'ssl_cert = "none.pem"\n[services]', ":1: warning: ssl_cert: none.pem: there is no such file"),
        ("[services]", "max_connections = 0\n[services]", ":1: error: max_connections: 0 is too small"),
        (
            "auth_required = true",
            "fault = { abort = { status = 503 } }",
            ":13: warning: routes[1].fault: /api/users/{user} fails on purpose",
        ),
        (
            'path = "/api/users/{user}"',
            'path = "/api/{user}"\nservice = "users"\n[[routes]]\npath = "/api/{other}"\npriority = 9',
            ":10: warning: routes[1]: /api/{user} gets no request, /api/{other} takes them all",
        ),
    ],
)
def test_what_is_seldom_meant_is_a_warning(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(GOOD.replace(old, new))

    assert said in run("check", file)[1]


def test_a_key_of_another_certificate_is_a_warning(file: Path, tmp_path: Path) -> None:
    pairs = [trustme.CA().issue_cert("localhost") for _ in range(2)]
    pairs[0].cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    pairs[1].private_key_pem.write_to_path(tmp_path / "key.pem")
    file.write_text(f'ssl_cert = "{tmp_path}/cert.pem"\nssl_key = "{tmp_path}/key.pem"\n{GOOD}')

    assert "warning: ssl_key: the private key in" in run("check", file)[1]
    assert run("check", "--strict", file)[0] == 1


def test_no_routes_at_all_is_a_warning(file: Path) -> None:
    file.write_text("port = 1\n")

    assert "warning: routes: there are none" in run("check", file)[1]


def test_a_file_with_a_node_s_settings_too_has_both_judged(file: Path) -> None:
    file.write_text('drain_dealy = 3\n[gateway]\nhots = "a"\n')

    code, said = run("check", file)

    assert code == 1
    assert f"{file}:1: error: drain_dealy: unknown key - did you mean 'drain_delay'?" in said
    assert f"{file}:3: error: hots: unknown key - did you mean 'host'?" in said


def test_variables_count_only_where_they_are_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_GATEWAY__PORT", "no number")

    assert run("check", file)[0] == 0
    assert run("check", "--env", file)[0] == 1


def test_it_is_told_for_programs_too(file: Path) -> None:
    file.write_text(GOOD.replace("rate_limit", "rate_limt"))

    code, said = run("check", "--output", "json", file)

    assert code == 1
    assert json.loads(said) == {
        "file": str(file),
        "valid": False,
        "problems": [{"line": 8, "text": "routes[0].rate_limt: unknown key - did you mean 'rate_limit'?"}],
        "warnings": [],
    }


@pytest.mark.parametrize("command", ["check", "routes"])
def test_no_file_is_wrong_use(command: str, tmp_path: Path) -> None:
    assert run(command, tmp_path / "none.toml") == (2, f"{tmp_path / 'none.toml'}: there is no such file\n")


@pytest.mark.parametrize("command", ["check", "routes"])
def test_a_file_that_is_no_toml_is_wrong(command: str, file: Path) -> None:
    file.write_text("[[routes]\n")

    code, said = run(command, file)

    assert code == 1
    assert "is not valid TOML" in said


def test_routes_are_listed_with_what_each_has(file: Path) -> None:
    code, said = run("routes", file)

    lines = [line.split() for line in said.splitlines()]
    assert code == 0
    assert lines[0][:4] == ["path", "methods", "service", "layers"]
    assert lines[1][:3] == ["/api/users/*", "GET,HEAD", "users"]
    assert "RateLimit" in said.splitlines()[1]
    assert "Authenticate" in said.splitlines()[2]
    assert "auth_required=true" in said.splitlines()[2]


def test_routes_are_listed_for_programs_too(file: Path) -> None:
    rows = json.loads(run("routes", "--output", "json", file)[1])

    assert [(row["path"], row["methods"], row["service"]) for row in rows] == [
        ("/api/users/*", ["GET", "HEAD"], "users"),
        ("/api/users/{user}", None, "users"),
    ]
    assert rows[1]["settings"] == {"auth_required": True}


def test_a_file_without_routes_says_so(file: Path) -> None:
    file.write_text("port = 1\n")

    assert run("routes", file) == (0, "no route is configured\n")


def test_a_file_and_an_application_exclude_each_other(file: Path) -> None:
    code, said = run("gateway", "--config", file, "--app", "main:gateway")

    assert code == 2
    assert "exclude each other" in said
