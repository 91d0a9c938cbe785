"""``flush``: what the write-behind journals of a stack hold goes to the far store now."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import FlushAnswer, Journal
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened, journals
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean, one_line, show_age, show_size
from locus_tiered.cli.working import plain_table

__all__ = ["flush", "pending_of"]


def flush(
    stack: Stack,
    thread: Annotated[
        str | None, typer.Option("--thread", "-t", metavar="THREAD", help="Only what is pending of this thread.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long to try in all.")
    ] = 300.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Send what is pending in the journals to the far store, and wait for it.

    Takes over the journals of processes that have died. Those of processes that live are theirs: they send by
    themselves. Exit code 1 when something stays pending, or lies among the dead letters; it is not lost.
    """

    async def work(session: Session) -> Done:
        import asyncio

        opened = session.open(stack, allow_import=allow_import)
        layers = journals(opened.layer)
        if not layers:
            raise Failure(
                f"{opened.name} writes nothing behind: there is no journal to flush",
                Exit.INCAPABLE,
                hint="only a tier with write: behind has one",
            )
        before = await pending_of(opened)
        try:
            async with asyncio.timeout(timeout):
                for layer in layers:
                    await layer.flush(thread)
        except TimeoutError:
            session.say(f"not all was sent within {timeout:g} s; run it again to go on")
        after = await pending_of(opened)
        answer = FlushAnswer(stack=opened.name, before=before, after=after)
        left = any(journal.rows or journal.dead_letters for journal in after)
        return Done(
            answer, Exit.FOUND if left and thread is None else Exit.FINE, lambda console: _show(console, answer)
        )

    run(Session("flush", json=json, timeout=timeout), work, debug=debug)


async def pending_of(opened: Opened) -> list[Journal]:
    """What each journal of a stack holds. Opening one takes over the journals of dead processes."""
    found = []
    for layer in journals(opened.layer):
        said = layer.pending()
        if inspect.isawaitable(said):
            said = await said
        found.append(_journal(layer.name, said))
    return found


def _journal(name: str, said: Any) -> Journal:
    def value(*names: str) -> Any:
        for each in names:
            if isinstance(said, Mapping):
                if each in said:
                    return said[each]
            elif hasattr(said, each):
                return getattr(said, each)
        return None

    error = value("last_error")
    return Journal(
        name=name,
        rows=value("rows") or 0,
        bytes=value("bytes") or 0,
        oldest_age=value("oldest_age", "oldest"),
        dead_letters=value("dead_letters", "dead") or 0,
        last_error=None if error is None else one_line(str(error), 300),
    )


def _show(console: Console, answer: FlushAnswer) -> None:
    table = plain_table(
        "journal", ("before", "right"), ("now", "right"), ("bytes", "right"), ("oldest", "right"), ("dead", "right")
    )
    for before, after in zip(answer.before, answer.after, strict=True):
        oldest = "-" if after.oldest_age is None else show_age(after.oldest_age)
        dead = Text(str(after.dead_letters), "bold red" if after.dead_letters else "")
        rows = (f"{before.rows:,} rows", f"{after.rows:,} rows", show_size(after.bytes), oldest)
        table.add_row(Text(clean(after.name)), *rows, dead)
    console.print(table)
    for after in answer.after:
        if after.last_error is not None and after.rows:
            console.print(Text(f"{clean(after.name)}: {clean(after.last_error)}", "red"))
        if after.dead_letters:
            console.print(
                Text(
                    f"{clean(after.name)}: {after.dead_letters} rows can never be applied as they are. They stay "
                    "readable in the journal; nothing was dropped.",
                    "bold red",
                )
            )
    if not any(after.rows for after in answer.after):
        console.print(Text("Everything is in the far store.", "green"))
