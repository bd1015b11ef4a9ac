"""Chunked bodies: sizes, extensions, line ends and trailers (RFC 9112 section 7.1)."""

from __future__ import annotations

from tests.smuggling.cases import (
    END,
    HIDDEN,
    NEXT,
    SENT_NEXT,
    TE,
    Case,
    Sent,
    arrives,
    chunks,
    cut,
    post,
    streamed,
    unless,
)


def _chunked(data: bytes, *after: bytes) -> bytes:
    return post(TE) + data + b"".join(after)


HELLO = b"5\r\nhello\r\n"
CHUNKS = (
    arrives("chunks in order", _chunked(HELLO, b"6\r\n world\r\n", END, NEXT), chunks(b"hello world"), SENT_NEXT),
    arrives("chunk size in upper case", _chunked(b"A\r\nhellohello\r\n", END, NEXT), chunks(b"hellohello"), SENT_NEXT),
    streamed("chunk size with leading zeros", _chunked(b"00005\r\nhello\r\n", END, NEXT), chunks(b"hello"), SENT_NEXT),
    streamed(
        "chunk size with many leading zeros",
        _chunked(b"0" * 40 + b"5\r\nhello\r\n", END, NEXT),
        chunks(b"hello"),
        SENT_NEXT,
    ),
    streamed("last chunk of many zeros", _chunked(HELLO, b"0000\r\n\r\n", NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk extension", _chunked(b"5;a=b\r\nhello\r\n", END, NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk extension, quoted", _chunked(b'5;a="b;c"\r\nhello\r\n', END, NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk extension of the last chunk", _chunked(HELLO, b"0;a\r\n\r\n", NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk extension, empty", _chunked(b"5;\r\nhello\r\n", END, NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk extension after a blank", _chunked(b"5 ;a\r\nhello\r\n", END, NEXT), chunks(b"hello"), SENT_NEXT),
    streamed("chunk size before a blank", _chunked(b"5 \r\nhello\r\n", END, NEXT), chunks(b"hello"), SENT_NEXT),
)
BAD_CHUNKS = (
    *(
        cut(name, _chunked(data), chunks(b"hello"))
        for name, data in (
            ("chunk size negative", b"-5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size signed plus", b"+5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size with 0x", b"0x5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size with an underscore", b"0_5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size empty", b"\r\nhello\r\n" + END + HIDDEN),
            ("chunk size of letters", b"xyz\r\nhello\r\n" + END + HIDDEN),
            ("chunk size of letters after a digit", b"5g\r\nhello\r\n" + END + HIDDEN),
            ("chunk size after a blank", b" 5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size of 4 KiB of digits", b"f" * 4096 + b"\r\nhello\r\n" + END + HIDDEN),
            ("chunk size before a NUL", b"5\x00\r\nhello\r\n" + END + HIDDEN),
            ("chunk size before a vertical tab", b"5\x0b\r\nhello\r\n" + END + HIDDEN),
            ("chunk size before a comma", b"5,5\r\nhello\r\n" + END + HIDDEN),
            ("chunk size ends with a bare LF", b"5\nhello\r\n" + END + HIDDEN),
            ("chunk size ends with a bare CR", b"5\rhello\r\n" + END + HIDDEN),
            ("chunk ends with a bare LF", b"5\r\nhello\n" + END + HIDDEN),
            ("chunk ends with nothing", b"5\r\nhello" + END + HIDDEN),
            ("chunk ends with two other bytes", b"5\r\nhelloXX" + END + HIDDEN),
            ("chunk longer than its size", b"3\r\nhello\r\n" + END + HIDDEN),
            ("chunk extension with a bare LF", b"5;a\n" + b"hello\r\n" + END + HIDDEN),
            ("last chunk ends with a bare LF", HELLO + b"0\n\r\n" + HIDDEN),
            ("last chunk is missing", HELLO),
            ("last chunk without the last line", HELLO + b"0\r\n"),
        )
    ),
    cut(
        "chunk size beyond 64 bits",
        _chunked(b"10000000000000005\r\nhello\r\n", END, HIDDEN),
        chunks(b"hello\r\n" + END + HIDDEN),  # h11 waits for the rest of it
    ),
    *(
        unless(cut(name, _chunked(data), chunks(b"hello")), "h11", sent=(chunks(b"hello"), Sent(b"GET /api/smuggled")))
        for name, data in (
            ("chunk extension with a bare CR", b"5;a\rb\r\nhello\r\n" + END + HIDDEN),
            ("chunk extension with a NUL", b"5;a\x00b\r\nhello\r\n" + END + HIDDEN),
            ("last line is a bare LF", HELLO + b"0\r\n\n" + HIDDEN),
            ("trailer with a bare LF", HELLO + b"0\r\nX: 1\nY: 2\r\n\r\n" + HIDDEN),
        )
    ),
    streamed(
        "chunk extension of 256 KiB",
        _chunked(b"5;" + b"a" * 2**18 + b"\r\nhello\r\n", END, NEXT),
        chunks(b"hello"),
        SENT_NEXT,
    ),
)


def _trailer(field: bytes) -> Case:
    """uvicorn with httptools makes a header of a trailer that comes together with the head."""
    name = f"trailer: {field.decode()}"
    case = streamed(name, _chunked(HELLO, b"0\r\n", field, b"\r\n\r\n", NEXT), chunks(b"hello"), SENT_NEXT)
    header, _, value = field.partition(b":")
    return unless(case, "httptools", sent=(chunks(b"hello", header.lower() + b":" + value), SENT_NEXT))


TRAILERS = (
    _trailer(b"X-Sum: 1"),
    unless(
        streamed(
            "trailer that was announced",
            post(TE, b"Trailer: X-Sum") + HELLO + b"0\r\nX-Sum: 1\r\n\r\n" + NEXT,
            chunks(b"hello"),
            SENT_NEXT,
        ),
        "httptools",
        sent=(chunks(b"hello", b"x-sum: 1"), SENT_NEXT),
    ),
    *(
        _trailer(field)
        for field in (
            b"Content-Length: 40",
            b"Transfer-Encoding: chunked",
            b"Host: evil",
            b"Authorization: Bearer x",
            b"X-Forwarded-For: 6.6.6.6",
            b"Connection: keep-alive",
            b"Cookie: a=b",
        )
    ),
    cut("trailer with a space before its colon", _chunked(HELLO, b"0\r\nX : 1\r\n\r\n", HIDDEN), chunks(b"hello")),
    cut(
        "trailer without a colon", _chunked(HELLO, b"0\r\nGET /api/smuggled HTTP/1.1\r\n\r\n", HIDDEN), chunks(b"hello")
    ),
    cut("trailer with a NUL", _chunked(HELLO, b"0\r\nX: \x00\r\n\r\n", HIDDEN), chunks(b"hello")),
    streamed(
        "trailers of 1 MiB",
        _chunked(HELLO, b"0\r\n", b"X: y\r\n" * (2**20 // 6), b"\r\n", NEXT),
        chunks(b"hello"),
        SENT_NEXT,
    ),
)

CASES = CHUNKS + BAD_CHUNKS + TRAILERS
