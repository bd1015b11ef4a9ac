"""Headers that a transformer may change: any name, in order, with duplicates, and nothing that could smuggle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING

from fastapi_mesh.api_gateway.headers import HOP_BY_HOP

if TYPE_CHECKING:
    from fastapi_mesh.core.message import Header

Text = str | bytes

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUE = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_FRAMING = frozenset({b"content-length", b"expect", b"transfer-encoding"})
_UNMISTAKABLE = HOP_BY_HOP | _FRAMING | {b"host", b"forwarded", b"x-forwarded-for", b"x-forwarded-host"}


class Fields(MutableMapping[str, str]):
    """The headers of a message: a mapping without regard to case, in which a name may have several values.

        headers["X-Version"] = "1"           # replaces all values of that name, where the first one stood
        headers.add("Set-Cookie", "a=1")     # one more
        headers["Accept"]                    # several values as one list, "a, b" (RFC 9110 section 5.3)
        headers.getlist("Set-Cookie")        # each by itself
        headers.raw                          # what is sent: (name, value) as bytes, names in lower case

    Values are text in Latin-1, the bytes of a field one by one. Raises ValueError, where it is set, for a name that is
    no token, a value with a control byte in it, hop-by-hop fields, and the framing (`Content-Length`,
    `Transfer-Encoding`, `Expect`), which follows the body: RFC 9110 sections 5.5, 7.6.1 and 8.6.
    """

    __slots__ = ("_items", "changed")

    def __init__(self, items: Mapping[str, Text] | Iterable[tuple[Text, Text]] = ()) -> None:
        self._items: list[Header] = []
        self.changed = False
        """Whether anything was set or removed since the message came."""
        pairs = items.items() if isinstance(items, Mapping) else items
        for name, value in pairs:
            self.add(name, value)

    @classmethod
    def of(cls, raw: list[Header]) -> Fields:
        """Those of a message that was judged already: not looked at, not copied until they change."""
        fields = cls.__new__(cls)
        fields._items = raw
        fields.changed = False
        return fields

    @property
    def raw(self) -> tuple[Header, ...]:
        return tuple(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[(n.decode(), v.decode('latin-1')) for n, v in self._items]})"

    def __len__(self) -> int:
        return len({name for name, _ in self._items})

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self._items))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, (str, bytes)):
            return False
        key = _key(name)
        return any(each == key for each, _ in self._items)

    def getlist(self, name: Text) -> list[str]:
        """Every value of `name`, in order."""
        key = _key(name)
        return [value.decode("latin-1") for each, value in self._items if each == key]

    def __getitem__(self, name: Text) -> str:
        values = self.getlist(name)
        if not values:
            raise KeyError(name)
        return values[0] if len(values) == 1 else ("; " if _key(name) == b"cookie" else ", ").join(values)

    def __setitem__(self, name: Text, value: Text) -> None:
        header = _header(name, value)
        places = [index for index, each in enumerate(self._items) if each[0] == header[0]]
        items = self._own()
        for index in reversed(places[1:]):
            del items[index]
        if places:
            items[places[0]] = header
        else:
            items.append(header)

    def __delitem__(self, name: Text) -> None:
        key = _key(name)
        if name not in self:
            raise KeyError(name)
        if key in _FRAMING or key == b"host":
            raise ValueError(f"{_shown(name)} can't be removed: {_WHY.get(key, _FOLLOWS)}")
        self._own()[:] = [each for each in self._items if each[0] != key]

    def add(self, name: Text, value: Text) -> None:
        """One more value of `name`, after all others."""
        header = _header(name, value)
        if header[0] == b"host" and "host" in self:
            raise ValueError("a request has one Host: set it with headers['Host'] = ...")
        self._own().append(header)

    def _own(self) -> list[Header]:
        if not self.changed:
            self._items = list(self._items)
            self.changed = True
        return self._items


_FOLLOWS = "it follows the body"
_WHY = {b"host": "every request has one", b"expect": "the client waits for its answer"}


def _key(name: Text) -> bytes:
    return (name.encode("latin-1", "replace") if isinstance(name, str) else name).lower()


def _header(name: Text, value: Text) -> Header:
    """What is sent. Raises ValueError, and TypeError for what is no text."""
    for each in (name, value):
        _check_text(each)
    key = _key(name)
    if not key or key.translate(None, _TOKEN):
        raise ValueError(f"{_shown(name)} is not the name of a header")
    if key in HOP_BY_HOP:
        raise ValueError(f"{_shown(name)} belongs to one connection (RFC 9110 section 7.6.1): not a transformer's")
    if key in _FRAMING:
        raise ValueError(f"{_shown(name)} can't be set: {_WHY.get(key, _FOLLOWS)}")
    if b"_" in key and key.replace(b"_", b"-") in _UNMISTAKABLE:
        raise ValueError(f"{_shown(name)} looks like a header that must be unmistakable")
    try:
        data = value.encode("latin-1") if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ValueError(f"the value of {_shown(name)} has a letter outside Latin-1: encode it") from None
    if data.translate(None, _VALUE):
        raise ValueError(f"the value of {_shown(name)} has a control byte in it")
    return key, data.strip(b" \t")


def _check_text(value: object) -> None:
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"a header is text, not {type(value).__name__}: {value!r:.80}")


def _shown(name: Text) -> str:
    return repr(name if isinstance(name, str) else name.decode("latin-1"))
