"""Tests of the lifespan of applications that are mounted in this process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request

from fastapi_mesh.core.context import Inbound, current_inbound
from fastapi_mesh.exceptions import ConfigurationError
from tests.wire.asgi_support import asgi_wire, request_to, until

pytestmark = pytest.mark.anyio


def application(events: list[str], *, fail_startup: bool = False, fail_shutdown: bool = False) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app):
        assert current_inbound.get() is None
        if fail_startup:
            raise RuntimeError("no database")
        events.append("up")
        yield {"greeting": "hello", "events": events}
        if fail_shutdown:
            raise RuntimeError("won't close")
        events.append("down")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def read(request: Request):
        request.scope["state"]["greeting"] += "!"
        return request.state.greeting

    return app


@pytest.mark.spec("X-11")
async def test_requests_see_a_copy_of_the_state_that_startup_made():
    events: list[str] = []
    app = application(events)
    async with asgi_wire() as wire:
        lifespan = wire.lifespan(app, name="orders")
        await lifespan.start()
        assert (events, lifespan.running) == (["up"], True)
        for _ in range(2):
            response = await wire(request_to(app))
            assert await response.read_all() == b'"hello!"'
        await lifespan.stop()
    assert (events, lifespan.running) == (["up", "down"], False)
    assert lifespan.state["greeting"] == "hello"


async def test_an_application_has_one_lifespan_however_often_it_is_mounted():
    events: list[str] = []
    app = application(events)
    async with asgi_wire() as wire:
        assert wire.lifespan(app) is wire.lifespan(app)
        assert wire.lifespan(app) is not wire.lifespan(application([]))
        await asyncio.gather(wire.lifespan(app).start(), wire.lifespan(app).start())
        await wire.lifespan(app).stop()
        await wire.lifespan(app).stop()
    assert events == ["up", "down"]


async def test_it_can_be_started_again_after_it_was_stopped():
    events: list[str] = []
    async with asgi_wire() as wire:
        lifespan = wire.lifespan(application(events))
        for _ in range(2):
            await lifespan.start()
            await lifespan.stop()
    assert events == ["up", "down", "up", "down"]


async def test_a_failing_startup_is_a_mistake_in_the_settings_with_the_application_s_words(caplog):
    async with asgi_wire() as wire:
        lifespan = wire.lifespan(application([], fail_startup=True), name="orders")
        with pytest.raises(ConfigurationError, match=r"^orders: .* failed: RuntimeError: no database$"):
            await lifespan.start()
        await lifespan.stop()
    assert "Traceback" in caplog.text


async def test_a_failing_shutdown_is_logged(caplog):
    async with asgi_wire() as wire:
        lifespan = wire.lifespan(application([], fail_shutdown=True), name="orders")
        await lifespan.start()
        await lifespan.stop()
    assert "orders: the shutdown of the mounted application failed" in caplog.text
    assert "won't close" in caplog.text


async def _refuses(scope, receive, send):
    assert scope["type"] == "http"


async def _returns(scope, receive, send):
    return


async def _answers_http(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize("app", [_refuses, _returns, _answers_http])
async def test_an_application_without_a_lifespan_is_used_without(app, caplog):
    async with asgi_wire() as wire:
        lifespan = wire.lifespan(app)
        await lifespan.start()
        await until(lambda: not lifespan.running)
        await lifespan.stop()
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_a_shutdown_that_hangs_is_cancelled(caplog):
    events: list[str] = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")

    async with asgi_wire() as wire:
        lifespan = wire.lifespan(app, name="orders")
        await lifespan.start()
        await lifespan.stop(timeout=0.01)
    assert events == ["cancelled"]
    assert "orders: the mounted application did not shut down within 0.01 s" in caplog.text


async def test_startup_in_a_request_does_not_see_that_request():
    inbound = Inbound(object())
    token = current_inbound.set(inbound)
    events: list[str] = []
    try:
        async with asgi_wire() as wire:
            lifespan = wire.lifespan(application(events))
            await lifespan.start()
            await lifespan.stop()
        assert current_inbound.get() is inbound
    finally:
        current_inbound.reset(token)
    assert events == ["up", "down"]
