"""What etcd's JSON gateway says: keys, numbers, headers, and errors by what they mean.

Keys and values are base64 and all numbers are strings there (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/).
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_mesh.exceptions import MeshError

Table = Mapping[str, object]

# gRPC's codes, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 7, 9, 11, 16


class Kind(Enum):
    """What an error means for whoever asked."""

    AWAY = "away"
    """This member can't be reached or can't answer now, or answers nonsense: another one may, or this one later."""
    TOKEN = "token"
    """The token of this client is no longer valid."""
    COMPACTED = "compacted"
    """The revision asked for is no longer kept."""
    GONE = "gone"
    """There is no such lease."""
    REFUSED = "refused"
    """Waiting does not mend it: credentials, rights, TLS, or a server that is no etcd."""


class EtcdError(Exception):
    """etcd did not do what it was asked. Backends raise their own error from it."""

    def __init__(self, text: str, kind: Kind = Kind.AWAY) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as stored. `created` and `modified` are revisions of the whole store."""

    key: bytes
    value: bytes
    created: int
    modified: int


def encoded(key: bytes) -> str:
    """Bytes as the JSON gateway takes them."""
    return base64.b64encode(key).decode("ascii")


def key_value(table: object) -> KeyValue:
    """A key as the JSON gateway gives it. Raises EtcdError for anything else."""
    try:
        given = cast("Mapping[str, str]", table)
        return KeyValue(
            base64.b64decode(given["key"], validate=True),
            base64.b64decode(given.get("value", ""), validate=True),
            int(given.get("create_revision", 0)),
            int(given.get("mod_revision", 0)),
        )
    except (TypeError, KeyError, AttributeError, ValueError, binascii.Error) as error:
        raise EtcdError(f"a key is no key: {type(error).__name__}: {error}") from error


def entries(table: Table, name: str) -> Iterable[object]:
    """A list in an answer; absent ones are empty there. Raises EtcdError for anything else."""
    found = table.get(name)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise EtcdError(f"{name!r} is no list")
    return found


def number(table: Table, name: str) -> int:
    """A number in an answer; absent ones are 0 there. Raises EtcdError for anything else."""
    try:
        return int(str(table.get(name, 0)))
    except ValueError as error:
        raise EtcdError(f"{name!r} is no number: {table.get(name)!r}") from error


def state_of(message: Table) -> tuple[int, int]:
    """The term and revision of the store."""
    header = cast("Table", message["header"])  # each answer has been checked for it
    return number(header, "raft_term"), number(header, "revision")


def after(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def table_of(content: bytes, name: str, status: int) -> Table:
    """The first line of an answer as a table."""
    try:
        found = json.loads(content.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, Mapping):
        return found
    if status >= 500 or status == 429:
        raise EtcdError(f"{name}: HTTP {status}")
    raise EtcdError(
        f"{name}: HTTP {status}, and not in JSON: this is no etcd of version 3.4 or newer, or its JSON gateway is off "
        "(--enable-grpc-gateway)",
        Kind.REFUSED,
    )


def inner_of(table: Table) -> Table:
    """What a streamed message carries; others carry themselves."""
    result = table.get("result")
    return result if isinstance(result, Mapping) else table


def refusal(name: str, table: Table, status: int, username: str | None) -> EtcdError:
    """The error for what the server said to `username`, None for nobody."""
    inner = table.get("error")
    about = inner if isinstance(inner, Mapping) else table
    text = str(about.get("message") or inner or "the watch was canceled")
    kind = _kind(about.get("grpc_code", about.get("code")), text)
    if "user name is empty" in text:
        if username is None:
            return EtcdError(f"{name}: {text}: it wants a user; give username and password", Kind.REFUSED)
        kind = Kind.TOKEN  # authentication was enabled after we came
    elif "permission denied" in text and username is not None:
        text += f" for the user {username!r}"
    return EtcdError(f"{name}: {text} (HTTP {status})" if status != 200 else f"{name}: {text}", kind)


def _kind(code: object, text: str) -> Kind:
    if code == _UNAUTHENTICATED or "invalid auth token" in text or "auth store is old" in text:
        return Kind.TOKEN
    if code == _NOT_FOUND:
        return Kind.GONE
    if code == _OUT_OF_RANGE and "revision" in text:
        return Kind.COMPACTED
    if code in (_INVALID_ARGUMENT, _PERMISSION_DENIED, _PRECONDITION) or "permission denied" in text:
        return Kind.REFUSED
    return Kind.AWAY


def checked(name: str, message: Table) -> Table:
    """`message`, if etcd can have sent it."""
    header = message.get("header")
    if not isinstance(header, Mapping) or "cluster_id" not in header:
        raise EtcdError(f"{name}: an answer without a header, as no etcd gives it")
    return message


def unreachable(name: str, error: MeshError) -> EtcdError:
    """The error for a server that can't be spoken with; one of TLS is mended by whoever made the settings."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return EtcdError(f"{name}: TLS: {cause}", Kind.REFUSED)
        cause = cause.__cause__ or cause.__context__
    text = str(error) if name in str(error) else f"{name} can't be reached: {error}"
    if name.startswith("https:") and isinstance(error.__cause__, Exception) and not str(error.__cause__):
        text += " (a server that wants another client certificate ends connections like this)"  # TLS 1.3: afterwards
    return EtcdError(text)
