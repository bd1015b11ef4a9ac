"""What a client gets from the cache, and when the service is asked."""

from __future__ import annotations

import asyncio

import pytest

from fastapi_mesh.api_gateway.cache.visit import OnlyIfCachedError
from fastapi_mesh.api_gateway.exchange import Exchange
from fastapi_mesh.core.message import Response
from fastapi_mesh.exceptions import CircuitBreakerOpenError, UpstreamConnectionError
from tests.api_gateway.cache.cache_support import START, Parts, Stage, exchange, http_date, numbered, pairs, reply

pytestmark = pytest.mark.anyio


@pytest.mark.spec("X-26", "S-009")
async def test_a_fresh_answer_is_served_without_asking_the_service() -> None:
    async with Stage(numbered("Cache-Control: max-age=60", "X-Some: thing")) as stage:
        first = await stage.get("/a?x=1")
        stage.now += 7
        second = await stage.get("/a?x=1")

    assert (first.status, first.body, first["age"]) == (200, b"1", None)
    assert first["cache-status"] == 'gw; fwd=uri-miss; stored; key="http://gw/a?x=1"'
    assert (second.status, second.body, second["age"], second["x-some"]) == (200, b"1", "7", "thing")
    assert second["content-length"] == "1"
    assert second["cache-status"] == 'gw; hit; ttl=53; key="http://gw/a?x=1"'
    assert len(stage.calls) == 1
    assert stage.meter.results == ["miss", "hit"]
    assert stage.meter.bytes > 0


async def test_host_scheme_path_and_query_are_all_part_of_the_key() -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        bodies = {
            (await stage.get("/a", host="one")).body,
            (await stage.get("/a", host="two")).body,
            (await stage.get("/a", host="one", scheme="https")).body,
            (await stage.get("/a?", host="one")).body,
            (await stage.get("/a?b", host="one")).body,
            (await stage.get("/a/b", host="one")).body,
            (await stage.get("/a", "X-Forwarded-Host: three", host="one")).body,
            (await stage.get("/a", "X-Forwarded-Prefix: /p", host="one")).body,
        }

    assert len(bodies) == 7, "only an empty query is no other URL to an ASGI application"


@pytest.mark.spec("B12")
async def test_the_fallback_counts_only_where_the_service_says_nothing() -> None:
    said = {"/silent": (), "/short": ("Cache-Control: max-age=5",), "/never": ("Cache-Control: no-store",)}

    async with Stage(lambda request: reply("x", *said[request.path.decode()]), ttl=300.0) as stage:
        for path in said:
            await stage.get(path)
        stage.now += 10
        later = {path: (await stage.get(path)).is_hit for path in said}
        stage.now += 291
        at_the_end = await stage.get("/silent")

    assert later == {"/silent": True, "/short": False, "/never": False}
    assert not at_the_end.is_hit


@pytest.mark.parametrize("status", [404, 500, 503, 302, 201])
async def test_an_error_without_a_word_is_not_kept(status: int) -> None:
    async with Stage(lambda request: reply("x", status=status), ttl=300.0) as stage:
        await stage.get()
        assert not (await stage.get()).is_hit


async def test_an_error_is_kept_for_as_long_as_the_service_says() -> None:
    async with Stage(lambda request: reply("x", "Cache-Control: max-age=3", status=404)) as stage:
        await stage.get()
        assert (await stage.get()).is_hit


@pytest.mark.spec("B12")
async def test_force_wins_over_the_service_but_not_over_a_cookie() -> None:
    said = {
        "/no-store": ("Cache-Control: no-store, private, max-age=0", "Expires: 0", "Age: 900"),
        "/cookie": ("Set-Cookie: session=1",),
        "/star": ("Vary: *",),
    }
    async with Stage(lambda request: reply("x", *said[request.path.decode()]), ttl=60.0, force=True) as stage:
        for path in said:
            await stage.get(path)
        hits = {path: (await stage.get(path)).is_hit for path in said}
        stage.now += 61
        late = await stage.get("/no-store")

    assert hits == {"/no-store": True, "/cookie": False, "/star": False}
    assert not late.is_hit


