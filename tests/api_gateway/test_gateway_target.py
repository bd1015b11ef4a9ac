"""Where a request points: raw paths, prefixes, absolute-form targets."""

from __future__ import annotations

import pytest

from fastapi_mesh.api_gateway.target import Place, locate, strip, target_of
from fastapi_mesh.exceptions import InvalidRequestError


def seen(place: Place | None) -> tuple[bytes, bytes, bytes | None] | None:
    return None if place is None else (place.path, place.prefix, place.authority)


@pytest.mark.spec("X-22")
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/a%2Fb/../c", (b"/a%2Fb/../c", b"", None)),
        (b"http://up.example:81/p%2Fq", (b"/p%2Fq", b"", b"up.example:81")),
        (b"HTTP://up.example", (b"/", b"", b"up.example")),
        (b"https://up/", (b"/", b"", b"up")),
        (b"*", None),
        (b"host:80", None),
        (b"", None),
        (b"ftp://up/x", None),
    ],
)
def test_every_form_of_a_target_becomes_a_path_or_nothing(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw})) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/gw/users", (b"/users", b"/gw", None)),
        (b"/gw", (b"/", b"/gw", None)),
        (b"/gw/", (b"/", b"/gw", None)),
        (b"/gwx/users", None),
        (b"/users", None),
        (b"http://h/gw/users", (b"/users", b"/gw", b"h")),
    ],
)
def test_the_gateways_prefix_is_taken_off_at_a_border(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw}, b"/gw")) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/mnt/users", (b"/users", b"/mnt", None)),
        (b"/mnt", (b"/", b"/mnt", None)),
        (b"/users", (b"/users", b"", None)),  # FastAPI(root_path=...) leaves the path alone
        (b"/mntx", (b"/mntx", b"", None)),
        (b"/mnthttp://h/users", (b"/users", b"/mnt", b"h")),  # what uvicorn makes of an absolute form on h11
    ],
)
def test_a_mount_is_taken_off_at_a_border(raw: bytes, expected: object) -> None:
    assert seen(locate({"raw_path": raw, "root_path": "/mnt"})) == expected


def test_without_raw_path_the_path_is_encoded() -> None:
    assert seen(locate({"path": "/caf\xe9 x/a@b"})) == (b"/caf%C3%A9%20x/a@b", b"", None)


@pytest.mark.parametrize(
    ("path", "count", "expected"),
    [
        (b"/api/users/7", 2, (b"/api/users", b"/7")),
        (b"/api/users/", 2, (b"/api/users", b"/")),
        (b"/api/users", 2, (b"/api/users", b"/")),
        (b"/api%2Fx/users/7", 1, (b"/api%2Fx", b"/users/7")),
        (b"/x", 0, (b"", b"/x")),
    ],
)
def test_segments_are_stripped_from_the_raw_path(path: bytes, count: int, expected: tuple[bytes, bytes]) -> None:
    assert strip(path, count) == expected


@pytest.mark.spec("X-22")
def test_a_query_goes_on_as_it_is() -> None:
    assert target_of(b"/a", b"q=%20x&r=a+b&s=?") == b"/a?q=%20x&r=a+b&s=?"


@pytest.mark.spec("X-22")
@pytest.mark.parametrize(("path", "query"), [(b"/a b", b""), (b"/a", b"x#y"), (b"/a", b"\xc3"), (b"/a\r\n", b"")])
def test_a_byte_that_no_target_has_is_refused(path: bytes, query: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        target_of(path, query)
