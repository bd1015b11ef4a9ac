"""Changing settings while a gateway runs: all of them or none, from a file, a config store, or code."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastapi_mesh import ServiceMesh
from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.problems import Problems
from fastapi_mesh.api_gateway.reload import Reload
from fastapi_mesh.api_gateway.routes import Route
from fastapi_mesh.configstore import Entry, LocalStore, MemoryStore
from fastapi_mesh.exceptions import ConfigStoreError, ConfigurationError
from tests.api_gateway.gateway_support import RawUpstream

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-30")]

UPSTREAM = "http://127.0.0.1:1"
Settings = Callable[[str], None]


async def ask(gateway: APIGateway, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
    """One GET through the gateway as an ASGI application: status and body."""
    sent: list[dict[str, object]] = []
    never: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    received = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, object]:
        return received.pop() if received else await never

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"gw"), *headers],
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 5000),
        "state": {},
    }
    await gateway(scope, receive, send)
    status = sent[0]["status"]
    assert isinstance(status, int)
    return status, b"".join(message.get("body", b"") for message in sent[1:])  # type: ignore[misc]  # bytes, each


def answer(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)


def document(url: str = UPSTREAM, *paths: str, extra: str = "") -> str:
    routes = "".join(f'[[routes]]\npath = "{path}"\nservice = "up"\n' for path in paths or ("/a/*",))
    extra += "" if "max_retries" in extra else "\nmax_retries = 0"
    return f'{extra}\n[services]\nup = "{url}"\n{routes}'


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture(autouse=True)
def _files_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_mesh.api_gateway.reload.POLL", 0.03)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(document())
    return path


@asynccontextmanager
async def opened(gateway: APIGateway) -> AsyncIterator[APIGateway]:
    async with gateway.opened({}):
        yield gateway


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 30.0) -> None:
    """Wait for what a watched file or store brings about in its own time."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - it watches another thread, or a file
            await asyncio.sleep(0.02)


