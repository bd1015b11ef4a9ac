"""The registry of one machine: several processes, crashes, boots, damaged and forbidden files."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import re
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.base import Registration
from fastapi_mesh.discovery.local import LocalRegistry, default_path
from fastapi_mesh.discovery.local_database import APPLICATION_ID, SCHEMA_VERSION
from fastapi_mesh.discovery.local_file import RegistryFile
from fastapi_mesh.exceptions import ConfigurationError, MeshError, ServiceDiscoveryError
from fastapi_mesh.testing.clock import FakeClock
from tests.contracts.backends import Seen
from tests.support.process import Processes

pytestmark = [pytest.mark.anyio, pytest.mark.spec("B38")]

NODE = Path(__file__).with_name("local_node.py")
REGISTERED = re.compile("registered")

OpenRegistry = Callable[..., LocalRegistry]


@pytest.fixture
async def registry_at(tmp_path: Path) -> AsyncIterator[OpenRegistry]:
    """Makes registries with short times in the test's folder, and closes them."""
    made: list[LocalRegistry] = []

    def make(path: Path | None = None, **settings: object) -> LocalRegistry:
        times = {"lease": 5.0, "heartbeat": 0.1, "poll_interval": 0.02}
        made.append(LocalRegistry(path or tmp_path / "registry.db", **{**times, **settings}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for registry in made:
        await registry.aclose()


def instance(number: int = 1, service: str = "users") -> Instance:
    return Instance(service, f"{service}-{number}", "127.0.0.1", 8000 + number)


def execute(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values)


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


async def healed(registry: LocalRegistry, other: LocalRegistry, registration: Registration) -> None:
    """Wait until beats have put the instance back where a registry that opens the file now finds it."""
    async with asyncio.timeout(20):
        while True:
            with suppress(ServiceDiscoveryError, ConfigurationError):
                await registration.beat()
                await registry.instances()
                if ids(await other.instances()) == ["users-1"]:
                    return
            await asyncio.sleep(0.05)


def ids(instances: tuple[Instance, ...]) -> list[str]:
    return [each.id for each in instances]


# Several processes


async def test_processes_that_make_the_file_at_once_see_each_other_and_a_killed_one_vanishes_by_itself(
    registry_at, processes: Processes
):
    registry = registry_at(lease=15.0, heartbeat=5.0)
    command = [sys.executable, str(NODE), str(registry.path), "default"]
    names = ["crashing", "staying-1", "staying-2", "staying-3"]
    children = [
        processes.start([*command, name, str(9000 + number), "2.0", "0.2"], name=name)
        for number, name in enumerate(names)
    ]
    for child in children:
        await child.ready(REGISTERED)
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: ids(now) == names)

        children[0].kill()
        await seen.until(lambda now: ids(now) == names[1:])
    for child in children[1:]:
        child.kill()


async def test_a_process_restarted_on_its_port_takes_over_at_once(registry_at, processes: Processes):
    registry = registry_at()
    command = [sys.executable, str(NODE), str(registry.path), "default"]
    async with Seen(registry, "users") as seen:
        first = await processes.start([*command, "first", "9001", "60", "0.2"], name="first").ready(REGISTERED)
        await seen.until(lambda now: ids(now) == ["first"])
        first.kill()

        again = await processes.start([*command, "again", "9001", "60", "0.2"], name="again").ready(REGISTERED)

        await seen.until(lambda now: ids(now) == ["again"])
        again.kill()


def test_many_may_open_a_file_that_is_being_made(tmp_path):
    problems: list[Exception] = []

    def open_at(path: Path, barrier: threading.Barrier) -> None:
        file = RegistryFile(path, "default", now=time.monotonic, boot="")
        barrier.wait()
        try:
            file.read()
        except MeshError as error:
            problems.append(error)
        file.close()

    for attempt in range(40):
        barrier = threading.Barrier(4)
        threads = [
            threading.Thread(target=open_at, args=(tmp_path / f"{attempt}.db", barrier)) for _ in range(barrier.parties)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert problems == []


async def test_namespaces_do_not_see_each_other(registry_at):
    blue, green = registry_at(namespace="blue"), registry_at(namespace="green")

    await blue.register(instance(1))
    await green.register(instance(2))  # another id, and the same service
    await green.register(Instance("orders", "o", "127.0.0.1", 8001))  # the same port as in the other namespace

    assert ids(await blue.instances()) == ["users-1"]
    assert ids(await green.instances()) == ["o", "users-2"]
    assert await green.services() == ("orders", "users")


# Time


async def test_a_jump_of_the_wall_clock_changes_nothing_and_only_monotonic_time_ends_a_lease(registry_at):
    clock = FakeClock()
    registry = registry_at(lease=15.0, heartbeat=5.0, clock=clock)
    registration = await registry.register(instance())

    await clock.advance(14.5)
    assert ids(await registry.instances()) == ["users-1"]
    await registration.beat()
    await clock.advance(14.5)
    assert ids(await registry.instances()) == ["users-1"]
    await clock.advance(1)
    assert await registry.instances() == ()


async def test_rows_of_an_earlier_boot_are_dead_and_purged(registry_at):
    registry = registry_at()
    registration = await registry.register(instance(1))
    execute(registry.path, "UPDATE instances SET boot = 'earlier', expires = expires + 0.1")

    assert await registry_at().instances() == ()
    await registry.register(instance(2))
    with closing(sqlite3.connect(registry.path)) as connection:
        assert connection.execute("SELECT id FROM instances").fetchall() == [("users-2",)]
    await registration.beat()
    assert ids(await registry.instances()) == ["users-1", "users-2"]


async def test_without_a_boot_id_a_lease_that_ends_too_late_to_be_of_this_boot_is_dead(registry_at):
    before = registry_at(clock=FakeClock(start=100_000.0))
    await before.register(instance(1))

    after_the_boot = registry_at(clock=FakeClock(start=30.0))

    assert await after_the_boot.instances() == ()


async def test_expired_rows_are_purged_by_whoever_writes(registry_at):
    clock = FakeClock()
    dying, writing = registry_at(clock=clock), registry_at(clock=clock)
    await dying.register(instance(1))
    registration = await writing.register(instance(2))

    await clock.advance(10)
    await registration.beat()

    with closing(sqlite3.connect(writing.path)) as connection:
        assert connection.execute("SELECT id FROM instances").fetchall() == [("users-2",)]


# The poller


async def test_watchers_share_one_poller_and_none_polls_without_watchers(registry_at):
    clock = FakeClock()
    registry = registry_at(poll_interval=0.2, clock=clock)
    async with Seen(registry, "users") as one, Seen(registry, "orders") as two, Seen(registry, "users") as three:
        for seen in (one, two, three):
            await seen.until(lambda now: now == ())
        before = registry.statistics()["polls"]
        for _ in range(10):
            await clock.advance(0.2)
            await asyncio.sleep(0.01)  # for the thread that reads
        polls = registry.statistics()["polls"] - before
        assert 5 <= polls <= 10

    before = registry.statistics()["polls"]
    await clock.advance(10)
    await asyncio.sleep(0.01)
    assert registry.statistics()["polls"] == before


async def test_the_watcher_that_polls_can_leave_without_the_others_noticing(registry_at):
    registry = registry_at()
    async with Seen(registry, "users") as staying:
        await staying.until(lambda now: now == ())
        for number in range(1, 6):
            async with Seen(registry, "users") as going:
                await going.until(lambda now, number=number: len(now) == number - 1)
                await registry.register(instance(number))
            await staying.until(lambda now, number=number: len(now) == number)


async def test_a_change_by_hand_is_seen_and_an_unreadable_row_is_left_out(registry_at, caplog):
    registry = registry_at(lease=30.0)
    await registry.register(instance(1))
    await registry.register(instance(2))
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: len(now) == 2)

        execute(registry.path, "UPDATE instances SET document = '{}' WHERE id = 'users-1'")
        await seen.until(lambda now: ids(now) == ["users-2"])

        execute(registry.path, "DELETE FROM instances")
        await seen.until(lambda now: now == ())
    assert [record.message for record in caplog.records] == [
        "ignoring an instance in the registry: row 'users-1' of 'users' is unreadable: KeyError: 'scheme'"
    ]


# The file


async def test_the_file_and_its_folder_are_made_and_nobody_else_can_read_them(registry_at, tmp_path):
    registry = registry_at(tmp_path / "a" / "b" / "registry.db")
    await registry.register(instance())

    assert stat.S_IMODE(registry.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(registry.path.with_name("registry.db-wal").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"XDG_STATE_HOME": "/state"}, "linux", "/state/fastapi-mesh/registry.db"),
        ({"XDG_STATE_HOME": "relative"}, "linux", "~/.local/state/fastapi-mesh/registry.db"),
        ({}, "linux", "~/.local/state/fastapi-mesh/registry.db"),
        ({"XDG_STATE_HOME": "/state"}, "darwin", "~/Library/Application Support/fastapi-mesh/registry.db"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/fastapi-mesh/registry.db"),
        ({}, "win32", "~/AppData/Local/fastapi-mesh/registry.db"),
    ],
)
def test_the_default_place_is_the_user_s_state_folder(environment, platform, expected):
    assert default_path(environment, platform) == Path(expected).expanduser()


