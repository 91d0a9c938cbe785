"""``flush``: what the write-behind journals of a stack hold goes to the far store now."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import FlushAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.journals import after_flush, on_disk
from locus_tiered.cli.opening import Opened, journals
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack
from locus_tiered.cli.session import Bar, Done, Session, run
from locus_tiered.cli.text import clean, show_age, show_size
from locus_tiered.cli.working import plain_table
from locus_tiered.core.errors import BackendError, JournalError, LocusTieredError, QuorumError

__all__ = ["flush"]

_LOOK_SECONDS = 0.2


def flush(
    stack: Stack,
    thread: Annotated[
        str | None, typer.Option("--thread", "-t", metavar="THREAD", help="Only what is pending of this thread.")
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--retry-dead-letters", help="Also try again what the far store never took.")
    ] = False,
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
        opened = session.open(stack, allow_import=allow_import)
        layers = journals(opened.layer)
        if not layers:
            raise Failure(
                f"{opened.name} writes nothing behind: there is no journal to flush",
                Exit.INCAPABLE,
                hint="only a tier with write: behind has one",
            )
        before = on_disk(opened)
        failure: LocusTieredError | None = None
        session.interrupted_at = lambda: "What was not sent stays in the journal; run it again to go on."
        try:
            with session.progress("sending", sum(journal.rows for journal in before)) as bar:
                watching = asyncio.ensure_future(_watch(opened, bar, sum(journal.rows for journal in before)))
                try:
                    async with asyncio.timeout(timeout):
                        for layer in layers:
                            if dead_letters:
                                await layer.retry_dead_letters()
                            await layer.flush(thread)
                finally:
                    watching.cancel()
        except TimeoutError:
            session.say(f"Not all was sent within {timeout:g} s; run it again to go on.")
        except (BackendError, JournalError, QuorumError) as error:
            failure = error
            session.say(str(error))
        after = after_flush(opened)
        for layer in layers:
            layer.drain_timeout = 0.0  # it was tried for as long as was asked: close() need not try again
        answer = FlushAnswer(stack=opened.name, before=before, after=after)
        left = any(journal.rows for journal in after) and thread is None
        code = Exit.FOUND if left or any(journal.dead_letters for journal in after) else Exit.FINE
        return Done(answer, code if failure is None else Exit.UNREACHABLE, lambda console: _show(console, answer))

    run(Session("flush", json=json, timeout=timeout), work, debug=debug)


async def _watch(opened: Opened, bar: Bar, total: int) -> None:
    """Move the bar while rows are sent."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        said = [layer.pending() for layer in journals(opened.layer)]
        if all(each.opened for each in said):
            bar.reach(total - sum(each.rows for each in said))


def _show(console: Console, answer: FlushAnswer) -> None:
    table = plain_table("journal", ("before", "right"), ("now", "right"), ("bytes", "right"), ("oldest", "right"))
    for before, after in zip(answer.before, answer.after, strict=True):
        oldest = "-" if after.oldest_age is None else show_age(after.oldest_age)
        cells = (f"{before.rows:,} rows", f"{after.rows:,} rows", show_size(after.bytes), oldest)
        table.add_row(Text(clean(after.name)), *cells)
    console.print(table)
    for after in answer.after:
        name = clean(after.name)
        if after.last_error is not None:
            console.print(Text(f"{name}: the far store does not take them: {clean(after.last_error)}", "red"))
        if after.others:
            console.print(f"{name}: {after.others:,} more rows are those of processes that live: they send them.")
        if after.dead_letters:
            told = f"{name}: {after.dead_letters:,} dead letters, which the far store never took. They stay readable;"
            console.print(Text(f"{told} --retry-dead-letters tries them again.", "bold red"))
    if not any(after.rows or after.dead_letters for after in answer.after):
        console.print(Text("Everything is in the far store.", "green"))
