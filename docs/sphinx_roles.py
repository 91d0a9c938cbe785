"""For mkdocstrings: docstrings are written with roles, and Markdown has none.

``:class:`Layer``` becomes a code span that links where there is something to link to, ``example::`` the block of
Python that follows it. Drawings stay as they are.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`~?([^`]+)`")
_LITERAL = re.compile(r"^(?P<lead>.*?)::\n\n(?P<block>(?:(?: {4}.*)?\n)+)", re.M)


def _fenced(match: re.Match[str]) -> str:
    block = textwrap.dedent(match["block"]).strip("\n")
    language = "text" if "──" in block or "<" in block else "python"
    lead = f"{match['lead']}:\n\n" if match["lead"] else ""
    return f"{lead}```{language}\n{block}\n```\n\n"


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    text = _LITERAL.sub(_fenced, text + "\n").rstrip("\n")
    return _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", text.replace("``", "`"))


class SphinxRoles(griffe.Extension):
    """Rewrites every docstring when it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
