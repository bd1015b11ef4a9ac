"""The registrations of this process."""

from __future__ import annotations

import asyncio
import time

import pytest

from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.memory import MemoryRegistry
from fastapi_mesh.discovery.registration import OwnRegistrations
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError
from fastapi_mesh.testing.clock import FakeClock
from tests.discovery.scripted import ScriptedRegistrar, instance

pytestmark = pytest.mark.anyio

DOWN = ServiceDiscoveryError("down")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def supervisor(clock):
    supervisor = Supervisor(clock=clock)
    yield supervisor
    await supervisor.aclose()


@pytest.fixture
def registrar():
    return ScriptedRegistrar()


@pytest.fixture
def own(registrar, supervisor, clock):
    return OwnRegistrations(registrar, supervisor, clock=clock, jitter=lambda: 0.5)


async def test_an_instance_is_registered_and_beats_a_little_before_its_time(own, registrar, clock):
    assert await own.add(instance("one")) is True
    assert registrar.calls == ["register one"]

    await clock.advance(4.4)
    assert registrar.calls == ["register one"]
    await clock.advance(0.2)
    assert registrar.calls == ["register one", "beat one"]
    await clock.advance(45)
    assert registrar.calls == ["register one"] + ["beat one"] * 11
    assert own.instances == (instance("one"),)
    assert own.statistics() == {"kept": 1, "accepted": 1}


async def test_beats_spread_over_a_fifth_of_the_interval(registrar, supervisor, clock):
    for jitter, id in ((0.0, "late"), (0.999, "early")):
        await OwnRegistrations(registrar, supervisor, clock=clock, jitter=lambda value=jitter: value).add(instance(id))
    registrar.calls.clear()

    await clock.advance(4.01)
    assert registrar.calls == ["beat early"]
    await clock.advance(0.99)
    assert registrar.calls == ["beat early", "beat late"]


async def test_a_registrar_that_needs_no_beats_gets_none(own, registrar, supervisor, clock):
    registrar.interval = 0.0
    await own.add(instance("one"))
    await clock.advance(100)

    assert registrar.calls == ["register one"]
    assert supervisor.statistics()["tasks"] == 0
    await own.withdraw_all()
    assert registrar.calls == ["register one", "withdraw one"]


@pytest.mark.spec("X-57")
async def test_a_failed_first_registration_goes_on_in_the_background_and_is_visible(own, registrar, supervisor, clock):
    registrar.error = DOWN

    assert await own.add(instance("one")) is False

    assert supervisor.degraded == {"registration:users/one": "ServiceDiscoveryError: down"}
    assert own.statistics() == {"kept": 1, "accepted": 0}
    await clock.advance(300)
    registrar.error = None
    registrar.calls.clear()

    await clock.advance(10)
    assert registrar.calls[0] == "register one"
    assert supervisor.degraded == {}
    assert own.statistics() == {"kept": 1, "accepted": 1}


@pytest.mark.spec("X-57")
async def test_after_a_failed_beat_it_beats_again_at_most_ten_seconds_after_the_registry_is_back(
    own, registrar, supervisor, clock
):
    await own.add(instance("one"))
    registrar.error = DOWN
    await clock.advance(300)
    assert list(supervisor.degraded) == ["registration:users/one"]
    tries = len(registrar.calls)
    assert 300 / 10 < tries < 300 / 5 + 20, "the pauses grow, to ten seconds"

    registrar.error = None
    await clock.advance(10)

    assert registrar.calls[tries] == "beat one"
    assert supervisor.degraded == {}


async def test_a_registry_that_has_forgotten_us_knows_us_again_after_a_beat(supervisor, clock):
    registry = MemoryRegistry(clock=clock)
    own = OwnRegistrations(registry, supervisor, clock=clock)
    await own.add(instance("one"))
    await (await registry.register(instance("one"))).withdraw()
    assert await registry.instances() == ()

    await clock.advance(5)

    assert await registry.instances() == (instance("one"),)


