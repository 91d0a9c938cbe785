"""``threads``: which threads are there."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import ThreadRow, ThreadsAnswer
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.journals import pending_note, rows_pending
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Pattern, Stack, Timeout
from locus_tiered.cli.reading import Reader
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean_id, count, show_age, show_time
from locus_tiered.cli.working import each, plain_table, show_unreachable, with_unreachable
from locus_tiered.core.stamp import stamp_seconds

__all__ = ["threads"]


def threads(
    stack: Stack,
    pattern: Pattern = "*",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="Show at most so many.")] = 50,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the ids, all of them, one a line: for scripts.")
    ] = False,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the threads, with how many checkpoints each has and how old its newest is.

    An id that holds a newline or a control character is shown with a visible stand-in; --json gives it exactly.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        reader = Reader(opened, timeout=timeout)
        found = await reader.threads(pattern)
        shown = found if quiet else found[:limit]
        rows = {thread: ThreadRow(thread=thread) for thread in shown}

        async def look(thread: str) -> None:
            entries = await reader.entries(thread)
            head = entries[0] if entries else None
            rows[thread] = ThreadRow(
                thread=thread,
                checkpoints=len(entries),
                newest=None if head is None else head.id,
                saved_at=None if head is None or head.stamp is None else stamp_seconds(head.stamp),
            )

        if not quiet:
            with session.progress("threads", len(shown)) as bar:
                await each(shown, look, jobs=jobs, bar=bar)
        answer = ThreadsAnswer(
            stack=reader.name,
            total=len(found),
            threads=list(rows.values()),
            pending=rows_pending(opened),
            unreachable=reader.unreachable,
        )
        code = with_unreachable(Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer, quiet))

    run(Session("threads", json=json, timeout=timeout), work, debug=debug)


def _show(console: Console, answer: ThreadsAnswer, quiet: bool) -> None:
    if quiet:
        for row in answer.threads:
            console.print(Text(clean_id(row.thread)), soft_wrap=True)
        return
    table = plain_table("thread", ("checkpoints", "right"), ("newest", "right"), ("saved at", "right"))
    now = time.time()
    for row in answer.threads:
        age = "?" if row.saved_at is None else f"{show_age(now - row.saved_at)} ago"
        table.add_row(Text(clean_id(row.thread)), str(row.checkpoints), age, show_time(row.saved_at))
    if answer.threads:
        console.print(table)
    more = answer.total - len(answer.threads)
    if not answer.total:
        console.print(Text("Nothing is stored there that matches; is the name right?", "yellow"))
    console.print(count(answer.total, "thread") + (f", {more:,} not shown (--limit)" if more > 0 else ""))
    if answer.pending:
        console.print(Text(pending_note(answer.pending), "yellow"))
    show_unreachable(console, answer.unreachable)
