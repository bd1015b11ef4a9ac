"""Settings of the backends etcd and DNS that can't work are refused with what is wrong, from wherever they come."""

from __future__ import annotations

import pytest

from fastapi_mesh.config.load import load_mesh_config
from fastapi_mesh.config.mesh import MeshConfig
from fastapi_mesh.exceptions import ConfigurationError
from tests.config.config_support import problems_of

pytestmark = pytest.mark.spec("S-103", "X-53")


@pytest.mark.parametrize(
    ("etcd", "path", "named"),
    [
        ({"endpoints": ["10.0.0.1"]}, "endpoints[0]", "is not an endpoint: host:port"),
        ({"endpoints": ["a:1", "a:99999"]}, "endpoints[1]", "is not an endpoint"),
        ({"endpoints": ["ftp://a:1"]}, "endpoints[0]", "is not an endpoint"),
        ({"endpoints": ["http://a:1/v3"]}, "endpoints[0]", "is not an endpoint"),
        ({"endpoints": ["http://me:s3cret@a:1"]}, "endpoints[0]", "user and password are settings of their own"),
        ({"prefix": "/mesh"}, "prefix", "is not a prefix of keys"),
        ({"prefix": ""}, "prefix", "is not a prefix of keys"),
        ({"watch_idle": 0}, "watch_idle", "must be more than 0"),
        ({"endpoint": []}, "endpoint", "did you mean 'endpoints'?"),
    ],
    ids=str,
)
def test_what_is_wrong_with_etcd_is_told(etcd: dict[str, object], path: str, named: str) -> None:
    (problem,) = problems_of(MeshConfig, discovery={"backend": "etcd", "etcd": etcd})

    assert problem.startswith(f"discovery.etcd.{path}")
    assert named in problem
    assert "s3cret" not in problem


def test_everything_can_be_set_by_the_environment() -> None:
    env = {
        "MESH_DISCOVERY__BACKEND": "etcd",
        "MESH_DISCOVERY__USERNAME": "mesh",
        "MESH_DISCOVERY__PASSWORD": "s3cret",
        "MESH_DISCOVERY__ETCD__ENDPOINTS": '["a:1", "https://b:2"]',
        "MESH_DISCOVERY__ETCD__PREFIX": "shop/mesh",
        "MESH_DISCOVERY__ETCD__WATCH_IDLE": "5",
    }

    discovery = load_mesh_config(env=env).discovery

    assert discovery.etcd.model_dump() == {
        "prefix": "shop/mesh",
        "endpoints": ("a:1", "https://b:2"),
        "watch_idle": 5.0,
    }
    assert "s3cret" not in repr(discovery)


def test_settings_of_another_backend_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the backend 'etcd' does not have it") as refusal:
        load_mesh_config({"discovery": {"backend": "etcd", "token": "s3cret", "dns": {"domain": "x"}}}, env={})

    assert len(refusal.value.problems) == 2
    assert "s3cret" not in str(refusal.value)


def test_dns_is_set_by_the_environment_and_its_problems_are_told() -> None:
    env = {"MESH_DISCOVERY__BACKEND": "dns", "MESH_DISCOVERY__DNS__DOMAIN": "svc.example.org"}
    assert load_mesh_config(env=env).discovery.dns.domain == "svc.example.org"

    (problem,) = problems_of(MeshConfig, discovery={"backend": "dns", "dns": {"record": "address"}})
    assert problem.startswith("discovery.dns.service_port")