def test_a_tilde_in_the_path_is_the_home_folder():
    assert LocalRegistry("~/x/registry.db").path == Path.home() / "x" / "registry.db"
    with pytest.raises(ConfigurationError, match=r"discovery\.path: .* needs a home folder"):
        LocalRegistry("~no-such-user-here/registry.db")


OUR_HEADER = (b"SQLite format 3\x00".ljust(68, b"\x00")) + APPLICATION_ID.to_bytes(4, "big")
DAMAGED = [
    pytest.param(OUR_HEADER, id="cut off"),
    pytest.param(OUR_HEADER + b"\x00" * 8120, id="zeros"),
    pytest.param(OUR_HEADER + os.urandom(8120), id="random after the header"),
]
NOT_OURS = [
    pytest.param(b"x", id="one byte"),
    pytest.param(b'[project]\nname = "shop"\n', id="short text"),
    pytest.param(b"this was never a registry\n" * 200, id="long text"),
    pytest.param(b"\x00" * 8192, id="zeros"),
    pytest.param(b"SQLite format 3\x00" + b"\x01" * 8192, id="another one's damaged database"),
]


@pytest.mark.parametrize("garbage", DAMAGED)
async def test_a_damaged_file_is_moved_aside_loudly_and_made_anew(registry_at, tmp_path, caplog, garbage):
    path = tmp_path / "registry.db"
    path.write_bytes(garbage)
    registry = registry_at(path)

    await registry.register(instance())

    assert ids(await registry_at(path).instances()) == ["users-1"]
    (aside,) = tmp_path.glob("registry.db.corrupt-*")
    assert aside.read_bytes() == garbage
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(aside.name) in record.message