async def test_a_stale_answer_is_validated_and_gets_the_new_headers() -> None:
    def script(request: Exchange) -> Response:
        if (b"if-none-match", b'"1"') in request.headers:
            return Response.of(304, pairs(["Cache-Control: max-age=20", 'ETag: "1"', "X-New: yes"]), b"")
        return reply("body", "Cache-Control: max-age=10", 'ETag: "1"', "X-New: no", "Content-Type: a/b")

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 11
        validated = await stage.get()
        stage.now += 15
        after = await stage.get()

    assert (validated.status, validated.body) == (200, b"body")
    assert validated.cache == "fwd=stale; fwd-status=304; stored"
    assert (validated["x-new"], validated["content-type"], validated["age"]) == ("yes", "a/b", "0")
    assert after.cache == "hit; ttl=5"
    assert len(stage.calls) == 2


async def test_what_has_changed_takes_the_place_of_what_was_stored() -> None:
    bodies = iter(["old", "new"])
    async with Stage(lambda request: reply(next(bodies), "Cache-Control: max-age=10", 'ETag: "x"')) as stage:
        await stage.get()
        stage.now += 11
        changed = await stage.get()
        after = await stage.get()

    assert (changed.body, after.body, after.is_hit) == (b"new", b"new", True)
    assert stage.memory.statistics()["entries"] == 1


async def test_a_304_about_something_else_is_not_believed() -> None:
    def script(request: Exchange) -> Response:
        if any(name == b"if-none-match" for name, _ in request.headers):
            return Response.of(304, pairs(['ETag: "other"']), b"")
        return reply("whole", "Cache-Control: max-age=10", 'ETag: "1"')

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 11
        answer = await stage.get()

    assert (answer.status, answer.body) == (200, b"whole")
    assert stage.asked_for("if-none-match") == [None, '"1"', None]


async def test_a_304_that_withdraws_the_permission_is_served_and_not_kept() -> None:
    def script(request: Exchange) -> Response:
        if any(name == b"if-none-match" for name, _ in request.headers):
            return Response.of(304, pairs(["Cache-Control: private"]), b"")
        return reply("whole", "Cache-Control: max-age=10", 'ETag: "1"')

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 11
        answer = await stage.get()

    assert (answer.status, answer.body) == (200, b"whole")
    assert stage.memory.statistics()["entries"] == 0


async def test_a_client_that_has_it_already_gets_304() -> None:
    async with Stage(
        numbered("Cache-Control: max-age=60", 'ETag: W/"v1"', f"Last-Modified: {http_date(START)}")
    ) as stage:
        await stage.get()
        same = await stage.get("/a", 'If-None-Match: "v0", "v1"')
        other = await stage.get("/a", 'If-None-Match: "v0"', f"If-Modified-Since: {http_date(START + 5)}")
        since = await stage.get("/a", f"If-Modified-Since: {http_date(START)}")
        before = await stage.get("/a", f"If-Modified-Since: {http_date(START - 1)}")

    assert [each.status for each in (same, other, since, before)] == [304, 200, 304, 200]
    assert (same.body, same["content-length"], same["etag"], same["age"]) == (b"", None, 'W/"v1"', "0")
    assert len(stage.calls) == 1


async def test_conditions_of_a_client_reach_the_service_only_when_nothing_is_stored() -> None:
    async with Stage(lambda request: Response.of(304, [], b"")) as stage:
        answer = await stage.get("/a", 'If-None-Match: "mine"')

    assert answer.status == 304
    assert stage.asked_for("if-none-match") == ['"mine"']
    assert stage.memory.statistics()["entries"] == 0


