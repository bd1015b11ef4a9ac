"""Runs the Python of a Markdown page: its blocks in order, in one namespace, in one event loop.

A page may hold `await` at the top level. What readers need not see, such as a service that the page calls, or an
assertion about what a snippet did, stands in a comment that begins with `<!-- run`:

    <!-- run
    assert answer == {"bio": "hello"}
    -->

A block with `title="user.py"` is a file: it is written to the current folder and not run, so that a hidden block can
start it as a process, as the reader does.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"/]+)"')
_HIDDEN = re.compile(r"^<!-- run\n(?P<code>.*?)^-->$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of a page; `line` is where its code begins."""

    page: Path
    line: int
    info: str
    source: str

    def is_a_file(self) -> bool:
        """Whether the block shows a file; if so it is written."""
        title = _TITLE.search(self.info)
        if title is not None:
            Path(title[1]).write_text(self.source)
        return title is not None

    def compiled(self) -> CodeType:
        """Code whose line numbers are those of the page."""
        tree = ast.parse("\n" * (self.line - 1) + self.source, str(self.page))
        return compile(tree, str(self.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def snippets_of(page: Path, language: str = "python") -> list[Snippet]:
    """The blocks of one language in a page, shown and hidden, in order."""
    text = page.read_text()
    found = []
    for match in [*_FENCE.finditer(text), *_HIDDEN.finditer(text)]:
        info = match.groupdict().get("info", "python")
        if info.split()[:1] == [language]:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Snippet(page, line, info, textwrap.dedent(match["code"])))
    return sorted(found, key=lambda snippet: snippet.line)


async def run(page: Path) -> int:
    """Run every block of a page; returns how many ran. Whatever they raise goes up, with the page's line numbers."""
    module = ModuleType(page.stem.replace("-", "_"))
    ran = 0
    for snippet in snippets_of(page):
        if snippet.is_a_file():
            continue
        code = snippet.compiled()
        outcome = eval(code, module.__dict__)
        if code.co_flags & inspect.CO_COROUTINE:
            await outcome
        ran += 1
    return ran