@pytest.mark.parametrize("content", NOT_OURS)
async def test_a_file_that_is_not_a_registry_is_refused_and_left_alone(registry_at, tmp_path, content):
    path = tmp_path / "pyproject.toml"
    path.write_bytes(content)
    registry = registry_at(path)

    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"discovery\.path: .*pyproject.toml is not a registry"):
            await registry.open()

    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["pyproject.toml"]


async def test_an_empty_file_is_taken(registry_at, tmp_path):
    (tmp_path / "registry.db").touch()

    await registry_at().register(instance())

    assert ids(await registry_at().instances()) == ["users-1"]
    assert list(tmp_path.glob("registry.db.corrupt-*")) == []


async def test_what_is_no_regular_file_is_refused(registry_at, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ConfigurationError, match=r"discovery\.path: the registry .* is not a regular file"):
            await registry_at(path).open()
    with pytest.raises(ConfigurationError, match=r"discovery\.path: the registry .* is a folder"):
        await registry_at(tmp_path).open()


@pytest.mark.parametrize("length", [0, 100, 4096, 5000])
async def test_a_registry_cut_off_while_in_use_is_made_anew(registry_at, length):
    registry = registry_at()
    registration = await registry.register(instance())

    os.truncate(registry.path, length)
    await healed(registry, registry_at(), registration)


