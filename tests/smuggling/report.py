"""Prints what becomes of each case behind each server: python -m tests.smuggling.report > table.md."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from tests.smuggling import chunked, heads, lengths
from tests.smuggling.rig import Outcome, run_all

SERVERS = ("standalone", "httptools", "h11", "zttp")
CASES = lengths.CASES + chunked.CASES + heads.CASES


async def outcomes() -> dict[str, list[Outcome]]:
    """By server, in the order of the cases."""
    return {server: await run_all(server, CASES) for server in SERVERS}


def table(found: dict[str, list[Outcome]]) -> str:
    """A row for each case, then one that counts who refused."""
    rows = [f"| request | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for row in zip(*found.values(), strict=True):
        cells = " | ".join(f"**{each.what}**" if each.problem else each.what for each in row)
        rows.append(f"| {row[0].case.name} | {cells} |")
    for kind in ("server", "gateway", "sent on", "broken off", "no answer"):
        counts = Counter({server: sum(kind in each.what for each in of_it) for server, of_it in found.items()})
        rows.append(f"| *{kind}* | {' | '.join(str(counts[server]) for server in found)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(table(asyncio.run(outcomes())))
