"""Addresses of a Redis in its four deployments: one server, a Unix socket, Sentinels, a Cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator

from fastapi_mesh.config.fields import shown

SCHEMES = (
    "redis",
    "rediss",
    "redis+unix",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
EXAMPLES = (
    "'redis://127.0.0.1:6379/0', 'rediss://…' (TLS), 'redis+unix:///run/redis.sock', "
    "'redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/NAME' or 'redis+cluster://10.0.0.1:6379,10.0.0.2:6379'"
)
_PORTS = {"sentinel": 26379}
_OPTIONS = ("db", "cafile")


class SecretUrl(str):
    """A URL whose `repr` doesn't show the user and password in it; `str` is the whole."""

    __slots__ = ()

    def __repr__(self) -> str:
        return shown(str(self))


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """What a Redis URL says. `kind` is `single`, `unix`, `sentinel` or `cluster`.

    `hosts` are (host, port): the server, the Sentinels or some nodes of the Cluster. `name` is what Sentinels call the
    primary, `path` the Unix socket, `cafile` the CA of a `rediss` server that the system's CAs don't vouch for.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    name: str = ""
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cafile: str | None = None


def redis_address(url: str) -> RedisAddress:
    """Read a URL; raises ValueError that says what is wrong, without the password.

    >>> redis_address("redis+sentinel://10.0.0.1,10.0.0.2:26380/limits").hosts
    (('10.0.0.1', 26379), ('10.0.0.2', 26380))
    """
    scheme, mark, _ = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError(f"{shown(url)} is not the URL of a Redis; write {EXAMPLES}")
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise ValueError(f"{shown(url)}: {unknown[0]!r} is not an option of its URL; known are {', '.join(_OPTIONS)}")
    userinfo, _, netloc = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    base, _, kind = scheme.partition("+")
    if scheme in ("unix", "redis+unix"):
        if netloc or len(parts.path) < 2:
            raise ValueError(
                f"{shown(url)}: a socket's path stands after three slashes, 'redis+unix:///run/redis.sock'"
            )
        kind = "unix"
    tail = "" if kind == "unix" else parts.path.strip("/")
    if kind == "sentinel" and (not tail or "/" in tail):
        raise ValueError(f"{shown(url)}: the primary's name is missing, 'redis+sentinel://HOST:26379/NAME'")
    if kind == "cluster" and (tail or options.get("db", "0") != "0"):
        raise ValueError(f"{shown(url)}: a Cluster has no databases, so nothing stands after its hosts")
    if kind == "" and "," in netloc:
        raise ValueError(f"{shown(url)}: several hosts are Sentinels (redis+sentinel) or a Cluster (redis+cluster)")
    db = tail if not kind and tail else options.get("db", "0")
    if not (db.isascii() and db.isdigit()):
        raise ValueError(f"{shown(url)}: {db!r} is not the number of a database")
    return RedisAddress(
        kind or "single",
        hosts=() if kind == "unix" else tuple(_host(each, kind, url) for each in netloc.split(",")),
        tls=base == "rediss",
        name=unquote(tail) if kind == "sentinel" else "",
        path=unquote(parts.path) if kind == "unix" else "",
        db=int(db),
        username=unquote(user) or None,
        password=unquote(password) or None,
        cafile=options.get("cafile"),
    )


def _host(text: str, kind: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or text.endswith(":") or parts.path:
        raise ValueError(f"{shown(url)}: {shown(text)} is not a host with a port, like '127.0.0.1:6379'")
    return host, port or _PORTS.get(kind, 6379)


def _redis_url(value: str) -> SecretUrl:
    redis_address(value)
    return SecretUrl(value)


RedisUrl = Annotated[str, AfterValidator(_redis_url)]
"""`redis://`, `rediss://`, `redis+unix://`, `redis+sentinel://` or `redis+cluster://`; its repr hides the password."""
