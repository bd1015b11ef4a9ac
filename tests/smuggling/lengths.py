"""Two statements of a body's length, or one that can be read in two ways: Content-Length and Transfer-Encoding."""

from __future__ import annotations

from tests.smuggling.cases import (
    END,
    HIDDEN,
    NEXT,
    SENT_NEXT,
    TE,
    Sent,
    arrives,
    body,
    chunks,
    either,
    get,
    post,
    refused,
    unless,
)


def _length(value: bytes, body: bytes = b"hello") -> bytes:
    return post(b"Content-Length: " + value) + body + HIDDEN


LENGTHS = (
    refused("CL.CL, different", post(b"Content-Length: 0", b"Content-Length: 40") + HIDDEN),
    refused("CL.CL, different, the longer first", post(b"Content-Length: 40", b"Content-Length: 0") + HIDDEN),
    either(
        "CL.CL, equal", post(b"Content-Length: 5", b"Content-Length: 5") + b"hello" + NEXT, body(b"hello"), SENT_NEXT
    ),
    refused("CL list, different", _length(b"5, 40")),
    either("CL list, equal", post(b"Content-Length: 5, 5") + b"hello" + NEXT, body(b"hello"), SENT_NEXT),
    refused("CL signed plus", _length(b"+5")),
    refused("CL signed minus", _length(b"-5")),
    refused("CL minus zero", _length(b"-0", b"")),
    refused("CL hexadecimal", _length(b"0x5")),
    refused("CL with an exponent", _length(b"5e0")),
    refused("CL decimal fraction", _length(b"5.0")),
    refused("CL underscore between digits", _length(b"1_0", b"hellohello")),
    refused("CL space between digits", _length(b"4 0", b"")),
    refused("CL comma at the end", _length(b"5,")),
    refused("CL quoted", _length(b'"5"')),
    refused("CL empty", _length(b"", b"")),
    refused("CL of letters", _length(b"five")),
    refused("CL with a unit", _length(b"5b")),
    refused("CL beyond 64 bits", _length(b"18446744073709551621")),
    refused("CL of 400 digits", _length(b"9" * 400)),
    refused("CL of Arabic digits", _length("٥".encode())),
    refused("CL superscript", _length(b"\xb2")),
    refused("CL after a vertical tab", _length(b"\x0b5")),
    refused("CL before a NUL", _length(b"5\x00")),
    refused("CL before a form feed", _length(b"5\x0c")),
    either("CL with leading zeros", post(b"Content-Length: 0005") + b"hello" + NEXT, body(b"hello"), SENT_NEXT),
    either("CL between blanks", post(b"Content-Length: \t 5 \t") + b"hello" + NEXT, body(b"hello"), SENT_NEXT),
    either("CL without a space", post(b"Content-Length:5") + b"hello" + NEXT, body(b"hello"), SENT_NEXT),
    arrives("CL in odd case", post(b"cOnTeNt-LeNgTh: 5") + b"hello" + NEXT, body(b"hello"), SENT_NEXT),
    arrives("CL of nothing, and the next request", post(b"Content-Length: 0") + NEXT, body(b""), SENT_NEXT),
    arrives(
        "CL hides a request in its body",
        post(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN + NEXT,
        body(HIDDEN),
        SENT_NEXT,
    ),
    either(
        "CL in GET",
        get(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN + NEXT,
        Sent(b"GET /api/x", (), HIDDEN),
        SENT_NEXT,
    ),
    either(
        "CL in HEAD",
        post(b"Content-Length: %d" % len(HIDDEN), line=b"HEAD /api/x HTTP/1.1") + HIDDEN + NEXT,
        Sent(b"HEAD /api/x", (), HIDDEN),
        SENT_NEXT,
    ),
    refused("CL look-alike", get(b"Content_Length: 40") + HIDDEN),
    refused("CL look-alike beside CL", post(b"Content-Length: 5", b"Content_Length: 0") + b"hello" + HIDDEN),
    refused("CL with a space before its colon", post(b"Content-Length : 40") + HIDDEN),
    refused("CL with a tab before its colon", post(b"Content-Length\t: 40") + HIDDEN),
    refused("CL with a NUL in its name", post(b"Content-\x00Length: 40") + HIDDEN),
    unless(
        refused("CL with a space before its name", post(b"X: y", b" Content-Length: 40") + HIDDEN),
        "h11",
        sent=(Sent(b"POST /api/x", (b"x: y Content-Length: 40",), b""), Sent(b"GET /api/smuggled")),
    ),
    refused(
        "CL on the first header line, folded",
        b"POST /api/x HTTP/1.1\r\n Content-Length: 40\r\nHost: gw\r\n\r\n" + HIDDEN,
    ),
)

CODINGS = (
    refused("CL.TE", post(b"Content-Length: 5", TE) + END + HIDDEN),
    refused("TE.CL", post(TE, b"Content-Length: 5") + END + HIDDEN),
    refused(
        "TE.CL with the hidden request in a chunk",
        post(TE, b"Content-Length: 4") + b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + END + NEXT,
    ),
    refused("CL.0 with TE list", post(b"Content-Length: 0", b"Transfer-Encoding: chunked, identity") + HIDDEN),
    refused("TE.TE chunked, identity", post(TE, b"Transfer-Encoding: identity") + END + HIDDEN),
    refused("TE.TE identity, chunked", post(b"Transfer-Encoding: identity", TE) + END + HIDDEN),
    refused("TE.TE chunked twice", post(TE, TE) + END + HIDDEN),
    refused("TE.TE chunked and x", post(TE, b"Transfer-encoding: x") + END + HIDDEN),
    refused("TE list: identity, chunked", post(b"Transfer-Encoding: identity, chunked") + END + HIDDEN),
    refused("TE list: chunked, identity", post(b"Transfer-Encoding: chunked, identity") + END + HIDDEN),
    refused("TE list: chunked, chunked", post(b"Transfer-Encoding: chunked, chunked") + END + HIDDEN),
    refused("TE list: gzip, chunked", post(b"Transfer-Encoding: gzip, chunked") + END + HIDDEN),
    refused("TE list: chunked, gzip", post(b"Transfer-Encoding: chunked, gzip") + END + HIDDEN),
    refused("TE gzip", post(b"Transfer-Encoding: gzip") + END + HIDDEN),
    refused("TE identity", post(b"Transfer-Encoding: identity") + HIDDEN),
    refused("TE identity and CL", post(b"Content-Length: 5", b"Transfer-Encoding: identity") + b"hello" + HIDDEN),
    refused("TE cow", post(b"Transfer-Encoding: cow") + END + HIDDEN),
    refused("TE xchunked", post(b"Transfer-Encoding: xchunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE chunkedx", post(b"Transfer-Encoding: chunkedx") + END + HIDDEN),
    refused("TE chunk", post(b"Transfer-Encoding: chunk") + END + HIDDEN),
    refused("TE empty", post(b"Transfer-Encoding:", b"Content-Length: 5") + END + HIDDEN),
    refused("TE quoted", post(b'Transfer-Encoding: "chunked"') + END + HIDDEN),
    refused("TE with a parameter", post(b"Transfer-Encoding: chunked;q=1") + END + HIDDEN),
    refused("TE comma first", post(b"Transfer-Encoding: ,chunked") + END + HIDDEN),
    refused("TE comma last", post(b"Transfer-Encoding: chunked,") + END + HIDDEN),
    refused("TE after a vertical tab", post(b"Transfer-Encoding: \x0bchunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE before a vertical tab", post(b"Transfer-Encoding: chunked\x0b", b"Content-Length: 5") + END + HIDDEN),
    refused("TE after a NUL", post(b"Transfer-Encoding: \x00chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE before a NUL", post(b"Transfer-Encoding: chunked\x00", b"Content-Length: 5") + END + HIDDEN),
    refused("TE before a form feed", post(b"Transfer-Encoding: chunked\x0c") + END + HIDDEN),
    refused("TE before a delete", post(b"Transfer-Encoding: chunked\x7f") + END + HIDDEN),
    refused("TE after a no-break space", post(b"Transfer-Encoding: \xa0chunked") + END + HIDDEN),
    refused("TE before a Latin-1 next line", post(b"Transfer-Encoding: chunked\x85") + END + HIDDEN),
    either("TE after a tab", post(b"Transfer-Encoding:\tchunked") + END + NEXT, chunks(b""), SENT_NEXT),
    either("TE before a tab", post(b"Transfer-Encoding: chunked\t") + END + NEXT, chunks(b""), SENT_NEXT),
    either("TE before a space", post(b"Transfer-Encoding: chunked ") + END + NEXT, chunks(b""), SENT_NEXT),
    either("TE in odd case", post(b"tRANSFER-eNCODING: cHUNKED") + END + NEXT, chunks(b""), SENT_NEXT),
    refused(
        "TE with a space before its colon", post(b"Transfer-Encoding : chunked", b"Content-Length: 5") + END + HIDDEN
    ),
    refused(
        "TE with a tab before its colon", post(b"Transfer-Encoding\t: chunked", b"Content-Length: 5") + END + HIDDEN
    ),
    refused(
        "TE with a vertical tab before its colon",
        post(b"Transfer-Encoding\x0b: chunked", b"Content-Length: 5") + END + HIDDEN,
    ),
    refused(
        "TE with a NUL before its colon", post(b"Transfer-Encoding\x00: chunked", b"Content-Length: 5") + END + HIDDEN
    ),
    refused(
        "TE with a CR before its colon", post(b"Transfer-Encoding\r: chunked", b"Content-Length: 5") + END + HIDDEN
    ),
    refused("TE without its colon", post(b"Transfer-Encoding chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE look-alike", post(b"Transfer_Encoding: chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE look-alike alone", post(b"Transfer_Encoding: chunked") + END + HIDDEN),
    refused(
        "TE with a non-ASCII look-alike",
        post(b"Tran\xc5\xbffer-Encoding: chunked", b"Content-Length: 5") + END + HIDDEN,
    ),
    refused("TE behind a bare LF", post(b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE behind a bare CR", post(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE folded to nothing", post(b"Transfer-Encoding:", b" chunked", b"Content-Length: 5") + END + HIDDEN),
    refused("TE folded in the middle", post(b"Transfer-Encoding: chunked,", b" identity") + END + HIDDEN),
    refused("TE in HTTP/1.0", post(TE, line=b"POST /api/x HTTP/1.0") + END + HIDDEN),
    refused("TE and CL in HTTP/1.0", post(TE, b"Content-Length: 5", line=b"POST /api/x HTTP/1.0") + END + HIDDEN),
    either("TE in GET", get(TE) + END + NEXT, Sent(b"GET /api/x", (), b"", chunked=True), SENT_NEXT),
    either(
        "TE in HEAD",
        post(TE, line=b"HEAD /api/x HTTP/1.1") + END + NEXT,
        Sent(b"HEAD /api/x", (), b"", chunked=True),
        SENT_NEXT,
    ),
    either(
        "TE in OPTIONS",
        post(TE, line=b"OPTIONS /api/x HTTP/1.1") + END + NEXT,
        Sent(b"OPTIONS /api/x", (), b"", chunked=True),
        SENT_NEXT,
    ),
)


CASES = LENGTHS + CODINGS