def is_routed(gateway: APIGateway, path: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return (await ask(gateway, path))[0] != 404

    return check


# In code


async def test_what_the_file_says_now_counts_from_the_next_request_on(file: Path) -> None:
    async with (
        RawUpstream(answer(b"one")) as one,
        RawUpstream(answer(b"two")) as two,
        opened(APIGateway(config_file=str(file), watch_config=False)) as gateway,
    ):
        write(file, document(one.url, "/a/*"))
        assert await gateway.reload() == Reload(changed=("services",))
        assert await ask(gateway, "/a/x") == (200, b"one")
        write(file, document(two.url, "/b/*"))

        assert await gateway.reload() == Reload(changed=("routes", "services"))

        async def goes_to_two() -> bool:  # the list of instances follows a few turns of the loop later
            return await ask(gateway, "/b/x") == (200, b"two")

        await until(goes_to_two)
        assert (await ask(gateway, "/a/x"))[0] == 404


async def test_nothing_new_changes_nothing(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        table = gateway._table

        assert await gateway.reload() == Reload()
        assert gateway._table is table


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (document(UPSTREAM, "/b/*") + "servic = 1\n", "routes[0].servic"),
        (document(UPSTREAM, "/b/*", extra="request_timeout = -1"), "request_timeout"),
        (document("http://a/?q", "/b/*"), "services.up"),
        ('[services]\nup = "http://a:1"\n[[routes]]\npath = "/b"\nservice = "down"\n', "routes[0].service"),
        (
            '[services.up]\ninstances = ["http://a:1", "http://a:1/"]\n[[routes]]\npath="/b"\nservice="up"',
            "services.up",
        ),
        ("[[routes]\n", "is not valid TOML"),
    ],
)
async def test_wrong_settings_change_nothing_at_all(
    file: Path, text: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        before, services = gateway.config, gateway.life.mesh.fixed_services  # type: ignore[union-attr]  # it is open
        write(file, text)

        with pytest.raises(ConfigurationError, match=line.replace("[", r"\[")):
            await gateway.reload()

        assert gateway.config is before
        assert gateway.life is not None
        assert gateway.life.mesh.fixed_services == services
        assert (await ask(gateway, "/a/x"))[0] == 502, "the old route is there"
        assert (await ask(gateway, "/b"))[0] == 404
        assert "the new settings are refused, and the old ones stay in force" in caplog.text


async def test_a_refusal_is_counted_and_shown_by_health_without_values(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        write(file, document("http://internal-name/?secret"))
        with pytest.raises(ConfigurationError):
            await gateway.reload()

        status, body = await ask(gateway, "/health")
        note = json.loads(body)["details"]["config"]
        assert (status, note["reload"], note["problems"]) == (200, "refused", 1)
        assert note["settings"] == ["services.up.instances[0] (line 4)"]
        assert b"internal-name" not in body
        metrics = (await ask(gateway, "/metrics"))[1].decode()
        assert 'gateway_config_reloads_total{result="refused"} 1.0' in metrics
        assert "gateway_config_last_reload_successful 0.0" in metrics

        write(file, document(UPSTREAM, "/b/*"))
        await gateway.reload()

        assert "details" not in json.loads((await ask(gateway, "/health"))[1])
        metrics = (await ask(gateway, "/metrics"))[1].decode()
        assert 'gateway_config_reloads_total{result="applied"} 1.0' in metrics
        assert "gateway_config_last_reload_successful 1.0" in metrics


async def test_what_belongs_to_the_server_is_kept_and_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        write(file, document(UPSTREAM, "/b/*", extra='port = 9999\nssl_cert = "/c.pem"\nworkers = 4\nvia = "new"'))

        outcome = await gateway.reload()

        assert outcome == Reload(changed=("routes", "via"), kept=("port", "ssl_cert", "workers"))
        assert (gateway.config.port, gateway.config.ssl_cert, gateway.config.workers) == (8080, None, 1)
        assert "keep their values until it is restarted: port, ssl_cert, workers" in caplog.text


async def test_what_is_given_in_code_or_in_variables_keeps_winning(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_GATEWAY__MAX_RETRIES", "2")
    async with opened(APIGateway(config_file=str(file), watch_config=False, request_timeout=9)) as gateway:
        write(file, document(UPSTREAM, "/b/*", extra="request_timeout = 60\nmax_retries = 5\nretry_backoff = 3"))

        await gateway.reload()

        config = gateway.config
        assert (config.request_timeout, config.max_retries, config.retry_backoff) == (9.0, 2, 3.0)


async def test_a_change_in_code_during_a_reload_is_not_lost(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        write(file, document(UPSTREAM, "/a/*", extra="retry_backoff = 3"))
        reload = asyncio.ensure_future(gateway.reload())  # noqa: TID251 - the test's own
        await asyncio.sleep(0)  # it has begun to load, in its thread
        gateway.configure_routes([{"path": "/c/*", "service": "up"}])

        await reload

        assert gateway.config.retry_backoff == 3.0
        assert [route.path for route in gateway.config.routes] == ["/c/*"]


async def test_many_reloads_at_once_are_done_one_after_the_other(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        write(file, document(UPSTREAM, "/b/*"))

        outcomes = await asyncio.gather(*[gateway.reload() for _ in range(5)])

        assert sorted(len(each.changed) for each in outcomes) == [0, 0, 0, 0, 1]


async def test_a_request_under_way_keeps_its_route(file: Path) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await go_on.wait()
        writer.write(answer(b"old"))

    async with RawUpstream(slow) as upstream:
        write(file, document(upstream.url, "/a/*"))
        async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
            asked = asyncio.ensure_future(ask(gateway, "/a/x"))  # noqa: TID251 - the test's own
            await arrived.wait()
            write(file, '[services]\nother = "http://127.0.0.1:1"\n[[routes]]\npath = "/b/*"\nservice = "other"\n')
            await gateway.reload()
            go_on.set()

            assert await asked == (200, b"old")
            assert (await ask(gateway, "/a/x"))[0] == 404


async def test_prefix_and_trusted_proxies_change_live(file: Path) -> None:
    async with RawUpstream(answer(b"ok")) as upstream:
        write(file, document(upstream.url, "/a/*"))
        async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
            client = (b"x-forwarded-for", b"9.9.9.9")
            await ask(gateway, "/a/x", client)
            write(file, document(upstream.url, "/a/*", extra='prefix = "/gw"\ntrusted_proxies = "127.0.0.0/8"'))
            await gateway.reload()

            assert (await ask(gateway, "/a/x"))[0] == 404
            assert (await ask(gateway, "/gw/a/x", client))[0] == 200
            assert b"x-forwarded-for: 127.0.0.1\r\n" in upstream.received[0].lower()
            assert b"x-forwarded-for: 9.9.9.9, 127.0.0.1\r\n" in upstream.received[1].lower()


async def test_a_service_that_is_gone_leaves_the_mesh_and_gives_its_policy_back(file: Path) -> None:
    mesh = ServiceMesh("m", discovery_backend="static", enable_service_discovery=False)
    default = mesh.policy_of("extra")
    extra = '[services.extra]\ninstances = "http://127.0.0.1:2"\nload_balancing = "least_connections"\n'
    write(file, document() + extra + "circuit_breaker = { failure_threshold = 2 }\n")
    async with opened(APIGateway(config_file=str(file), watch_config=False, service_mesh=mesh)) as gateway:
        assert mesh.fixed_services == ("extra", "up")
        assert mesh.policy_of("extra").circuit_breaker.failure_threshold == 2  # type: ignore[union-attr]  # it is on

        write(file, document() + extra)
        await gateway.reload()
        assert mesh.policy_of("extra").circuit_breaker == default.circuit_breaker
        assert mesh.policy_of("extra").load_balancing.strategy == "least_connections"

        write(file, document())
        await gateway.reload()
        assert mesh.fixed_services == ("up",)
        assert mesh.policy_of("extra") == default


async def test_a_closed_gateway_can_be_reloaded_too(file: Path) -> None:
    gateway = APIGateway(config_file=str(file))
    write(file, document(UPSTREAM, "/b/*"))

    assert (await gateway.reload()).changed == ("routes",)


# The file


async def test_a_changed_file_is_taken_over_by_itself(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file))) as gateway:
        write(file, document(UPSTREAM, "/b/*"))

        await until(is_routed(gateway, "/b/x"))


async def test_a_file_that_changes_before_the_gateway_opens_is_taken_over(file: Path) -> None:
    gateway = APIGateway(config_file=str(file))
    write(file, document(UPSTREAM, "/b/*"))
    async with opened(gateway):
        await until(is_routed(gateway, "/b/x"))


async def test_a_file_that_is_replaced_is_taken_over(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file))) as gateway:
        new = file.with_name("new.toml")
        write(new, document(UPSTREAM, "/b/*"))
        os.replace(new, file)

        await until(is_routed(gateway, "/b/x"))


async def test_the_file_that_a_variable_names_is_watched_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CONFIG_FILE", str(file))
    monkeypatch.setenv("MESH_DISCOVERY__BACKEND", "memory")
    async with opened(APIGateway()) as gateway:
        write(file, document(UPSTREAM, "/b/*"))

        await until(is_routed(gateway, "/b/x"))


async def test_a_file_that_is_wrong_for_a_while_or_gone_is_waited_for(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(APIGateway(config_file=str(file))) as gateway:

        async def logged(text: str) -> None:
            async def check() -> bool:
                return text in caplog.text

            await until(check)

        write(file, document()[:-10])
        await logged("are refused")
        os.unlink(file)
        await logged("is gone; what it said stays in force")
        assert (await ask(gateway, "/a/x"))[0] == 502
        write(file, document(UPSTREAM, "/b/*"))
        await until(is_routed(gateway, "/b/x"))


async def test_a_file_is_not_watched_where_that_is_switched_off(file: Path) -> None:
    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        assert gateway._reloads._tasks == []


# The config store


async def test_a_store_counts_over_the_file_and_its_changes_are_taken_over(file: Path) -> None:
    write(file, document(UPSTREAM, "/a/*", extra="retry_backoff = 4"))
    store = MemoryStore({"gateway.toml": '[[routes]]\npath = "/b/*"\nservice = "up"\n'})
    gateway = APIGateway(config_file=str(file))
    gateway.use_config_store(store, "gateway.toml")
    async with opened(gateway):
        assert (await ask(gateway, "/b/x"))[0] == 502, "from the first request on"
        assert gateway.config.retry_backoff == 4.0

        await store.put("gateway.toml", '[[routes]]\npath = "/c/*"\nservice = "up"\n')
        await until(is_routed(gateway, "/c/x"))
        assert (await ask(gateway, "/b/x"))[0] == 404


async def test_what_is_wrong_in_a_store_is_refused_and_what_is_gone_stays(caplog: pytest.LogCaptureFixture) -> None:
    good = {"services": {"up": UPSTREAM}, "routes": [{"path": "/a/*", "service": "up"}], "max_retries": 0}
    store = MemoryStore({"gateway": good})
    gateway = APIGateway()
    gateway.use_config_store(store)
    async with opened(gateway):

        async def logged(text: str) -> None:
            async def check() -> bool:
                return text in caplog.text

            await until(check)

        await store.put("gateway", {**good, "routes": [{"path": "/a/*", "service": "up", "methodes": ["GET"]}]})
        await logged("routes[0].methodes (config store, 'gateway'): unknown key - did you mean 'methods'?")
        await store.put("gateway", "{")
        await logged("is not valid JSON")
        await store.delete("gateway")
        await logged("the config store has no 'gateway' any more; what it said stays in force")
        assert (await ask(gateway, "/a/x"))[0] == 502
        await gateway.reload()
        assert (await ask(gateway, "/a/x"))[0] == 502


async def test_a_store_with_wrong_settings_fails_the_start() -> None:
    gateway = APIGateway()
    gateway.use_config_store(MemoryStore({"gateway": {"prt": 1}}))

    with pytest.raises(ConfigurationError, match=r"prt \(config store, 'gateway'\): unknown key - did you mean 'port'"):
        async with opened(gateway):
            pass
    assert gateway.life is None


class Unreachable:
    """A store that answers from the third question on."""

    def __init__(self) -> None:
        self.asked = 0

    async def get(self, key: str) -> Entry | None:
        self.asked += 1
        if self.asked < 3:
            raise ConfigStoreError("connection refused")
        return Entry(key, json.dumps({"services": {"up": UPSTREAM}, "routes": [{"path": "/a", "service": "up"}]}), "1")

    async def watch(self, key: str) -> AsyncIterator[Entry | None]:
        yield await self.get(key)
        await asyncio.Event().wait()


async def test_a_store_that_does_not_answer_is_waited_for_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    gateway = APIGateway()
    gateway.use_config_store(Unreachable())
    async with opened(gateway):
        assert "the config store does not answer yet (connection refused)" in caplog.text
        await until(is_routed(gateway, "/a"))


async def test_the_local_store_is_named_in_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    settings = {"backend": "local", "path": str(path), "key": "edge.toml", "poll_interval": 0.02}
    async with LocalStore(path) as store:
        await store.put("edge.toml", document(UPSTREAM, "/a/*"))
        async with opened(APIGateway(config_store=settings)) as gateway:
            assert (await ask(gateway, "/a/x"))[0] == 502
            await store.put("edge.toml", document(UPSTREAM, "/b/*"))
            await until(is_routed(gateway, "/b/x"))


async def test_a_folder_is_named_in_the_settings(tmp_path: Path) -> None:
    write(tmp_path / "gateway.yaml", f"services: {{up: '{UPSTREAM}'}}\nroutes: [{{path: /a, service: up}}]\n")
    settings = {"backend": "file", "path": str(tmp_path), "key": "gateway.yaml", "poll_interval": 0.02}
    async with opened(APIGateway(config_store=settings)) as gateway:
        assert (await ask(gateway, "/a"))[0] == 502


# Again and again


@pytest.mark.parametrize("times", [100, pytest.param(500, marks=pytest.mark.soak)])
async def test_reloads_again_and_again_leave_nothing_behind(file: Path, times: int) -> None:
    def of(kind: type) -> int:
        return sum(isinstance(each, kind) for each in gc.get_objects())

    async with opened(APIGateway(config_file=str(file), watch_config=False)) as gateway:
        assert gateway.life is not None
        mesh = gateway.life.mesh
        counts = []
        for number in range(times):
            name = f"service-{number}"
            write(
                file,
                document(UPSTREAM, "/a/*", f"/v{number}/*", extra=f"retry_backoff = {1 + number / 100}")
                + f'[services.{name}]\ninstances = "{UPSTREAM}"\nbulkhead = {{ max_concurrent = 3 }}\n'
                + f'[[routes]]\npath = "/s/*"\nservice = "{name}"\n',
            )
            await gateway.reload()
            await ask(gateway, "/a/x")
            if number in (9, times - 1):
                gc.collect()
                counts.append((of(Route), of(Problems), len(mesh.policies._policies), mesh.supervisor.statistics()))
        assert counts[0] == counts[1]
        assert mesh.fixed_services == (f"service-{times - 1}", "up")
