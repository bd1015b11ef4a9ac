"""Log formatters: what a line holds, what it hides, and that nothing is installed unasked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from fastapi_mesh.core.context import Inbound, current_inbound
from fastapi_mesh.observability.logging import JsonFormatter, TextFormatter, configure, mask

TRACE = "0af7651916cd43dd8448eb211c80319c"


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("fastapi_mesh.calls", logging.WARNING, "f.py", 1, message, arguments, info)


@pytest.mark.spec("X-56")
def test_a_json_line_names_the_request_and_trace_it_belongs_to():
    inbound = Inbound(None, request_id="r-1", propagate=((b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()),))
    token = current_inbound.set(inbound)
    try:
        line = json.loads(JsonFormatter().format(record("%s failed", "users", error=ValueError("x"))))
    finally:
        current_inbound.reset(token)

    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "fastapi_mesh.calls",
        "message": "users failed",
        "request_id": "r-1",
        "trace_id": TRACE,
        "error": "ValueError: x",
    }


@pytest.mark.spec("X-56")
def test_a_text_line_outside_a_request_has_no_empty_fields():
    text = TextFormatter().format(record("started"))
    assert text.split(" ", 1)[1] == "WARNING fastapi_mesh.calls: started"


@pytest.mark.spec("X-56")
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dTpw', 'x': '1'}", "{'authorization': 'Basic ***', 'x': '1'}"),
        ("password=hunter2&user=bo", "password=***&user=bo"),
        ("x-api-key: k1", "x-api-key: ***"),
        ("client_secret = s1, id = 2", "client_secret = ***, id = 2"),
        ("Cookie: a=1; b=2", "Cookie: ***"),
        ("Set-Cookie: s=1; Path=/\nnext", "Set-Cookie: ***\nnext"),
        ("tokens are counted", "tokens are counted"),
    ],
)
def test_credentials_are_masked(text, masked):
    assert mask(text) == masked


def test_configuring_twice_leaves_one_handler(capsys):
    logger = logging.getLogger("fastapi_mesh")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        configure("text")
        handler = configure("json", level="WARNING")
        logger.warning("once")
        logger.info("too quiet")
        lines = capsys.readouterr().err.splitlines()
        assert [json.loads(line)["message"] for line in lines] == ["once"]
    finally:
        logger.removeHandler(handler)
        logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.spec("X-56")
def test_importing_installs_no_handler():
    code = """
import logging
import fastapi_mesh.observability.logging, fastapi_mesh.observability.metrics
known = logging.root.manager.loggerDict.values()
print([each for each in known if getattr(each, "handlers", None)], logging.root.handlers)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[] []"
