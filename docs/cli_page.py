"""``cli.md``: every command from the application itself; and the JSON Schemas of the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import typer

from locus_tiered.cli.answers import ANSWERS
from locus_tiered.cli.app import app
from locus_tiered.cli.exits import MEANINGS
from locus_tiered.cli.schema import answer_schema

__all__ = ["SCHEMAS", "cli"]

_HEAD = """\
`locus-tiered` looks into the checkpoint stores of agents and keeps them in order. It comes with the package:

```bash
pip install "locus-tiered[s3]"
locus-tiered threads s3:agents
locus-tiered ls stack.yaml support-4711
locus-tiered verify stack.yaml
```

**STACK** is the path of a stack's YAML file, or any name that the SDK's `get_checkpointer` takes: `file:./checkpoints`,
`s3:bucket`, `tiered:stack.yaml`. Every command works on any checkpointer of the SDK, in a stack or not. Where one lacks
what a command needs (`HTTPCheckpointer` cannot list its threads), the command says so and what is possible instead
(`--thread ID`). An id that begins with a dash goes behind `--`: `locus-tiered ls stack.yaml -- -4711`.

Safe on a live store:

- **Looking changes nothing.** A load through a stack fills its near tiers, mends replicas and takes over journals;
  these commands ask the stores below instead. What another process has in its memory or its journal only, they do not
  see: `stats` says how much lies in journals. What one replica still holds because it missed a delete, they show, and
  in which replica it is.
- **What changes something asks**, or takes `--yes`. Without a terminal to ask on, it does nothing and ends with 2.
- **Ctrl-C is clean.** What was done stays done, and the same command goes on from there.
- **No secret is printed**: no password of a URL, no key from a file or the environment. `--debug` shows the libraries'
  own errors, which may hold one.
- Threads go through one at a time, or `--jobs` side by side; of states, only those being worked on are in memory. The
  ids of all threads are: the SDK lists them all at once.

Answers go to standard output, everything else (progress, questions, errors) to standard error. Progress bars are drawn
on terminals only. `locus-tiered --install-completion` sets up your shell's completion.
"""

_JSON = """\
With `--json` a command prints exactly one JSON document on standard output, also when it fails. Within `"version": 1`
fields are only added. A wrong command line is told as text, with exit code 2. The schemas:
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len))
    metavar = parameter.metavar
    return names if parameter.is_flag or not metavar else f"{names} `{metavar}`"


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    if default is None or default is False or default == () or callable(default):
        return ""
    return f"`{default}`"


def _told(text: str | None) -> str:
    """A help text as Markdown: flags as code."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", _cell(text or ""))


def _command(name: str, command: Any) -> str:
    words = [f"locus-tiered {name}"]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    words += [each.metavar or each.name.upper() for each in arguments]
    words += [f"{max(each.opts, key=len)} {each.metavar}" for each in options if each.required]
    if any(not each.required for each in options):
        words.append("[OPTIONS]")
    paragraphs = re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", command.help or "").strip()
    lines = [f"## {name}\n", "```text", " ".join(words), "```\n", paragraphs + "\n"]
    rows = [(f"`{each.metavar or each.name.upper()}`", "", _told(each.help)) for each in arguments]
    rows += [(_option(each), _default(each), _told(each.help)) for each in options]
    if rows:
        lines += ["| | default | |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def cli(generated: str) -> str:
    """The whole page; ``generated`` is the mark of generated pages."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line\n", generated + "\n", _HEAD]
    parts.append("## Exit codes\n")
    parts += ["| code | |", "| --- | --- |"]
    parts += [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    parts.append("\n## Answers as JSON\n")
    parts.append(_JSON)
    parts.append(", ".join(f"[{name}](cli-schemas/{name}.json)" for name in ANSWERS) + ".\n")
    parts += [_command(name, command) for name, command in group.commands.items()]
    return "\n".join(parts)


def _schema(name: str) -> Callable[[], str]:
    return lambda: json.dumps(answer_schema(name), indent=2) + "\n"


SCHEMAS: Mapping[str, Callable[[], str]] = {f"cli-schemas/{name}.json": _schema(name) for name in ANSWERS}
"""The JSON Schema files beside the page."""
