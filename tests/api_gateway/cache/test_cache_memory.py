"""The memory store: its bound in bytes, and what goes first."""

from __future__ import annotations

import tracemalloc

import pytest

from fastapi_mesh.api_gateway.cache.entry import DamagedError, Entry, decode, encode
from fastapi_mesh.api_gateway.cache.key import NOBODY, Key
from fastapi_mesh.api_gateway.cache.memory import MemoryStore
from fastapi_mesh.api_gateway.cache.vary import Selecting

pytestmark = pytest.mark.anyio


def key(place: bytes, own: bytes = NOBODY) -> Key:
    return Key(place, place, "/*", own)


def entry(body: bytes, *, partition: bytes = NOBODY, received: float = 0.0, **more: object) -> Entry:
    values: dict[str, object] = {
        "status": 200,
        "headers": ((b"content-type", b"text/plain"), (b"etag", b'"1"')),
        "body": body,
        "selectors": (),
        "partition": partition,
        "received": received,
        "initial_age": 0.0,
        "lifetime": 60.0,
        "version": "0",
        **more,
    }
    return Entry(**values)  # type: ignore[arg-type]  # each by its name


async def has(store: MemoryStore, place: bytes, own: bytes = NOBODY) -> bool:
    found = await store.find(key(place, own), Selecting([]))
    return found is not None and found.entry is not None


@pytest.mark.spec("X-26")
async def test_the_least_recently_used_go_when_the_bytes_are_used_up() -> None:
    store = MemoryStore(20_000)
    for name in (b"/a", b"/b", b"/c"):
        assert await store.put(key(name), entry(b"x" * 4_000))
    assert await has(store, b"/a")

    await store.put(key(b"/d"), entry(b"x" * 4_000))

    assert [await has(store, name) for name in (b"/a", b"/b", b"/c", b"/d")] == [True, False, True, True]
    statistics = store.statistics()
    assert statistics["bytes"] <= 20_000
    assert (statistics["entries"], statistics["evicted"]) == (3, 1)


async def test_what_does_not_fit_at_all_throws_nothing_out() -> None:
    store = MemoryStore(10_000)
    await store.put(key(b"/a"), entry(b"small"))

    assert not await store.put(key(b"/b"), entry(b"x" * 20_000))

    assert await has(store, b"/a")


@pytest.mark.spec("X-26")
async def test_many_clients_and_paths_never_take_more_than_the_bound() -> None:
    """Measured, as an estimate of objects' sizes is easily wrong."""
    bound = 4_000_000
    store = MemoryStore(bound)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(8_000):
            place = b"http://gw/some/path/%d up /* 0123456789abcdef" % number
            own = b"%032d" % number
            headers = tuple((b"x-header-%d" % index, b"value-%d-%d" % (number, index)) for index in range(8))
            await store.put(key(place, own), entry(b"%d" % number, partition=own, headers=headers))
            assert store.statistics()["bytes"] <= bound if number % 500 == 0 else True
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert store.statistics()["entries"] > 1_000
    assert used < bound * 1.25


async def test_long_paths_never_take_more_than_the_bound() -> None:
    bound = 4_000_000
    store = MemoryStore(bound)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(400):
            path = b"/%d" % number + b"p" * 30_000
            await store.put(Key(b"http://gw" + path, path, "/*", NOBODY), entry(b""))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert store.statistics()["entries"] > 50
    assert used < bound * 1.25


async def test_bytes_are_given_back_for_all_that_goes() -> None:
    store = MemoryStore(1_000_000)
    first, second = entry(b"1"), entry(b"2", received=5.0)
    await store.put(key(b"/a"), first)
    await store.put(key(b"/a"), second)
    await store.remove(key(b"/a"), first)
    assert await has(store, b"/a"), "only this very entry was to go, and it had gone"

    await store.remove(key(b"/a"), second)

    assert store.statistics() == {"entries": 0, "bytes": 0, "evicted": 0}


async def test_a_closed_store_is_empty() -> None:
    store = MemoryStore(1_000_000)
    await store.put(key(b"/a"), entry(b"1"))
    await store.aclose()

    assert store.statistics()["bytes"] == 0
    assert not await has(store, b"/a")


# The form in which an answer leaves the process.


def test_an_entry_survives_its_form_as_bytes() -> None:
    original = entry(
        bytes(range(256)),
        partition=bytes(range(32)),
        headers=((b"x-latin", b"caf\xe9"), (b"x-twice", b"1"), (b"x-twice", b"2")),
        selectors=((b"accept", None), (b"x-latin", b"\xfc")),
        if_error=5.0,
        strict=True,
        keep=9.5,
        version="r.a.b",
    )

    assert decode(encode(original)) == original


def encode_head(head: bytes) -> bytes:
    return b"fmc1" + len(head).to_bytes(4, "big") + head


def test_what_is_no_entry_is_refused_and_never_run() -> None:
    whole = encode(entry(b"body"))
    damaged = [b"", b"fmc1", b"nope" + whole[4:], whole[:20], whole[:-1], whole + b"x", b"\x80\x04]."]
    damaged += [
        whole.replace(b"200", b"700"),
        whole.replace(b"text/plain", b"text\\r\\nx: "),
        whole.replace(b"[[", b"[7,["),
    ]
    damaged += [whole.replace(b"[200", b"[Infinity"), encode_head(b"[" * 200_000), whole.replace(b"60.0", b"1" * 400)]
    damaged += [b"fmc1" + (2).to_bytes(4, "big") + b"{}", b"fmc1\xff\xff\xff\xff" + whole[8:]]

    for data in damaged:
        with pytest.raises(DamagedError):
            decode(data)
