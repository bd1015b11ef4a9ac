"""What dates, directives and ages mean: strict where RFC 9111 is, and on the safe side of what can't be read."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_mesh.api_gateway.cache.dates import http_date
from fastapi_mesh.api_gateway.cache.directives import LONG, cache_control, fields, means_all, response_control, seconds
from fastapi_mesh.api_gateway.cache.freshness import explicit_lifetime, heuristic_lifetime, initial_age
from fastapi_mesh.api_gateway.cache.ranges import UNSATISFIABLE, ByteRange, byte_range
from tests.api_gateway.cache.cache_support import START, Stage, numbered, pairs, reply
from tests.api_gateway.cache.cache_support import http_date as dated

pytestmark = pytest.mark.spec("X-26")

NOV_1994 = 784111777


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", NOV_1994),
        (b" sun, 06 nov 1994 08:49:37 gmt ", NOV_1994),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", NOV_1994),
        (b"Sun Nov  6 08:49:37 1994", NOV_1994),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37 +0000", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"Sun 06 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06-Nov-1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 94 08:49:37 GMT", None),
        (b"Sun, 30 Feb 1994 08:49:37 GMT", None),
        (b"Sun, 00 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 Foo 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 0000 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 24:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:60:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:61 GMT", None),
        (b"0", None),
        (b"-1", None),
        (b"", None),
    ],
)
def test_a_date_has_one_of_three_forms(text: bytes, expected: int | None) -> None:
    assert http_date(text) == expected


def test_a_year_of_two_digits_is_never_far_ahead() -> None:
    year = time.gmtime().tm_year + 51

    assert (http_date(f"Sunday, 06-Nov-{year % 100:02} 08:49:37 GMT".encode()) or 0) < time.time()


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (b"max-age=5", "max-age", 5),
        (b"MAX-AGE=5", "max-age", 5),
        (b'max-age="5"', "max-age", 5),
        (b"public,,  max-age=5 ,", "max-age", 5),
        (b"max-age=5, max-age=3", "max-age", 3),
        (b"max-age=99999999999999999999", "max-age", LONG),
        (b"max-age", "max-age", 0),
        (b"max-age=", "max-age", 0),
        (b"max-age=-5", "max-age", 0),
        (b"max-age=5.5", "max-age", 0),
        (b"max-age = 5", "max-age", 0),
        (b"max-age=5 s", "max-age", 0),
        ("max-age=٣".encode(), "max-age", 0),
        (b"x-max-age=5", "max-age", None),
        (b'extension="a, max-age=5", public', "max-age", None),
        (b"@@@, max-age=5", "max-age", 5),
        (b"=5, max-age=5", "max-age", 5),
        (b"", "max-age", None),
    ],
)
def test_a_directive_in_seconds(text: bytes, name: str, expected: int | None) -> None:
    assert seconds(cache_control([text]), name) == expected


def test_fields_of_a_directive() -> None:
    directives = cache_control([b'private="X-One, x-two", no-cache'])

    assert fields(directives, "private") == {b"x-one", b"x-two"}
    assert not means_all(directives, "private")
    assert means_all(directives, "no-cache")
    assert means_all(cache_control([b'private=""']), "private")
    assert means_all(cache_control([b'private=" , "']), "private")


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_whatever_is_sent_is_read_without_an_error(values: list[bytes]) -> None:
    directives = cache_control(values)
    for name in directives:
        seconds(directives, name)
        fields(directives, name)
    response_control([(b"cdn-cache-control", value) for value in values])
    for value in values:
        http_date(value)
        initial_age([(b"age", value), (b"date", value)], 0.0, 1.0)


@pytest.mark.parametrize(
    ("said", "targeted", "expected"),
    [
        (["CDN-Cache-Control: max-age=9", "Cache-Control: max-age=1"], True, 9),
        (["CDN-Cache-Control: max-age=9;x=1, public", "Cache-Control: max-age=1"], True, 9),
        (["CDN-Cache-Control: max-age=9", "CDN-Cache-Control: s-maxage=8"], True, 9),
        (["CDN-Cache-Control: Max-Age=9", "Cache-Control: max-age=1"], False, 1),
        (['CDN-Cache-Control: max-age="9"', "Cache-Control: max-age=1"], False, 1),
        (["CDN-Cache-Control: max-age=-9", "Cache-Control: max-age=1"], False, 1),
        (["CDN-Cache-Control: max-age=9,,", "Cache-Control: max-age=1"], False, 1),
        (["CDN-Cache-Control: &&&", "Cache-Control: max-age=1"], False, 1),
        (["Cache-Control: max-age=1"], False, 1),
    ],
)
def test_what_is_said_to_this_kind_of_cache_counts_if_it_is_valid(
    said: list[str], targeted: bool, expected: int
) -> None:
    directives, is_targeted = response_control(pairs(said))

    assert (is_targeted, seconds(directives, "max-age")) == (targeted, expected)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["Cache-Control: max-age=5, s-maxage=9", "Expires: 0"], 9.0),
        (["Cache-Control: max-age=5", f"Expires: {dated(START + 60)}"], 5.0),
        ([f"Expires: {dated(START + 60)}"], 60.0),
        ([f"Expires: {dated(START + 60)}", f"Date: {dated(START + 20)}"], 40.0),
        ([f"Expires: {dated(START - 60)}"], 0.0),
        (["Expires: 0"], 0.0),
        ([f"Expires: {dated(START + 60)}", f"Expires: {dated(START + 60)}"], 0.0),
        (["CDN-Cache-Control: public", f"Expires: {dated(START + 60)}"], None),
        ([], None),
    ],
)
def test_the_lifetime_that_a_service_gives(said: list[str], expected: float | None) -> None:
    headers = pairs(said)
    directives, targeted = response_control(headers)

    assert explicit_lifetime(headers, directives, targeted=targeted, received=START) == expected


def test_a_guess_is_a_share_of_the_time_since_the_last_change_and_at_most_a_day() -> None:
    def guess(ago: float, status: int = 200, *, public: bool = False, fraction: float = 0.1) -> float | None:
        headers = pairs([f"Last-Modified: {dated(START - ago)}"])
        return heuristic_lifetime(status, headers, public=public, fraction=fraction, now=START)

    assert guess(1000) == pytest.approx(100)
    assert guess(1e9) == 86400
    assert guess(-1000) == 0
    assert guess(1000, fraction=0) is None
    assert (guess(1000, 599), guess(1000, 599, public=True)) == (None, pytest.approx(100))
    assert heuristic_lifetime(200, [], public=False, fraction=0.1, now=START) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], 2),
        (["Age: 30"], 32),
        (["Age: 30", "Age: 50"], 32),
        (["Age: 30, 50"], 32),
        (["Age: -30"], 2),
        (["Age: old"], 2),
        (["Age: 7.5"], 2),
        (["Age: 30;x=1"], LONG + 2),
        ([f"Age: {'9' * 400}"], LONG + 2),
        ([f"Date: {dated(START - 10)}"], 12),
        ([f"Date: {dated(START - 10)}", "Age: 5"], 12),
        ([f"Date: {dated(START + 99)}"], 2),
    ],
)
def test_how_old_an_answer_is_when_it_comes(said: list[str], expected: float) -> None:
    assert initial_age(pairs(said), START, START + 2) == expected


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "hit"), [(200, True), (599, False), (418, False)], ids=["known", "unknown", "unknown-to-caches"]
)
async def test_a_status_must_be_understood_where_the_service_says_so(status: int, hit: bool) -> None:
    said = "Cache-Control: max-age=60, no-store, must-understand"
    async with Stage(lambda request: reply("x", said, status=status)) as stage:
        await stage.get()
        assert (await stage.get()).is_hit is hit


@pytest.mark.anyio
async def test_a_guess_comes_before_the_fallback() -> None:
    async with Stage(numbered(f"Last-Modified: {dated(START - 100)}"), ttl=300.0, heuristic=0.1) as stage:
        await stage.get()
        stage.now += 9
        assert (await stage.get()).is_hit
        stage.now += 2
        assert not (await stage.get()).is_hit


@given(
    total=st.integers(0, 50),
    asked=st.one_of(
        st.binary(max_size=20),
        st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: b"bytes=%d-%d" % pair),
        st.integers(0, 60).map(lambda start: b"bytes=%d-" % start),
        st.integers(0, 60).map(lambda count: b"bytes=-%d" % count),
    ),
)
def test_a_range_never_leaves_the_content(total: int, asked: bytes) -> None:
    found = byte_range(asked, None, total=total, etag=None, modified=None)

    if isinstance(found, ByteRange):
        assert 0 <= found.start < found.end <= total
    else:
        assert found in (None, UNSATISFIABLE)
