"""Finds the line of each key of a TOML text, which `tomllib` doesn't tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi_mesh.config.problems import Location

_KEY = re.compile(r"""\s*(?:"([^"\\]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_TOKEN = re.compile(r"""\"{3}|'{3}|"(?:\\.|[^"\\])*"|'[^']*'|\#|[\[\]]""")
_ENDS = {'"""': re.compile(r'(?:\\.|[^"\\]|"{1,2}(?!"))*?"{3,5}'), "'''": re.compile(r"(?:[^']|'{1,2}(?!'))*?'{3,5}")}
"""What a multi-line text has up to its end; up to two quotes may stand right before the closing three."""


def toml_lines(text: str) -> dict[Location, int]:
    """The line of each key and table of a valid TOML text, counted from 1; those in inline tables are left out."""
    lines: dict[Location, int] = {}
    table: Location = ()
    counts: dict[Location, int] = {}
    quotes, depth = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        rest = line
        if not quotes and not depth:
            header = line.lstrip()
            if header.startswith("["):
                many = header.startswith("[[")
                table = _table(_key(header[2 if many else 1 :])[0], counts, many=many)
                lines.setdefault(table, number)
                continue
            steps, rest = _key(line)
            if steps:
                lines.setdefault((*table, *steps), number)
        quotes, depth = _left_open(rest, quotes, depth)
    return lines


def _key(text: str) -> tuple[list[str], str]:
    """A dotted key at the beginning of `text`, and what follows it."""
    steps: list[str] = []
    while match := _KEY.match(text):
        steps.append(next(group for group in match.groups() if group is not None))
        text = text[match.end() :]
        if not text.startswith("."):
            break
        text = text[1:]
    return steps, text


def _table(steps: list[str], counts: dict[Location, int], *, many: bool) -> Location:
    """The place of a table header; a step into an array of tables means its last element."""
    place: Location = ()
    for index, step in enumerate(steps):
        place = (*place, step)
        if many and index == len(steps) - 1:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, counts[place])
    return place


def _left_open(text: str, quotes: str, depth: int) -> tuple[str, int]:
    """The quotes of a multi-line text, and how many arrays, that are open at the end of this line."""
    while text:
        if quotes:
            end = _ENDS[quotes].match(text)
            if end is None:
                return quotes, depth
            quotes, text = "", text[end.end() :]
            continue
        token = _TOKEN.search(text)
        if token is None or token[0] == "#":
            break
        text = text[token.end() :]
        if token[0] in _ENDS:
            quotes = token[0]
        else:
            depth += {"[": 1, "]": -1}.get(token[0], 0)
    return quotes, depth
