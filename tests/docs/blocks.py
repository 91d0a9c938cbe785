"""The fenced blocks of a Markdown page, and how a page's Python is run: from top to bottom, in one namespace.

A block may use ``await`` at its top level. A ``text`` block right below a Python block is what that one prints;
``...`` in it stands for anything. A block with ``title="x.py"`` is also written to that file, beside the others of
its page; one whose title starts with ``test_`` is a file of tests, and pytest runs it. A block that is one
``--8<--`` line shows a file of the repository, which has tests of its own.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import linecache
import re
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"^(?P<fence>```+) *(?P<language>[\w+-]*)(?P<attributes>[^\n]*)\n(?P<body>.*?)^(?P=fence) *$", re.M | re.S
)
_TITLE = re.compile(r'title="([^"]+)"')
_INCLUDE = re.compile(r'--8<-- "([^"]+)"')
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name_of(page: Path) -> str:
    """A page as tests call it."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """One fenced block. ``prints`` is what a Python block is said to print, if anything is said."""

    page: Path
    line: int
    language: str
    title: str | None
    body: str
    prints: str | None = None

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def shows(self) -> Path | None:
        """The file of the repository that the block shows."""
        included = _INCLUDE.fullmatch(self.body.strip())
        return None if included is None else ROOT / included[1]


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    matches = list(_FENCE.finditer(text))
    found = []
    for match, following in pairwise([*matches, None]):
        assert match is not None
        title = _TITLE.search(match["attributes"])
        prints = None
        if following is not None and following["language"] == "text":
            between = text[match.end() : following.start()]
            prints = None if between.strip() else following["body"]
        line = text.count("\n", 0, match.start("body")) + 1
        # Ruff formats what is called python, and would take an inclusion for code.
        language = match["language"] or ("python" if ".python" in match["attributes"] else "")
        found.append(Block(page, line, language, title[1] if title else None, match["body"], prints))
    return found


@dataclass
class Run:
    """One page's blocks being run. The current directory is where its files go."""

    runner: asyncio.Runner
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "docs"})

    def block(self, block: Block) -> None:
        """Run one block; fails with the block's place when it raises, or prints something else than it says."""
        if block.title is not None:
            Path(block.title).write_text(block.body, encoding="utf-8")
            if block.title.startswith("test_"):
                self._tests(block)
                return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self._execute(block)
        if block.prints is not None:
            checker = doctest.OutputChecker()
            example = doctest.Example("", block.prints)
            assert checker.check_output(block.prints, printed.getvalue(), _FLAGS), (
                f"{block.where} does not print what it says\n"
                f"{checker.output_difference(example, printed.getvalue(), _FLAGS)}"
            )

    def _execute(self, block: Block) -> None:
        file = f"<{block.where}>"
        # So that tracebacks, and inspect.getsource, find the lines.
        linecache.cache[file] = (len(block.body), None, block.body.splitlines(keepends=True), file)
        code = compile(block.body, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = FunctionType(code, self.names)()
        if inspect.iscoroutine(result):
            self.runner.run(result)

    @staticmethod
    def _tests(block: Block) -> None:
        assert block.title is not None
        options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
        options += ["-o", "asyncio_default_fixture_loop_scope=function"]
        command = [sys.executable, "-m", "pytest", *options, block.title]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{block.where}\n{done.stdout}\n{done.stderr}"