async def test_what_trying_again_can_t_mend_is_raised_and_not_kept(own, registrar, supervisor):
    registrar.error = ConfigurationError("discovery.path: no")

    with pytest.raises(ConfigurationError, match=r"discovery.path: no"):
        await own.add(instance("one"))

    assert own.instances == ()
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


async def test_a_configuration_error_later_on_is_tried_again(own, registrar, supervisor, clock):
    await own.add(instance("one"))
    registrar.error = ConfigurationError("read-only now")
    await clock.advance(60)
    assert list(supervisor.degraded) == ["registration:users/one"]

    registrar.error = None
    await clock.advance(10)
    assert supervisor.degraded == {}


async def test_adding_does_not_wait_for_ever_for_a_registry_that_hangs(own, registrar, clock):
    registrar.hangs = True
    supervisor = Supervisor()
    adding = supervisor.start(own.add(instance("one"), timeout=5.0), name="add")
    await clock.advance(4.9)
    assert not adding.done()

    await clock.advance(0.2)

    assert await adding is False
    assert own.instances == (instance("one"),)
    await own.withdraw_all()


async def test_cancelling_the_adding_forgets_the_instance(own, registrar, supervisor):
    registrar.hangs = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await own.add(instance("one"))

    assert own.instances == ()
    assert supervisor.statistics()["tasks"] == 0


async def test_adding_the_same_id_again_replaces_the_instance(own, registrar, clock):
    await own.add(instance("one", port=8000))
    await own.add(instance("one", port=9000))

    assert own.instances == (instance("one", port=9000),)
    registrar.calls.clear()
    await clock.advance(4.6)
    assert registrar.calls == ["beat one"]


async def test_adding_the_same_id_at_once_keeps_one(own, registrar, supervisor, clock):
    await own.add(instance("one"))
    other = Supervisor()
    for task in [other.start(own.add(instance("one", port=port)), name="add") for port in (1, 2)]:
        await task

    assert own.instances == (instance("one", port=2),)
    assert supervisor.statistics()["tasks"] == 1


async def test_everything_is_withdrawn_at_once_and_only_once(own, registrar, supervisor, clock):
    await own.add(instance("one"))
    await own.add(instance("two"))
    registrar.calls.clear()

    await own.withdraw_all()
    await own.withdraw_all()
    await clock.advance(100)

    assert sorted(registrar.calls) == ["withdraw one", "withdraw two"]
    assert own.instances == ()
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}

    await own.add(instance("one"))
    assert registrar.calls[-1] == "register one"


async def test_withdrawing_never_raises_and_forgets_what_was_degraded(own, registrar, supervisor, clock, caplog):
    await own.add(instance("one"))
    registrar.error = DOWN
    await clock.advance(10)
    assert supervisor.degraded

    await own.withdraw_all()

    assert supervisor.degraded == {}
    assert (
        "registration:users/one could not be withdrawn (ServiceDiscoveryError: down); its lease ends it" in caplog.text
    )


async def test_withdrawing_does_not_wait_for_a_registry_that_hangs(own, registrar, supervisor, caplog):
    await own.add(instance("one"))
    await own.add(instance("two"))
    registrar.hangs = True

    started = time.monotonic()
    await own.withdraw_all(timeout=0.1)

    assert time.monotonic() - started < 15
    assert "did not end within 0.1 s; the lease will" in caplog.text


async def test_withdrawing_before_the_first_attempt_succeeded_leaves_nothing(own, registrar, supervisor, clock):
    registrar.error = DOWN
    await own.add(instance("one"))

    await own.withdraw_all()
    registrar.error = None
    await clock.advance(100)

    assert registrar.calls == ["register one"]
    assert supervisor.statistics() == {"tasks": 0, "degraded": 0}


async def test_withdrawing_after_the_supervisor_was_closed_is_a_log_line(own, supervisor, caplog):
    await own.add(instance("one"))
    await supervisor.aclose()

    await own.withdraw_all()

    assert "registration:users/one is not withdrawn: the supervisor is closed" in caplog.text
    with pytest.raises(RuntimeError, match="the supervisor is closed"):
        await own.add(instance("one"))
    assert own.instances == ()
