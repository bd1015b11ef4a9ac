"""The settings of a gateway's own server."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastapi_mesh.config.edge.listener import FIXED
from fastapi_mesh.config.gateway import GatewayConfig
from fastapi_mesh.config.load import load_gateway_config
from tests.config.config_support import gateway_problems, problems_of


@pytest.mark.spec("S-060", "S-061", "S-064")
def test_the_product_description_s_example_is_taken() -> None:
    config = load_gateway_config(
        env={},
        ssl_cert="/path/to/cert.pem",
        ssl_key="/path/to/key.pem",
        max_connections=1000,
        keepalive_timeout=65,
        metrics_port=9090,
    )

    assert (config.ssl_cert, config.ssl_key) == (Path("/path/to/cert.pem"), Path("/path/to/key.pem"))
    assert (config.max_connections, config.keepalive_timeout, config.metrics_port) == (1000, 65.0, 9090)


@pytest.mark.spec("S-001")
def test_the_defaults_are_the_product_description_s() -> None:
    config = GatewayConfig()

    assert (config.host, config.port, config.workers) == ("0.0.0.0", 8080, 1)
    assert (config.max_connections, config.keepalive_timeout) == (1000, 65.0)
    assert (config.ssl_cert, config.metrics_port, config.config_store) == (None, None, None)


@pytest.mark.spec("S-320", "S-321")
def test_code_counts_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('host = "127.0.0.1"\nport = 1\nworkers = 3\nkeepalive_timeout = 5\nroutes = []\n')
    env = {"GATEWAY_HOST": "127.0.0.2", "GATEWAY_PORT": "2", "MESH_GATEWAY__KEEPALIVE_TIMEOUT": "6"}

    config = load_gateway_config(file=file, env=env, port=4)

    assert (config.host, config.port, config.workers, config.keepalive_timeout) == ("127.0.0.2", 4, 3, 6.0)


@pytest.mark.parametrize(
    ("variable", "value", "setting", "expected"),
    [
        ("SSL_CERT", "/c.pem", "ssl_cert", Path("/c.pem")),
        ("MAX_CONNECTIONS", "none", "max_connections", None),
        ("METRICS_PORT", "9090", "metrics_port", 9090),
        ("METRICS_HOST", "127.0.0.1", "metrics_host", "127.0.0.1"),
        ("WORKERS", "2", "workers", 2),
        ("BACKLOG", "16", "backlog", 16),
        ("HEADER_TIMEOUT", "1.5", "header_timeout", 1.5),
        ("MAX_HEADER_SIZE", "4096", "max_header_size", 4096),
        ("SHUTDOWN_TIMEOUT", "3", "shutdown_timeout", 3.0),
        ("WORKER_TIMEOUT", "2.5", "worker_timeout", 2.5),
        ("WATCH_CONFIG", "false", "watch_config", False),
    ],
)
def test_every_setting_has_its_variable(variable: str, value: str, setting: str, expected: object) -> None:
    config = load_gateway_config(env={f"MESH_GATEWAY__{variable}": value})

    assert getattr(config, setting) == expected
    assert setting in FIXED


def test_the_config_store_is_named_by_variables_too() -> None:
    env = {"MESH_GATEWAY__CONFIG_STORE__BACKEND": "file", "MESH_GATEWAY__CONFIG_STORE__PATH": "/etc/gateway"}

    store = load_gateway_config(env=env).config_store

    assert store is not None
    assert (store.backend, store.key, store.path) == ("file", "gateway", Path("/etc/gateway"))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"ssl_key": "/k.pem"}, "ssl_key: a private key without ssl_cert, the certificate it belongs to"),
        ({"workers": 0}, "workers: 0 is too small: it must be at least 1"),
        ({"max_header_size": 10}, "max_header_size: 10 is too small: it must be at least 1024"),
        (
            {"port": 8080, "metrics_port": 8080},
            "metrics_port: 8080 is the gateway's own port; leave metrics_port out to have metrics there",
        ),
        (
            {"config_store": {"backend": "file"}},
            "config_store.path: the backend 'file' needs the folder in which its keys are files",
        ),
        (
            {"config_store": {"key": "../secret"}},
            "config_store.key: '../secret' is not a key: letters, '.', '-' and '/' between them, like 'gateway.toml'",
        ),
    ],
)
def test_what_can_not_be_is_told(settings: dict[str, object], line: str) -> None:
    assert gateway_problems(**settings) == [line]


def test_the_path_of_a_folder_must_be_given() -> None:
    assert problems_of(GatewayConfig, config_store={"backend": "file", "key": "a"}) != []


def test_the_password_of_a_key_is_never_shown() -> None:
    config = load_gateway_config(env={}, ssl_cert="/c.pem", ssl_key_password="sesame")

    assert "sesame" not in repr(config)
    assert config.ssl_key_password is not None
    assert config.ssl_key_password.get_secret_value() == "sesame"