async def test_a_registry_overwritten_while_in_use_is_made_anew(registry_at):
    registry = registry_at()
    registration = await registry.register(instance())

    with registry.path.open("r+b") as file:
        file.write(os.urandom(registry.path.stat().st_size))
    await healed(registry, registry_at(), registration)


async def test_only_one_process_repairs_at_a_time(registry_at, tmp_path, monkeypatch):
    monkeypatch.setattr("fastapi_mesh.discovery.local_database.BUSY_TIMEOUT", 0.2)
    (tmp_path / "registry.db").write_bytes(OUR_HEADER + b"\x01" * 5000)
    registry = registry_at()
    with (tmp_path / "registry.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServiceDiscoveryError, match="is being repaired by another process"):
            await registry.open()
        (tmp_path / "registry.db").unlink()  # what the other process does

    await registry.open()

    assert list(tmp_path.glob("registry.db.corrupt-*")) == []


async def test_a_damaged_file_that_can_t_be_moved_is_a_configuration_error(registry_at, tmp_path):
    (tmp_path / "registry.db").write_bytes(OUR_HEADER + b"\x01" * 5000)
    (tmp_path / "registry.db.lock").mkdir()

    with pytest.raises(ConfigurationError, match=r"is damaged \(file is not a database\) and can't be moved aside"):
        await registry_at().open()


async def test_a_file_whose_journal_can_t_be_switched_yet_is_waited_for(registry_at):
    registry = registry_at()
    await registry.open()
    await registry.aclose()
    execute(registry.path, "PRAGMA journal_mode = DELETE")
    supervisor = Supervisor()
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM instances").fetchall()
        opening = supervisor.start(registry.open(), name="open")
        await asyncio.sleep(0.1)
        assert not opening.done()
        reader.execute("ROLLBACK")

    async with asyncio.timeout(20):
        await opening


async def test_a_file_damaged_while_in_use_is_made_anew_and_filled_by_beats(registry_at, tmp_path, caplog):
    registry, other = registry_at(heartbeat=0.8), registry_at()
    mine, theirs = await registry.register(instance(1)), await other.register(instance(2))
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: len(now) == 2)
        for ending in ("-wal", "-shm"):
            (tmp_path / f"registry.db{ending}").unlink()
        replacement = tmp_path / "replacement"
        replacement.write_bytes(b"\x01" * 20_000)
        replacement.rename(registry.path)

        await mine.beat()
        await theirs.beat()
        await asyncio.sleep(1.1)  # until the lists of the new file count

        assert ids(await registry_at().instances()) == ["users-1", "users-2"]
    assert [len(each) for each in seen.lists] == [2], "watchers saw nobody vanish"


async def test_a_damaged_page_found_by_a_write_is_repaired_by_the_next_try(registry_at, tmp_path):
    registry = registry_at()
    registration = await registry.register(instance(1))
    await registry.aclose()
    content = bytearray(registry.path.read_bytes())
    content[4096 * 1 :] = os.urandom(len(content) - 4096)  # all pages but the first, which has the schema
    registry.path.write_bytes(content)
    await registry.open()

    await registration.beat()

    assert ids(await registry.instances()) == ["users-1"]
    assert len(list(tmp_path.glob("registry.db.corrupt-*"))) >= 1


async def test_watchers_keep_their_list_for_a_heartbeat_when_the_file_was_deleted(registry_at, tmp_path, caplog):
    registry = registry_at(heartbeat=0.8)
    registration = await registry.register(instance(1))
    await registry.register(instance(2))
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: len(now) == 2)
        for path in tmp_path.glob("registry.db*"):
            path.unlink()

        await asyncio.sleep(0.15)  # several polls
        await registration.beat()  # the other one does not

        await seen.until(lambda now: ids(now) == ["users-1"])
    assert [ids(each) for each in seen.lists] == [["users-1", "users-2"], ["users-1"]]
    assert registry.statistics()["opened"] == 2


