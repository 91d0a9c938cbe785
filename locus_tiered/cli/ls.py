"""``ls``: the checkpoints of a thread, and which tier has which."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import Listed, LsAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.journals import pending_note, rows_pending
from locus_tiered.cli.opening import Place
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack, Thread, Timeout
from locus_tiered.cli.reading import Reader, entries_of
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.states import is_iteration_save, saved_at, size_of, state_of, waits_for
from locus_tiered.cli.text import clean, clean_id, count, show_age, show_size, show_time
from locus_tiered.cli.working import plain_table, show_unreachable, with_unreachable
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, shorten
from locus_tiered.core.stamp import stamp_seconds

__all__ = ["ls", "seen_in"]

_MARKS = {"same": "yes", "other": "OLD", "absent": "-"}


def ls(
    stack: Stack,
    thread: Thread,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="Show at most so many.")] = 20,
    long: Annotated[
        bool, typer.Option("--long", "-l", help="Load each: its size, its messages, and what it waits for.")
    ] = False,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the checkpoints of a thread, newest first, and which tier has which.

    OLD in a tier's column: it holds another version of that checkpoint. The memory of a running process cannot be
    seen from here.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        reader = Reader(opened, timeout=timeout)
        pending = rows_pending(opened)
        entries = await reader.entries(thread)
        if not entries:
            told = f"thread {shorten(thread)} has no checkpoint in {reader.name}"
            raise Failure(told, Exit.FOUND, hint=pending_note(pending) or None)
        places = [place for place in reader.places if not place.private or place.role != "near"]
        seen = await seen_in(reader, places, thread)
        rows = []
        for entry in entries[:limit]:
            tiers = {
                name: "absent" if entry.id not in ids else "same" if ids[entry.id] == entry.stamp else "other"
                for name, ids in seen.items()
            }
            row = Listed(
                id=entry.id,
                stamp=entry.stamp,
                saved_at=None if entry.stamp is None else stamp_seconds(entry.stamp),
                tiers=tiers,  # type: ignore[arg-type]
            )
            rows.append(await _details(reader, thread, entry, row) if long else row)
        answer = LsAnswer(
            stack=reader.name,
            thread=thread,
            total=len(entries),
            places=list(seen),
            checkpoints=rows,
            pending=pending,
            unreachable=reader.unreachable,
        )
        code = with_unreachable(Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer, long))

    run(Session("ls", json=json, timeout=timeout), work, debug=debug)


async def seen_in(reader: Reader, places: list[Place], thread: str) -> dict[str, dict[str, str | None]]:
    """For every place that answers: the ids it lists for a thread, and their stamps."""
    seen: dict[str, dict[str, str | None]] = {}
    for place in reader.up(places):
        try:
            entries = await entries_of(place, thread, reader.timeout)
        except BackendError as error:
            reader.failed(place, error)
        else:
            seen[place.name] = {entry.id: entry.stamp for entry in entries}
    return seen


async def _details(reader: Reader, thread: str, entry: Entry, row: Listed) -> Listed:
    try:
        found = await reader.load(thread, entry)
    except CorruptCheckpoint:
        return row.model_copy(update={"waits_for": "DAMAGED"})
    if found is None:
        return row
    size = await size_of(found)
    state = await state_of(found)
    return row.model_copy(
        update={
            "size": size,
            "messages": len(state.messages),
            "iteration": is_iteration_save(state, entry.id),
            "waits_for": waits_for(state),
            "saved_at": saved_at(found, state),
        }
    )


def _show(console: Console, answer: LsAnswer, long: bool) -> None:
    many = len(answer.places) > 1
    columns: list[str | tuple[str, str]] = ["checkpoint", ("saved", "right")]
    columns += [("size", "right"), ("messages", "right")] if long else []
    columns += [(name, "right") for name in answer.places] if many else []
    table = plain_table(*columns)
    now = time.time()
    for row in answer.checkpoints:
        name = Text(clean_id(row.id))
        if row.iteration:
            name.append("\n  inside a turn", "dim")
        if row.waits_for is not None:
            name.append(f"\n  waits for {clean(row.waits_for)}" if row.waits_for != "DAMAGED" else "\n  DAMAGED", "red")
        cells = [name, Text("?" if row.saved_at is None else f"{show_age(now - row.saved_at)} ago")]
        if long:
            cells += [Text("?" if row.size is None else show_size(row.size)), Text(str(row.messages or 0))]
        if many:
            cells += [
                Text(_MARKS[row.tiers[place]], "red" if row.tiers[place] == "other" else "") for place in answer.places
            ]
        table.add_row(*cells)
    console.print(table)
    head = answer.checkpoints[0]
    saved = "" if head.saved_at is None else f", the newest of {show_time(head.saved_at)}"
    more = answer.total - len(answer.checkpoints)
    console.print(
        f"{count(answer.total, 'checkpoint')}{saved}" + (f"; {more:,} not shown (--limit)" if more > 0 else "")
    )
    if answer.pending:
        console.print(Text(pending_note(answer.pending), "yellow"))
    show_unreachable(console, answer.unreachable)
