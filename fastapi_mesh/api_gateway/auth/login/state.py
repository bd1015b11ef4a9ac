"""A login under way: what the browser keeps of it, sealed, until it comes back with a code."""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.auth.compact import read_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_mesh.api_gateway.auth.jose import Sealer


@dataclass(frozen=True, slots=True)
class Attempt:
    """One login. `state` and `nonce` bind the answer and the ID token to it, `verifier` the code (PKCE).

    `return_to` is where the browser wanted to go, `until` when it is too late, in Unix seconds.
    """

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    return_to: str
    until: float

    @classmethod
    def new(cls, redirect_uri: str, return_to: str, until: float) -> Attempt:
        """One that nobody can guess: 256 bits each; the verifier has 64 characters, of 43 to 128 (RFC 7636)."""
        return cls(
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(48),
            redirect_uri,
            return_to,
            until,
        )

    def sealed(self, sealer: Sealer) -> str:
        """What the browser keeps."""
        values = (self.state, self.nonce, self.verifier, self.redirect_uri, self.return_to)
        return sealer.seal(json.dumps({"a": values, "u": self.until}).encode())

    @classmethod
    def opened(cls, sealer: Sealer, sealed: str) -> Attempt | None:
        """The login in a cookie; None for whatever we have not sealed."""
        text = sealer.open(sealed)
        if text is None:
            return None
        table = read_object(text)
        values, until = table.get("a"), table.get("u")
        if not isinstance(values, list) or len(values) != 5 or not isinstance(until, int | float):
            return None
        state, nonce, verifier, redirect_uri, return_to = (str(each) for each in values)
        return cls(state, nonce, verifier, redirect_uri, return_to, float(until))


class Spent:
    """Names that count once, each until a time in Unix seconds; the oldest goes first beyond `size`."""

    __slots__ = ("_size", "_until", "_wall")

    def __init__(self, size: int, wall: Callable[[], float]) -> None:
        self._size = size
        self._wall = wall
        self._until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, name: str) -> bool:
        until = self._until.get(name)
        if until is None:
            return False
        if until <= self._wall():
            del self._until[name]
            return False
        return True

    def add(self, name: str, until: float) -> bool:
        """Whether it was not spent before."""
        if name in self:
            return False
        self._until[name] = until
        if len(self._until) > self._size:
            self._until.popitem(last=False)
        return True
