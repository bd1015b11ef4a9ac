"""The access log: one line per request, that says what the client got and gives no secret away."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.api_gateway import APIGateway
from fastapi_mesh.api_gateway.access_lines import AccessLines, logfmt
from fastapi_mesh.api_gateway.access_log import own_handlers
from fastapi_mesh.api_gateway.auth import APIKeyAuthProvider
from fastapi_mesh.config.edge.logging import AccessLogConfig
from fastapi_mesh.exceptions import ConfigurationError
from fastapi_mesh.observability.logging import JsonFormatter
from tests.api_gateway.gateway_support import RawUpstream, gateway_to, request, serving, talk
from tests.api_gateway.transform_support import Echo, client_of, new_gateway

pytestmark = pytest.mark.anyio

NAME = "fastapi_mesh.gateway.access"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, NAME)

    def read() -> list[dict[str, object]]:
        return [record.access for record in caplog.records if record.name == NAME]  # type: ignore[attr-defined]

    return read


@pytest.mark.spec("S-065", "S-024", "X-56")
async def test_a_line_says_who_asked_for_what_and_what_became_of_it(lines) -> None:
    gateway = new_gateway(Echo(b"hello"), access_log=True)
    async with client_of(gateway) as client:
        answer = await client.get("/api/x?page=2&api_key=s3cret")

    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert 0 < float(str(line.pop("duration_ms"))) < 5000
    assert line.pop("instance")
    assert line == {
        "client": "192.0.2.7",
        "method": "GET",
        "path": "/api/x?page=2&api_key=***",
        "route": "/api/*",
        "service": "up",
        "request_id": answer.headers["x-request-id"],
        "status": 200,
        "bytes": 5,
        "attempts": 1,
    }


@pytest.mark.spec("S-065", "X-56")
async def test_refusals_have_their_reason_whoever_refused(lines) -> None:
    gateway = new_gateway(
        Echo(), access_log="json", route={"methods": ["GET"], "fault": {"abort": {"status": 503, "percent": 100}}}
    )
    async with client_of(gateway) as client:
        for method, path in (("GET", "/api/x"), ("POST", "/api/x"), ("GET", "/nowhere"), ("GET", "/api/%2e%2e/x")):
            await client.request(method, path)

    said = [(line["status"], line.get("reason"), line["path"], line["route"]) for line in lines()]
    assert said == [
        (503, "fault-injected", "/api/x", "/api/*"),
        (405, "method-not-allowed", "/api/x", "__unmatched__"),
        (404, "no-route", "/nowhere", "__unmatched__"),
        (400, "ambiguous-path", "/api/%2e%2e/x", "__unmatched__"),
    ]
    assert all(line["bytes"] for line in lines())


@pytest.mark.spec("X-56")
async def test_who_was_authenticated_is_said_and_the_parameter_of_its_key_is_hidden(lines) -> None:
    gateway = new_gateway(Echo(), access_log=True, route={"auth_required": True})
    gateway.configure_auth([APIKeyAuthProvider(api_key_query="k3y", keys={"shop": "a-key-of-the-shop-0123456789"})])
    async with client_of(gateway) as client:
        answer = await client.get("/api/x?a=1&k3y=a-key-of-the-shop-0123456789")
        await client.get("/api/x?a=1&k3y=wrong")
        await client.get("/nowhere?a=1&k3y=a-key-of-the-shop-0123456789")

    known, unknown, early = lines()
    assert (answer.status_code, known["principal"], known["path"]) == (200, "shop", "/api/x?a=1")
    assert (unknown["status"], "principal" in unknown, unknown["path"]) == (401, False, "/api/x?a=1")
    assert (early["status"], early["path"]) == (404, "/nowhere?a=1&k3y=***")


async def test_a_client_that_leaves_is_499_and_a_service_that_breaks_off_is_named(
    lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, logged = asyncio.Event(), asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record):
            logged.set()

    monkeypatch.setattr(logging.getLogger(NAME), "handlers", [Heard()])

    async def never(reader, writer):
        asked.set()
        await reader.read()

    async def half(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await writer.drain()

    async with RawUpstream(never) as upstream, serving(gateway_to(upstream.url, access_log=True)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /api/x"))
        async with asyncio.timeout(20):
            await asked.wait()
            writer.close()
            await logged.wait()
        upstream.answer = half
        await talk(port, request("POST /api/x", "Content-Length: 0"))

    assert [(line["status"], line["reason"]) for line in lines()] == [
        (499, "client-disconnected"),
        (200, "truncated-response"),
    ]
    assert lines()[1]["bytes"] == 4


async def test_a_head_request_is_nothing_unusual(lines) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
    async with RawUpstream(answer) as upstream, serving(gateway_to(upstream.url, access_log=True)) as port:
        await talk(port, request("HEAD /api/x"))

    assert [(line["status"], line["bytes"], line.get("reason")) for line in lines()] == [(200, 0, None)]


@pytest.mark.spec("S-024")
async def test_requests_and_answers_can_be_left_out_and_off_is_silent(lines) -> None:
    gateway = new_gateway(Echo(), access_log={"requests": False, "level": "WARNING"})
    async with client_of(gateway) as client:
        await client.get("/api/x")
        gateway._change({**gateway._code, "access_log": {"responses": False}})
        await client.get("/api/x")
        gateway._change({**gateway._code, "access_log": False})
        await client.get("/api/x")

    first, second = lines()
    assert {"status", "bytes", "request_id"} <= set(first)
    assert not {"path", "client", "method"} & set(first)
    assert {"path", "client", "method", "request_id"} <= set(second)
    assert "status" not in second


@pytest.mark.spec("X-56")
async def test_nothing_is_done_where_nobody_listens_and_nothing_stands_in_the_chain_when_it_is_off() -> None:
    logging.getLogger(NAME).setLevel(logging.ERROR)
    try:
        gateway = new_gateway(Echo(), access_log=True)
        async with client_of(gateway) as client:
            assert (await client.get("/api/x")).status_code == 200
    finally:
        logging.getLogger(NAME).setLevel(logging.NOTSET)

    gateway = new_gateway(Echo())
    life = await gateway.open_in({})
    layer = life.forward and gateway._table.routes[0].chain
    assert type(layer).__name__ == "Problems"
    await gateway.aclose()


# Secrets and injection.


@pytest.mark.spec("X-56", "B11")
@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (b"token=a&x=1", "token=***&x=1"),
        (b"ACCESS-TOKEN=a", "ACCESS-TOKEN=***"),
        (b"%61pi_key=a", "%61pi_key=***"),
        (b"x_api_key=a&client_secret=b&new_password=c", "x_api_key=***&client_secret=***&new_password=***"),
        (b"code=a&state=b", "code=***&state=b"),
        (b"X-Amz-Signature=a&X-Amz-Credential=b", "X-Amz-Signature=***&X-Amz-Credential=***"),
        (b"token", "token"),
        (b"a=token=b", "a=token=b"),
        (b"own=a", "own=***"),
        (b"keyboard=a&monkey=b", "keyboard=a&monkey=b"),
    ],
)
def test_parameters_that_are_credentials_are_hidden(query: bytes, wanted: str) -> None:
    lines = AccessLines(AccessLogConfig(masked=("own",)))
    assert lines.target(b"/x", query) == f"/x?{wanted}"


@given(st.dictionaries(st.sampled_from(["path", "principal", "reason"]), st.text(), min_size=1))
def test_no_value_can_make_another_line_or_another_pair(fields: dict[str, str]) -> None:
    for text in (logfmt(fields), json.dumps(fields)):
        assert len(text.splitlines()) == 1
        assert text.isprintable() or "\x7f" in text
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "]+)', logfmt(fields))
    assert {name: json.loads(value) if value[:1] == '"' else value for name, value in pairs} == fields


def test_a_very_long_target_is_cut_off() -> None:
    assert len(AccessLines(AccessLogConfig()).target(b"/" + b"x" * 100_000, b"")) < 5000


async def test_a_target_in_absolute_form_is_logged_without_its_authority(lines) -> None:
    async with RawUpstream() as upstream, serving(gateway_to(upstream.url, access_log=True), http="h11") as port:
        await talk(port, request("GET http://me:secret@gw/api/x"))
        await talk(port, request("GET http://gw/api/x?a=1"))

    assert [line["path"] for line in lines()] == ["/api/x", "/api/x?a=1"]


# Where the lines go.


@pytest.mark.spec("X-56")
def test_importing_installs_no_handler() -> None:
    code = (
        "import logging, fastapi_mesh; fastapi_mesh.APIGateway(access_log=True); "
        "print([n for n in [None, 'fastapi_mesh', 'fastapi_mesh.gateway', 'fastapi_mesh.gateway.access'] "
        "if logging.getLogger(n).handlers])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.spec("S-065")
def test_a_gateway_by_itself_writes_where_nobody_has_set_up_logging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    access, errors = logging.getLogger(NAME), logging.getLogger("fastapi_mesh.gateway")
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in (access, errors.parent)]  # type: ignore[union-attr]

    with own_handlers(APIGateway(access_log=True, log_level="WARNING").config):
        access.info("one line")
        errors.warning("a warning")
        errors.info("too little")
    with own_handlers(APIGateway(error_log=False).config):
        errors.warning("not wanted")
        access.info("not wanted either")

    out, err = capsys.readouterr()
    assert out == "one line\n"
    assert err.endswith("WARNING fastapi_mesh.gateway: a warning\n")
    assert len(err.splitlines()) == 1
    after = [(logger.level, logger.propagate, list(logger.handlers)) for logger in (access, errors.parent)]  # type: ignore[union-attr]
    assert after == before


@pytest.mark.spec("S-065")
def test_an_application_that_has_logging_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    top = logging.getLogger("fastapi_mesh")
    top.addHandler(handler)
    level = top.level
    top.setLevel("INFO")
    try:
        with own_handlers(APIGateway(access_log=True).config):
            logging.getLogger(NAME).info("a line")
            assert top.handlers == [handler]
    finally:
        top.removeHandler(handler)
        top.setLevel(level)

    assert stream.getvalue() == "a line\n"
    assert capsys.readouterr().out == ""


@pytest.mark.spec("X-56")
def test_our_json_formatter_makes_one_object_of_a_line() -> None:
    record = logging.LogRecord(NAME, logging.INFO, "", 0, "status=200", None, None)
    record.access = {"status": 200, "path": "/x?token=***"}

    line = json.loads(JsonFormatter().format(record))

    assert (line["status"], line["path"], line["logger"], line["level"]) == (200, "/x?token=***", NAME, "INFO")
    assert "message" not in line


@pytest.mark.spec("S-065")
@pytest.mark.parametrize(
    ("value", "text"),
    [("loud", "access_log"), ({"format": "xml"}, "access_log.format"), ({"level": "LOUD"}, "access_log.level")],
)
def test_settings_that_mean_nothing_are_refused(value: object, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        APIGateway(access_log=value)


@pytest.mark.spec("S-065")
def test_it_is_switched_on_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_GATEWAY__ACCESS_LOG", "json")
    monkeypatch.setenv("MESH_GATEWAY__LOG_LEVEL", "debug")
    config = APIGateway().config
    assert config.access_log is not None
    assert (config.access_log.format, config.log_level) == ("json", "DEBUG")

    monkeypatch.delenv("MESH_GATEWAY__ACCESS_LOG")
    monkeypatch.setenv("MESH_GATEWAY__ACCESS_LOG__MASKED", "a,b")
    config = APIGateway().config
    assert config.access_log is not None
    assert config.access_log.masked == ("a", "b")
