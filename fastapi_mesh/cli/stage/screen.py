"""What the demo prints: plain lines, coloured where they go to a terminal."""

from __future__ import annotations

from dataclasses import dataclass

import typer


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one promise was kept, and what was seen."""

    promise: str
    kept: bool
    seen: str


class Screen:
    """Prints. `live` is whether somebody watches: then progress is shown too."""

    def __init__(self, *, live: bool) -> None:
        self.live = live

    def title(self, text: str) -> None:
        typer.secho(f"\n{text}", bold=True)

    def line(self, text: str) -> None:
        typer.echo(f"  {text}")

    def progress(self, text: str) -> None:
        """A line for those who watch only."""
        if self.live:
            typer.secho(f"  {text}", dim=True)

    def verdict(self, verdict: Verdict) -> None:
        mark = typer.style("kept  ", fg="green") if verdict.kept else typer.style("BROKEN", fg="red", bold=True)
        typer.echo(f"  {mark} {verdict.promise}: {verdict.seen}")

    def trouble(self, text: str) -> None:
        """What went wrong, on standard error."""
        typer.secho(text, fg="red", err=True)
