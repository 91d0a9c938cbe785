"""Arguments and options that several commands share, said once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AllowImport", "Debug", "Jobs", "Json", "Most", "Pattern", "Stack", "Thread", "Threads", "Timeout", "Yes"]

Stack = Annotated[
    str,
    typer.Argument(
        metavar="STACK",
        show_default=False,
        help="A stack's YAML file, or a checkpointer of the SDK by its name: file:./checkpoints, s3:bucket.",
    ),
]


def _named(value: str | list[str] | None) -> str | list[str] | None:
    """No store has a thread without a name: an empty one is a variable that was not set."""
    if "" in ([value] if isinstance(value, str) else value or []):
        raise typer.BadParameter("the thread's id is empty; is a variable of your script not set?")
    return value


Thread = Annotated[str, typer.Argument(metavar="THREAD", show_default=False, callback=_named, help="The thread's id.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document (its schema is in the docs).")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long one call on one member may take.")
]
AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="Let the YAML file import tier types of yours by their dotted path.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole of an error, and the libraries' log.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Pattern = Annotated[
    str, typer.Option("--pattern", "-p", metavar="GLOB", help="Only threads that match, like 'user-*'.")
]
Threads = Annotated[
    list[str] | None,
    typer.Option(
        "--thread", "-t", metavar="THREAD", callback=_named, help="Only this thread; may be given several times."
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Threads worked on side by side.")]
Most = Annotated[int, typer.Option("--most", min=0, metavar="N", help="List at most so many; all are counted.")]
