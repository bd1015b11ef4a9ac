"""WebSockets through a gateway: the handshake is a request like any other, then messages pass both ways."""
