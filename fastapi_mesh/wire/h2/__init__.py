"""HTTP/2 to instances (RFC 9113): `wire.py` is the wire; its connections need the package `h2`, extra `http2`."""
