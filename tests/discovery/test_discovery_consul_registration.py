"""How the registry on Consul registers, and what it asks at the start."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.config.backends import DiscoveryConfig
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.address import routed_address
from fastapi_mesh.discovery.consul import ConsulRegistry
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError, UpstreamConnectionError
from fastapi_mesh.testing.clock import FakeClock
from tests.discovery.consul_script import Asked, Said, ScriptedConsul

pytestmark = [pytest.mark.anyio, pytest.mark.spec("S-102")]

WEB = Instance("web", "web-1", "10.0.0.1", 8001)


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def agent(*answers: Said) -> ScriptedConsul:
    """One that answers writes in turn, and whose catalog shows what is expected."""
    left = list(answers)
    registered = set()

    def answer(asked: Asked) -> Said:
        if asked.path.startswith("/v1/catalog/service/"):
            return Said(["there"] if registered else [])
        said = left.pop(0) if left else Said(b"")
        if said.status == 200 and asked.path.endswith("register") and "deregister" not in asked.path:
            registered.add(1)
        if "deregister" in asked.path:
            registered.clear()
        return said

    return ScriptedConsul(answer, clock=FakeClock(skip_sleeps=True))


@pytest.mark.parametrize(
    "forgotten",
    [
        Said(b'CheckID "x" does not have associated TTL', 500),
        Said(b'Unknown check "x"', 500),
        Said(b'Unknown check ID "x"', 404),
    ],
    ids=["1.8", "1.8 with ACLs", "today"],
)
async def test_a_beat_registers_anew_where_the_agent_has_forgotten_us(forgotten: Said):
    consul = agent(Said(b""), forgotten)
    registration = await consul.registry().register(WEB)
    await registration.beat()

    writes = [each.path.rpartition("/")[0] for each in consul.asked if each.method == "PUT"]
    assert writes == ["/v1/agent/service", "/v1/agent/check/pass", "/v1/agent/service"]
    bodies = [each.json for each in consul.asked if each.json]
    assert bodies[0] == bodies[1]


async def test_a_beat_that_fails_otherwise_is_an_error_of_the_registry():
    consul = agent(Said(b""), Said(b"Permission denied", 403))
    registration = await consul.registry().register(WEB)

    with pytest.raises(ServiceDiscoveryError, match="403"):
        await registration.beat()


async def test_an_instance_that_is_unwell_beats_with_a_warning():
    consul = agent()
    registration = await consul.registry().register(Instance("web", "w", "10.0.0.1", 1, health="degraded"))
    await registration.beat()

    assert "/v1/agent/check/warn/" in consul.asked[-1].path


async def test_a_registration_without_the_right_to_it_is_a_mistake_of_the_settings():
    consul = agent(Said(b"Permission denied: Missing service:write on web", 403))

    with pytest.raises(ConfigurationError, match='needs service:write for "web"'):
        await consul.registry().register(WEB)


async def test_what_is_registered_says_the_place_and_the_times():
    consul = agent()
    settings = {"namespace": "team", "partition": "part", "deregister_after": 120.0, "datacenter": "dc2"}
    await consul.registry(lease=9.0, heartbeat=2.0, consul=settings).register(WEB)

    made = consul.asked[0]
    assert made.params == {"ns": "team", "partition": "part"}  # an agent has one datacenter
    assert (made.json["Namespace"], made.json["Partition"]) == ("team", "part")
    assert (made.json["Check"]["TTL"], made.json["Check"]["DeregisterCriticalServiceAfter"]) == ("9000ms", "120s")


async def test_a_registration_that_is_given_up_on_the_way_is_withdrawn():
    consul = ScriptedConsul(lambda asked: None if asked.path.endswith("/register") else Said([]))
    supervisor = Supervisor()
    registry = ConsulRegistry(consul, DiscoveryConfig(backend="consul"), supervisor=supervisor)
    registering = supervisor.start(registry.register(WEB), name="registering")
    await _turns(3)
    registering.cancel()
    await _turns()
    await supervisor.aclose()

    assert any("/deregister/" in each.path for each in consul.asked)


async def test_leaving_what_consul_does_not_know_is_no_error():
    consul = agent(Said(b""), Said(b'Unknown service ID "web"', 404))
    registration = await consul.registry().register(WEB)

    await registration.withdraw()


async def test_an_application_inside_this_process_is_refused():
    with pytest.raises(ConfigurationError, match="inside this process"):
        await agent().registry().register(Instance("web", "w", "x", 0, scheme="asgi", app=object()))  # type: ignore[arg-type]


@pytest.mark.spec("B37")
async def test_a_server_on_all_interfaces_is_where_the_agent_of_its_machine_says():
    consul = ScriptedConsul(lambda asked: Said({"Config": {}, "Member": {"Addr": "10.3.2.1"}}, index=None))
    mesh = ServiceMesh("web", discovery=consul.registry())
    assert mesh.life.default_address is not None

    assert await mesh.life.default_address() == "10.3.2.1"
    assert consul.asked[0].path == "/v1/agent/self"


@pytest.mark.spec("B37")
async def test_with_an_agent_elsewhere_it_is_the_interface_that_leads_there():
    try:
        expected = await routed_address("192.0.2.1", 8500)  # an address of documentation, to which nothing is sent
    except ServiceDiscoveryError:
        pytest.skip("this machine has no route to other ones")
    consul = ScriptedConsul(lambda asked: Said(b"", 500))

    assert await consul.registry(host="192.0.2.1", port=8500).own_address() == expected
    assert consul.asked == []


@pytest.mark.spec("B37")
async def test_an_agent_that_may_not_say_is_told_once_and_one_that_is_away_is_waited_for(caplog):
    denied = ScriptedConsul(lambda asked: Said(b"Permission denied", 403)).registry()
    assert await denied.own_address() == "127.0.0.1"
    assert "MESH_ADDRESS" in caplog.text

    for said in (UpstreamConnectionError("refused"), Said(b"", 500), Said([]), Said({"Member": {}})):
        with pytest.raises(ServiceDiscoveryError):
            await ScriptedConsul(lambda asked, said=said: said).registry().own_address()


# The start

LEADER = Said("10.0.0.1:8300")


@pytest.mark.parametrize(
    ("answers", "settings", "problem"),
    [
        ([Said(b"<html>", 200)], {}, "discovery.host: what answers at http://127.0.0.1:8500 is not Consul"),
        ([Said(b"nothing here", 404)], {}, "not Consul's HTTP API"),
        ([Said(b"Client sent an HTTP request to an HTTPS server.\n", 400)], {}, "discovery.tls: .* wants TLS"),
        ([LEADER, Said(b"ACL not found", 403)], {"token": "t0p"}, "discovery.token: .* does not know this token"),
        ([LEADER, Said({})], {}, "discovery.token: .* lets nobody read its services without an ACL token"),
        (
            [LEADER, Said(b'Bad request: Invalid query parameter: "ns"', 400)],
            {"consul": {"namespace": "x"}},
            'refuses to be read: .*Invalid query parameter: "ns"',
        ),
    ],
    ids=["a page", "another server", "TLS", "token", "no token", "enterprise"],
)
async def test_what_waiting_can_not_mend_is_told_at_the_start(answers: list[Said], settings: dict, problem: str):
    left = list(answers)
    registry = ScriptedConsul(lambda asked: left.pop(0)).registry(**settings)

    with pytest.raises(ConfigurationError, match=problem) as refusal:
        await registry.open()
    assert "t0p" not in str(refusal.value)


@pytest.mark.parametrize(
    "answers",
    [
        [UpstreamConnectionError("refused")],
        [Said("")],
        [Said(b"Bad Gateway", 502)],
        [LEADER, Said(b"No cluster leader", 500)],
        [LEADER, UpstreamConnectionError("cut")],
    ],
    ids=["away", "no leader", "proxy", "leader lost", "cut"],
)
async def test_what_may_mend_itself_is_no_mistake_of_the_settings(answers: list):
    left = list(answers)

    with pytest.raises(ServiceDiscoveryError):
        await ScriptedConsul(lambda asked: left.pop(0)).registry().open()


async def test_a_token_with_which_nothing_is_registered_yet_is_fine():
    left = [LEADER, Said({}), Said({})]

    await ScriptedConsul(lambda asked: left.pop(0)).registry(token="t").open()


async def test_a_closed_registry_says_so_until_it_is_opened():
    consul = ScriptedConsul(lambda asked: LEADER if "leader" in asked.path else Said({"consul": []}))
    registry = consul.registry()
    await registry.aclose()

    assert consul.closed
    with pytest.raises(ServiceDiscoveryError, match="closed"):
        await anext(registry.watch("web"))
    await registry.open()
