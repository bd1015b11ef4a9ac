"""What a request must carry: headers and cookies with a value, or with any."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastapi_mesh.core.message import Header

ANY = "*"


class Carries:
    """Whether a request has all of some headers and cookies. `"*"` as a value means any.

    A header sent twice is matched by each of its values; a cookie's value is compared as it was sent (RFC 6265 section
    5.4), quotes and all.
    """

    __slots__ = ("_cookies", "_headers")

    def __init__(self, headers: Mapping[str, str], cookies: Mapping[str, str] | None = None) -> None:
        self._headers = _as_bytes(headers, lower=True)
        self._cookies = _as_bytes(cookies or {}, lower=False)

    def __call__(self, headers: Sequence[Header]) -> bool:
        for name, value in self._headers:
            if not any(name == key and value in (None, each) for key, each in headers):
                return False
        if not self._cookies:
            return True
        sent = list(cookies_of(headers))
        return all(any(name == key and value in (None, each) for key, each in sent) for name, value in self._cookies)


def _as_bytes(wanted: Mapping[str, str], *, lower: bool) -> tuple[tuple[bytes, bytes | None], ...]:
    return tuple(
        ((name.lower() if lower else name).encode(), None if value == ANY else value.encode("latin-1", "replace"))
        for name, value in wanted.items()
    )


def cookies_of(headers: Iterable[Header]) -> Iterable[tuple[bytes, bytes]]:
    """Name and value of each cookie, as sent.

    >>> list(cookies_of([(b"cookie", b"a=1; b=x=y")]))
    [(b'a', b'1'), (b'b', b'x=y')]
    """
    for key, value in headers:
        if key == b"cookie":
            for pair in value.split(b";"):
                name, found, text = pair.partition(b"=")
                if found:
                    yield name.strip(b" \t"), text.strip(b" \t")