async def test_a_file_of_a_later_schema_is_refused(registry_at):
    registry = registry_at()
    await registry.open()
    await registry.aclose()
    execute(registry.path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    with pytest.raises(
        ConfigurationError, match=r"made by a later version of fastapi-mesh \(schema 2, this one knows 1\)"
    ):
        await registry.open()


async def test_a_database_of_something_else_is_refused_and_left_alone(registry_at, tmp_path):
    path = tmp_path / "app.db"
    execute(path, "CREATE TABLE orders (id INTEGER)")
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match=r"discovery\.path: the registry .* is a SQLite database of something"):
        await registry_at(path).open()

    assert path.read_bytes() == before


async def test_a_path_that_can_t_be_used_is_a_configuration_error(registry_at, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (
        tmp_path,
        tmp_path / "file" / "registry.db",
        Path("/proc/registry.db"),
        Path("/dev/null/x/registry.db"),
    ):
        with pytest.raises(ConfigurationError, match=r"discovery\.path: the registry .* choose another file"):
            await registry_at(path).open()


async def test_a_read_only_file_or_folder_is_a_configuration_error(registry_at, tmp_path):
    (tmp_path / "probe").touch(mode=0o400)
    if os.access(tmp_path / "probe", os.W_OK):
        pytest.skip("this user may write everywhere (root)")
    registry = registry_at(tmp_path / "folder" / "registry.db")
    await registry.open()
    await registry.aclose()
    for path, mode in ((registry.path, 0o400), (registry.path.parent, 0o500)):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="can't be written by this user"):
            await registry.open()
        path.chmod(before)


async def test_a_locked_file_is_a_failure_that_passes(registry_at, monkeypatch):
    monkeypatch.setattr("fastapi_mesh.discovery.local_database.BUSY_TIMEOUT", 0.2)
    registry = registry_at()
    registration = await registry.register(instance())
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert ids(await registry_at().instances()) == ["users-1"], "a writer does not hold up readers"

        with pytest.raises(ServiceDiscoveryError, match="is locked by another process"):
            await registration.beat()

        connection.execute("ROLLBACK")
    await registration.beat()
    assert ids(await registry.instances()) == ["users-1"]


async def test_a_watch_raises_what_is_wrong_and_works_when_called_again(registry_at, tmp_path):
    folder = tmp_path / "folder"
    registry = registry_at(folder / "registry.db")
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: now == ())
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("in the way")
        with pytest.raises(ConfigurationError, match="can't be made"):
            await seen.until(lambda now: len(now) == 1)
    folder.unlink()

    await registry.register(instance())

    assert ids(await anext(registry.watch("users"))) == ["users-1"]


# Life


async def test_nothing_is_left_open_after_aclose_and_open_starts_again(registry_at):
    registry = registry_at()
    async with registry:
        registration = await registry.register(instance())
        assert ids(await registry.instances()) == ["users-1"]
    await registry.open()
    async with Seen(registry, "users") as seen:
        await seen.until(lambda now: len(now) == 1)
        await registry.aclose()
        with pytest.raises(ServiceDiscoveryError, match="is closed"):
            await seen.until(lambda now: False)
    assert not [target for target in open_files() if str(registry.path) in target]
    gc.collect()  # an unclosed connection would warn here

    with pytest.raises(ServiceDiscoveryError, match="is closed"):
        await registration.beat()
    await registry.aclose()

    await registry.open()
    await registration.beat()
    assert ids(await registry.instances()) == ["users-1"]


async def test_a_registration_whose_caller_is_cancelled_does_not_stay(registry_at):
    registry = registry_at(lease=30.0)
    await registry.open()
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # so that the write is on its way when its caller gives up
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await registry.register(instance())
        connection.execute("ROLLBACK")

    assert await registry.instances() == ()


async def test_an_application_of_this_process_can_t_be_registered_for_others(registry_at):
    async def app(scope, receive, send):
        """An ASGI application."""

    with pytest.raises(ConfigurationError, match=r"which other processes can't call; give it to services="):
        await registry_at().register(Instance("users", "1", "users", 80, scheme="asgi", app=app))


def test_it_uses_its_own_application_id():
    assert APPLICATION_ID.to_bytes(4, "big") == b"FMes"


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="poll_interval: 0 is not a positive number"):
        LocalRegistry("x", poll_interval=0)
    with pytest.raises(ConfigurationError, match="namespace: ''"):
        LocalRegistry("x", namespace="")
