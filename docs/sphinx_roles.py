"""For mkdocstrings: docstrings are written in the dialect of Sphinx, and pages in Markdown.

A role becomes a code span, what follows ``::`` a block of code, a simple table a table. Two parameters that are
described together are described one after the other. Drawings stay as they are.
"""

from __future__ import annotations

import re
import textwrap
from itertools import pairwise
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`~?([^`]+)`")
_LITERAL = re.compile(r"^(?P<lead>.*?)::\n\n(?P<block>(?:(?: {4}.*)?\n)+)", re.M)
_TABLE = re.compile(r"^(?P<rule>=+(?: +=+)+)\n(?P<head>.*)\n(?P=rule)\n(?P<rows>(?:.*\n)*?)(?P=rule)$", re.M)
_TWO = re.compile(r"^(?P<by> +)(?P<one>\w+), (?P<other>\w+): (?P<text>.*(?:\n(?P=by) +\S.*)*)", re.M)


def _fenced(match: re.Match[str]) -> str:
    block = textwrap.dedent(match["block"]).strip("\n")
    language = "text" if "──" in block or "<" in block else "python"
    lead = f"{match['lead']}:\n\n" if match["lead"] else ""
    return f"{lead}```{language}\n{block}\n```\n\n"


def _table(match: re.Match[str]) -> str:
    starts = [0, *(found.end() for found in re.finditer(" +", match["rule"]))]
    spans = [*pairwise(starts), (starts[-1], None)]
    lines = [match["head"], *match["rows"].splitlines()]
    rows = ["| " + " | ".join(line[start:end].strip() for start, end in spans) + " |" for line in lines]
    return "\n".join([rows[0], "| --- " * len(spans) + "|", *rows[1:]])


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    text = _TABLE.sub(_table, text)
    text = _TWO.sub(r"\g<by>\g<one>: \g<text>\n\g<by>\g<other>: As `\g<one>`.", text)
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", text).replace("``", "`")
    return _LITERAL.sub(_fenced, text + "\n").rstrip("\n")


class SphinxRoles(griffe.Extension):
    """Rewrites every docstring when it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
