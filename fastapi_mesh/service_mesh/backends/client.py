"""The HTTP client for a registry's or config store's server: its address, TLS and credentials, from the settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from fastapi_mesh.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_mesh.config.servers import ServerSettings
    from fastapi_mesh.core.control import Control


MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer, of which a list of 10 000 instances takes some 20 MiB; whatever sends more is not the server."""


def control_client(
    settings: ServerSettings,
    base_url: str,
    *,
    headers: Mapping[str, str] | None = None,
    max_connections: int = 100,
) -> Control:
    """A client of the server at `base_url`. Raises ConfigurationError for TLS material that can't be used."""
    from fastapi_mesh.wire.http import ControlClient  # imported late: httpx2 costs 0.1 s, and most nodes need none

    context = tls_context(settings) if base_url.startswith("https:") else None
    timeout = settings.request_timeout
    return ControlClient(
        base_url,
        ssl_context=context,
        headers=headers,
        timeout=timeout,
        max_connections=max_connections,
        max_size=MAX_ANSWER,
    )


def tls_context(settings: ServerSettings) -> ssl.SSLContext:
    """Whom to trust, and the client certificate. Raises ConfigurationError naming the file that is wrong."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"ca_path: {settings.ca_path} can't be used: {error}") from error
    if settings.cert_path is not None:
        try:
            # A password asked for on the terminal would hang a server's start.
            context.load_cert_chain(settings.cert_path, settings.key_path, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cert_path: {settings.cert_path} and its key {settings.key_path or '(in the same file)'} can't be "
                f"used: {error}"
            ) from error
    return context
