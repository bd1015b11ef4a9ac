"""Requests that two servers in a row could read differently, each with what of it a service may see at most.

A case is what one client writes on one connection. `allowed` lists the sequences of requests that may reach the
service; `()` among them means that it may be refused. Of all other outcomes (a second request that was hidden in the
first, a body of another length, a header that got through under another name) each is a security hole.

Sources: RFC 9112 sections 2.2, 3, 5, 6, 7, 11.2; RFC 9110 sections 5, 7, 10.1.1; "HTTP Desync Attacks" (Kettle, 2019,
2021, 2022), "Smuggling with TE.0 and chunk extensions" (2024, 2025), the http-garden differential corpus' families.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as the service has to get it; header lines besides the ones that a gateway adds to every request.

    `body` is None for a message without one; `chunked` says how it is framed. `cut`: the service can see that it is not
    complete, since its connection ends before its body does; `body` is then the most that may have come.
    """

    line: bytes
    headers: tuple[bytes, ...] = ()
    body: bytes | None = None
    chunked: bool = False
    host: bytes = b"gw"
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """What is written, and what of it may arrive.

    Behind the servers in `lenient`, `more` may arrive too: they have normalised it before an application can see it.
    That is one unambiguous request all the same, but a proxy in front of them may have read another one.
    """

    name: str
    payload: bytes
    allowed: tuple[tuple[Sent, ...], ...]
    lenient: tuple[str, ...] = ()
    more: tuple[tuple[Sent, ...], ...] = ()


NOTHING: tuple[Sent, ...] = ()
HIDDEN = b"GET /api/smuggled HTTP/1.1\r\nHost: gw\r\n\r\n"
"""What an attacker wants to be taken for a request of its own."""
NEXT = b"GET /api/next HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
"""The next request on the connection, which is honest."""
SENT_NEXT = Sent(b"GET /api/next")
END = b"0\r\n\r\n"


def post(*headers: bytes, line: bytes = b"POST /api/x HTTP/1.1", host: bytes | None = b"Host: gw") -> bytes:
    """The head of a request, each line with CRLF, and the empty line."""
    return b"\r\n".join([line, *([] if host is None else [host]), *headers, b"", b""])


def get(*headers: bytes, target: bytes = b"/api/x", host: bytes | None = b"Host: gw", version: bytes = b"1.1") -> bytes:
    return post(*headers, line=b"GET " + target + b" HTTP/" + version, host=host)


def refused(name: str, payload: bytes) -> Case:
    """Nothing of it may arrive."""
    return Case(name, payload, (NOTHING,))


def either(name: str, payload: bytes, *sent: Sent) -> Case:
    """It may be refused, or arrive exactly so, or (several on one connection) stop after some of them."""
    return Case(name, payload, tuple(sent[:count] for count in range(len(sent) + 1)))


def arrives(name: str, payload: bytes, *sent: Sent) -> Case:
    """It is in order, and has to arrive."""
    return Case(name, payload, (sent,))


def unless(case: Case, *servers: str, sent: tuple[Sent, ...]) -> Case:
    """The case, with `sent` (or the beginning of it) allowed behind these servers."""
    more = tuple(sent[:count] for count in range(1, len(sent) + 1))
    return replace(case, lenient=servers, more=more)


def streamed(name: str, payload: bytes, *sent: Sent) -> Case:
    """Like `either`; the first may also be broken off."""
    case = either(name, payload, *sent)
    return replace(case, allowed=(*case.allowed, (replace(sent[0], cut=True),)))


def cut(name: str, payload: bytes, sent: Sent) -> Case:
    """It may be refused, or, since bodies are streamed, begin to arrive and be broken off where it goes wrong."""
    return Case(name, payload, (NOTHING, (replace(sent, cut=True),)))


def body(data: bytes, *headers: bytes) -> Sent:
    return Sent(b"POST /api/x", headers, data)


def chunks(data: bytes, *headers: bytes) -> Sent:
    return Sent(b"POST /api/x", headers, data, chunked=True)


SIMPLE = Sent(b"GET /api/x")
TE = b"Transfer-Encoding: chunked"
