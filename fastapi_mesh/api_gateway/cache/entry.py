"""A stored response, and its form as bytes for a store outside of the process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.cache.freshness import first

if TYPE_CHECKING:
    from fastapi_mesh.api_gateway.cache.vary import Selectors
    from fastapi_mesh.core.message import Header

_MAGIC = b"fmc1"
_OVERHEAD = 800
_PER_HEADER = 140
"""Bytes of Python objects around the text, as far as a bound in bytes needs to know: measured on 64-bit CPython."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Immutable, so it is served while another one takes its place.

    `headers` are without Age, Content-Length and what must not be kept; `selectors` what a request must say to get it.
    `partition` says for whom it is. `received` is Unix seconds, `initial_age` how old it was then; `lifetime`,
    `while_revalidate` and `if_error` are seconds, the last one None where the service says nothing.
    `strict` forbids serving it stale in any case. `keep` is for how many seconds keeping it makes sense: while it is
    fresh, may be served stale, or can be validated. `version` is the store's mark for "not invalidated since".
    """

    status: int
    headers: tuple[Header, ...]
    body: bytes
    selectors: Selectors
    partition: bytes
    received: float
    initial_age: float
    lifetime: float
    while_revalidate: float = 0.0
    if_error: float | None = None
    strict: bool = False
    keep: float = 0.0
    version: str = ""
    head: tuple[Header, ...] = field(init=False, repr=False, compare=False)
    etag: bytes | None = field(init=False, compare=False)
    modified: bytes | None = field(init=False, compare=False)
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        length = () if self.status == 204 else ((b"content-length", b"%d" % len(self.body)),)
        text = sum(len(name) + len(value) for name, value in self.headers)
        text += sum(len(name) + len(value or b"") for name, value in self.selectors)
        size = _OVERHEAD + len(self.body) + text + _PER_HEADER * (len(self.headers) + len(self.selectors))
        for name, value in (
            ("head", (*self.headers, *length)),
            ("etag", first(self.headers, b"etag")),
            ("modified", first(self.headers, b"last-modified")),
            ("size", size),
        ):
            object.__setattr__(self, name, value)

    def age(self, now: float) -> float:
        """Seconds since the service made it (RFC 9111 section 4.2.3)."""
        return self.initial_age + max(0.0, now - self.received)


GARBAGE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON raises that somebody else has written: endless nesting, infinity for a number..."""


class DamagedError(ValueError):
    """Bytes that are no entry, or not one of this version."""


def encode(entry: Entry) -> bytes:
    """`fmc1`, four bytes with the length of the head, the head as JSON, the body as it is."""
    head = json.dumps(
        [
            entry.status,
            [[name.decode("latin-1"), value.decode("latin-1")] for name, value in entry.headers],
            [
                [name.decode("latin-1"), None if value is None else value.decode("latin-1")]
                for name, value in entry.selectors
            ],
            entry.partition.hex(),
            [entry.received, entry.initial_age, entry.lifetime, entry.while_revalidate, entry.if_error, entry.keep],
            entry.strict,
            entry.version,
            len(entry.body),
        ],
        separators=(",", ":"),
    ).encode()
    return b"".join([_MAGIC, len(head).to_bytes(4, "big"), head, entry.body])


def decode(data: bytes) -> Entry:
    """The entry in `data`. Raises DamagedError, also for a header that would break the message it is sent in."""
    end = 8 + int.from_bytes(data[4:8], "big")
    if data[:4] != _MAGIC or len(data) < end:
        raise DamagedError("not a stored response of this version")
    try:
        status, headers, wanted, partition, times, strict, version, length = json.loads(data[8:end])
        received, initial_age, lifetime, while_revalidate, if_error, keep = times
        entry = Entry(
            status=int(status),
            headers=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
            body=data[end:],
            selectors=tuple(
                (name.encode("latin-1"), None if value is None else value.encode("latin-1")) for name, value in wanted
            ),
            partition=bytes.fromhex(partition),
            received=float(received),
            initial_age=float(initial_age),
            lifetime=float(lifetime),
            while_revalidate=float(while_revalidate),
            if_error=None if if_error is None else float(if_error),
            strict=bool(strict),
            keep=float(keep),
            version=str(version),
        )
    except GARBAGE as error:
        raise DamagedError(f"not a stored response: {error}") from error
    text = b"".join([part for header in entry.headers for part in header])
    if len(entry.body) != length or not 200 <= entry.status <= 599 or set(b"\r\n\0") & set(text):
        raise DamagedError("a stored response that is not whole")
    return entry