@pytest.mark.parametrize(
    ("asked", "status", "body", "described"),
    [
        ("bytes=0-1", 206, b"01", "bytes 0-1/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=5-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        (f"bytes={'9' * 5000}-", 200, b"0123456789", None),
    ],
)
async def test_a_range_of_a_stored_answer(asked: str, status: int, body: bytes, described: str | None) -> None:
    async with Stage(lambda request: reply("0123456789", "Cache-Control: max-age=60", 'ETag: "1"')) as stage:
        await stage.get()
        part = await stage.get("/a", f"Range: {asked}")

    assert (part.status, part.body, part["content-range"]) == (status, body, described)
    assert part["content-length"] == str(len(body))


async def test_a_range_is_given_only_of_what_the_client_has_the_rest_of() -> None:
    async with Stage(lambda request: reply("0123456789", "Cache-Control: max-age=60", 'ETag: "1"')) as stage:
        await stage.get()
        same = await stage.get("/a", "Range: bytes=0-1", 'If-Range: "1"')
        other = await stage.get("/a", "Range: bytes=0-1", 'If-Range: "0"')
        weak = await stage.get("/a", "Range: bytes=0-1", 'If-Range: W/"1"')

    assert [each.status for each in (same, other, weak)] == [206, 200, 200]


async def test_a_part_is_never_stored() -> None:
    def script(request: Exchange) -> Response:
        return reply("01", "Cache-Control: max-age=60", "Content-Range: bytes 0-1/10", status=206)

    async with Stage(script) as stage:
        first = await stage.get("/a", "Range: bytes=0-1")
        second = await stage.get("/a", "Range: bytes=0-1")

    assert (first.status, second.status, len(stage.calls)) == (206, 206, 2)
    assert stage.memory.statistics()["entries"] == 0


async def test_head_is_answered_from_what_a_get_stored_and_stores_nothing() -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        before = await stage.get(method="HEAD")
        await stage.get()
        after = await stage.get(method="HEAD")

    assert not before.is_hit
    assert (after.is_hit, after.body, after["content-length"]) == (True, b"", "1")
    assert [call.method for call in stage.calls] == [b"HEAD", b"GET"]


async def test_a_204_is_stored_and_gets_no_length() -> None:
    async with Stage(lambda request: Response.of(204, pairs(["Cache-Control: max-age=60"]), b"")) as stage:
        await stage.get()
        hit = await stage.get()

    assert (hit.status, hit.is_hit, hit["content-length"]) == (204, True, None)


# What a client asks for.


@pytest.mark.parametrize(
    ("asked", "hit"),
    [
        ("Cache-Control: no-cache", False),
        ("Pragma: no-cache", False),
        ("Cache-Control: max-age=0", False),
        ("Cache-Control: max-age=100", True),
        ("Cache-Control: no-store", False),
        ("Cache-Control: min-fresh=30", True),
        ("Cache-Control: min-fresh=60", False),
        ("Cache-Control: max-age=junk", False),
        ("Cache-Control: only-if-cached", True),
    ],
)
async def test_a_client_may_want_it_fresher(asked: str, hit: bool) -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        await stage.get()
        stage.now += 10
        assert (await stage.get("/a", asked)).is_hit is hit

    async with Stage(numbered("Cache-Control: max-age=60"), obey_clients=False) as stage:
        await stage.get()
        assert (await stage.get("/a", asked)).is_hit


@pytest.mark.parametrize(("asked", "hit"), [("max-stale", True), ("max-stale=30", True), ("max-stale=5", False)])
async def test_a_client_may_take_it_stale(asked: str, hit: bool) -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        await stage.get()
        stage.now += 70
        answer = await stage.get("/a", f"Cache-Control: {asked}")
        strict = Stage(numbered("Cache-Control: max-age=60, must-revalidate"))
        await strict.get()
        strict.now += 70
        assert not (await strict.get("/a", f"Cache-Control: {asked}")).is_hit

    assert answer.is_hit is hit
    if hit:
        assert answer.cache == "hit; ttl=-10; detail=max-stale"


async def test_a_client_that_wants_no_waiting_gets_504() -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        with pytest.raises(OnlyIfCachedError) as refused:
            await stage.get("/a", "Cache-Control: only-if-cached")

    assert (refused.value.status, refused.value.reason) == (504, "only-if-cached")
    assert stage.calls == []


async def test_what_a_client_wants_not_stored_is_not() -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        await stage.get("/a", "Cache-Control: no-store")
        assert not (await stage.get()).is_hit


# Stale answers.


async def test_a_stale_answer_is_served_while_a_new_one_is_fetched() -> None:
    async with Stage(numbered("Cache-Control: max-age=10, stale-while-revalidate=20")) as stage:
        await stage.get()
        stage.now += 15
        stale = await stage.get()
        await stage.settled()
        fresh = await stage.get()
        stage.now += 31
        too_late = await stage.get()

    assert (stale.body, stale.cache) == (b"1", "hit; ttl=-5; detail=stale-while-revalidate")
    assert (fresh.body, fresh.cache) == (b"2", "hit; ttl=10")
    assert too_late.body == b"3"


async def test_only_one_request_fetches_it_in_the_background() -> None:
    gate = asyncio.Event()
    count = 0

    async def script(request: Exchange) -> Response:
        nonlocal count
        count += 1
        if count > 1:
            await gate.wait()
        return reply(str(count), "Cache-Control: max-age=10, stale-while-revalidate=20")

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 15
        stale = [(await stage.get(method=method)).body for method in ("GET", "HEAD", "GET")]
        await asyncio.sleep(0)
        assert count == 2
        assert stage.calls[1].method == b"GET"
        gate.set()
        await stage.settled()

    assert stale == [b"1", b"", b"1"]


async def test_a_refresh_that_fails_leaves_the_stale_answer() -> None:
    calls = 0

    def script(request: Exchange) -> Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise UpstreamConnectionError("gone")
        return reply("1", "Cache-Control: max-age=10, stale-while-revalidate=20")

    async with Stage(script, grace=0.0) as stage:
        await stage.get()
        stage.now += 15
        await stage.get()
        await stage.settled()
        again = await stage.get()
        await stage.settled()

    assert again.body == b"1"
    assert calls == 3


@pytest.mark.parametrize("failure", [UpstreamConnectionError("gone"), CircuitBreakerOpenError("open")])
async def test_an_answer_stands_in_for_a_service_that_is_gone(failure: Exception) -> None:
    failing = False

    def script(request: Exchange) -> Response:
        if failing:
            raise failure
        return reply("1", "Cache-Control: max-age=10")

    async with Stage(script, grace=30.0) as stage:
        await stage.get()
        failing = True
        stage.now += 39
        stale = await stage.get()
        stage.now += 2
        with pytest.raises(type(failure)):
            await stage.get()

    assert (stale.status, stale.body) == (200, b"1")
    assert stale.cache == "fwd=stale; detail=stale-if-error"
    assert stage.meter.results == ["miss", "stale"]


@pytest.mark.parametrize("directive", ["must-revalidate", "proxy-revalidate", "s-maxage=10", "no-cache"])
async def test_what_must_be_validated_never_stands_in(directive: str) -> None:
    failing = False

    def script(request: Exchange) -> Response:
        if failing:
            raise UpstreamConnectionError("gone")
        return reply("1", f"Cache-Control: max-age=10, {directive}", 'ETag: "1"')

    async with Stage(script) as stage:
        await stage.get()
        failing = True
        stage.now += 11
        with pytest.raises(UpstreamConnectionError):
            await stage.get()


async def test_stale_if_error_covers_the_service_s_own_errors_within_its_window() -> None:
    status = 200

    def script(request: Exchange) -> Response:
        return reply(
            str(status), "Cache-Control: max-age=10, stale-if-error=20" if status == 200 else "X: y", status=status
        )

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 25
        found = {}
        for status in (500, 502, 503, 504, 501, 404):
            found[status] = (await stage.get()).status
            if status == 501:
                assert stage.memory.statistics()["entries"] == 1
        gone = await stage.get()

    assert found == {500: 200, 502: 200, 503: 200, 504: 200, 501: 501, 404: 404}
    assert gone.status == 404, "what is gone doesn't come back: the 404 has taken its place"


async def test_an_error_of_the_service_is_not_hidden_unless_the_answer_allows_it() -> None:
    status = 200
    async with Stage(lambda request: reply("x", "Cache-Control: max-age=10", status=status)) as stage:
        await stage.get()
        status = 503
        stage.now += 11
        assert (await stage.get()).status == 503


async def test_a_closed_response_of_a_failing_service_is_closed_for_good() -> None:
    bodies = [Parts([b"1"]), Parts([b"error"])]
    taken = []

    def script(request: Exchange) -> Response:
        body = bodies.pop(0)
        taken.append(body)
        ok = len(taken) == 1
        return Response(200 if ok else 503, pairs(["Cache-Control: max-age=1, stale-if-error=60"] if ok else []), body)

    async with Stage(script) as stage:
        await stage.get()
        stage.now += 5
        assert (await stage.get()).body == b"1"

    assert [each.closed for each in taken] == [True, True]


# What is none of the cache's business.


@pytest.mark.parametrize(
    "header",
    [
        'If-Match: "1"',
        "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
    ],
)
async def test_requests_that_mean_something_else_bypass_the_cache(header: str) -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        await stage.get("/a", header)
        plain = await stage.get()
        bypassing = await stage.get("/a", header)

    assert plain.cache == "fwd=uri-miss; stored"
    assert bypassing.cache.startswith("fwd=bypass")
    assert bypassing.body == b"3"


@pytest.mark.parametrize(
    "name", ["X-Forwarded-Port", "X-Forwarded-Scheme", "X-Host", "X-Original-Host", "X-Mesh-Shadow"]
)
async def test_headers_that_frameworks_make_urls_of_plant_nothing_for_others(name: str) -> None:
    async with Stage(numbered("Cache-Control: public, max-age=60")) as stage:
        planted = await stage.get("/a", f"{name}: evil")
        plain = await stage.get("/a")
        again = [(await stage.get("/a", f"{name}: evil")).body, (await stage.get("/a")).body]
        other = await stage.get("/a", f"{name}: other")

    assert [planted.body, plain.body, other.body] == [b"1", b"2", b"3"]
    assert again == [b"1", b"2"], "a proxy in front that says the same each time doesn't switch the cache off"


async def test_a_get_with_a_body_bypasses_the_cache() -> None:
    async with Stage(numbered("Cache-Control: max-age=60")) as stage:
        await stage.get()
        request = exchange("/a")
        request.body = b"a body that no key has"
        response = await stage.cache(request)
        assert await response.read() == b"2"
        await response.aclose()


async def test_the_date_of_the_service_counts_and_is_not_passed_on() -> None:
    headers = ("Cache-Control: max-age=60", f"Date: {http_date(START - 50)}", "Age: 20")
    async with Stage(numbered(*headers)) as stage:
        first = await stage.get()
        stage.now += 9
        second = await stage.get()
        stage.now += 2
        third = await stage.get()

    assert (first["date"], second["date"], second["age"], third.body) == (None, None, "59", b"2")

    async with Stage(numbered(*headers), keep_date=True) as stage:
        await stage.get()
        assert (await stage.get())["date"] == http_date(START - 50)


async def test_nothing_is_said_of_the_cache_where_that_is_not_wanted() -> None:
    async with Stage(numbered("Cache-Control: max-age=60"), status_header=False) as stage:
        answers = [await stage.get(), await stage.get(), await stage.get(method="POST")]

    assert [each["cache-status"] for each in answers] == [None, None, None]


async def test_a_key_that_is_no_string_of_the_field_is_left_out() -> None:
    async with Stage(numbered()) as stage:
        quoted = await stage.get('/a"\\')
        long = await stage.get("/" + "a" * 2000)

    assert quoted["cache-status"] is not None
    assert 'key="http://gw/a\\"\\\\"' in quoted["cache-status"]
    assert long["cache-status"] == "gw; fwd=uri-miss"
