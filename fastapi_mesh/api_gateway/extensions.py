"""What only code can give a gateway: objects with behaviour, where the configuration has data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extensions:
    """Immutable: a change makes a new one (`dataclasses.replace`), and an open gateway takes it whole."""
