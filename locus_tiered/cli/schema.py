"""``schema``: the JSON Schema of stack files, and of every command's ``--json``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from locus_tiered.cli.answers import ANSWERS

__all__ = ["answer_schema", "schema"]


def schema(
    command: Annotated[
        str | None,
        typer.Option("--of", metavar="COMMAND", help="The schema of this command's --json answer instead."),
    ] = None,
) -> None:
    """Print the JSON Schema of a stack's YAML file, for editors.

    Put it beside your files: locus-tiered schema > stack.schema.json
    """
    if command is None:
        from locus_tiered.config import json_schema

        found: dict[str, Any] = json_schema()
    elif command in ANSWERS:
        found = answer_schema(command)
    else:
        typer.echo(f"Error: there is no command {command!r} with --json; there are {', '.join(ANSWERS)}", err=True)
        raise typer.Exit(2)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def answer_schema(command: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one command's answer."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ANSWERS[command].model_json_schema(mode="serialization"),
    }
