"""``prune``: old checkpoints go. Never the newest of a thread, never one in which a paused turn waits."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import PruneAnswer, Pruned
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened, Place, journals
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Pattern, Stack, Threads, Timeout, Yes
from locus_tiered.cli.reading import Reader, ask
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.states import saved_at, size_of, state_of, waits_for
from locus_tiered.cli.text import clean, clean_id, count, parse_age, show_age, show_size
from locus_tiered.cli.working import chosen, each, id_column, plain_table, show_unreachable, with_unreachable
from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.errors import CorruptCheckpoint
from locus_tiered.core.operations import Delete

__all__ = ["prune"]


def _age(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_age(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def prune(
    stack: Stack,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", "-k", min=1, metavar="N", help="Keep the N newest of each thread.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only what is older: 12h, 30d, 8w.")
    ] = None,
    pattern: Pattern = "*",
    thread: Threads = None,
    tier: Annotated[
        str | None, typer.Option("--tier", metavar="TIER", help="Only in this tier; the others keep theirs.")
    ] = None,
    answered: Annotated[
        bool, typer.Option("--answered", help="Also paused turns that were gone on with since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show exactly what would go.")] = False,
    yes: Yes = False,
    most: Annotated[
        int | None,
        typer.Option(
            "--most", min=0, metavar="N", help="List at most so many; all are counted. [100; --dry-run: 10000]"
        ),
    ] = None,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete old checkpoints: beyond the N newest, older than an age, or both at once (then both must hold).

    Never deletes the newest checkpoint of a thread, nor one in which a paused turn waits for an answer or a result.
    One that is damaged is kept: see repair. Shows what goes, and asks.
    """
    age = _age(older_than)

    async def work(session: Session) -> Done:
        if keep_last is None and age is None:
            raise Failure("say what to keep", Exit.USAGE, hint="--keep-last N, --older-than AGE, or both")
        opened = session.open(stack, allow_import=allow_import)
        reader = Reader(opened, timeout=timeout)
        target = _target(reader, opened, tier)
        threads = await chosen(reader, thread, pattern)
        rules = _Rules(keep_last or 1, None if age is None else time.time() - age, answered)
        listed = most if most is not None else 10_000 if dry_run else 100
        plan = _Tally(reader, rules, listed)
        with session.progress("looking", len(threads)) as bar:
            await each(threads, plan.look, jobs=jobs, bar=bar)
        tally = plan
        if not dry_run and plan.pruned:
            if not json:
                _list(session.err, plan.listed, plan.pruned)
            of = f" from tier {tier}" if tier else ""
            session.confirm(
                f"Delete {count(plan.pruned, 'checkpoint')} ({show_size(plan.bytes)}) of {opened.name}{of}?"
            )
            tally = _Tally(reader, rules, listed, target)
            session.interrupted_at = lambda: f"{tally.pruned:,} checkpoints were deleted; run it again to go on."
            with session.progress("deleting", len(threads)) as bar:
                await each(threads, tally.look, jobs=jobs, bar=bar)
            for layer in [] if tier is not None else journals(opened.layer):
                await layer.flush()
        answer = tally.answer(dry_run, tier, len(threads))
        code = with_unreachable(Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer))

    run(Session("prune", json=json, yes=yes, timeout=timeout), work, debug=debug)


Remove = Callable[[str, Entry], Awaitable[bool]]


def _target(reader: Reader, opened: Opened, tier: str | None) -> Remove:
    """How one checkpoint is removed: through the whole stack, or in one tier only."""
    if tier is not None:
        place = next((place for place in reader.places if place.name == tier), None)
        if place is None:
            names = ", ".join(place.name for place in reader.places)
            raise Failure(f"there is no tier {tier!r}", Exit.USAGE, hint=f"there are {names}")
        if place.role != "near":
            raise Failure(
                f"tier {tier!r} holds the truth: what goes there is gone",
                Exit.USAGE,
                hint="leave --tier out to prune the whole stack",
            )
        reader.places = reader.truth = [Place(place.name, place.layer, "home", place.private)]
        layer = place.layer
    else:
        layer = opened.layer
    verdict = layer.explain()[SINGLE_DELETES]
    if not verdict:
        raise Failure(f"{verdict.member} cannot delete single checkpoints: {verdict.reason}", Exit.INCAPABLE)
    whole = Place(opened.name, layer, "home", False)

    async def remove(thread: str, entry: Entry) -> bool:
        return await ask(whole, Delete(thread, entry.id), reader.timeout)

    return remove


@dataclass(frozen=True, slots=True)
class _Rules:
    keep_last: int
    before: float | None
    answered: bool


@dataclass
class _Tally:
    reader: Reader
    rules: _Rules
    most: int
    remove: Remove | None = None
    kept: int = 0
    waiting: int = 0
    pruned: int = 0
    bytes: int = 0
    listed: list[Pruned] = field(default_factory=list)

    async def look(self, thread: str) -> None:
        """Find what goes in one thread, from a list that was read this moment; and let it go."""
        entries = await self.reader.entries(thread)
        self.kept += min(len(entries), self.rules.keep_last)
        paused = self.rules.answered and await self._newest_waits(thread, entries)
        # Oldest first: whatever stops this, what is left is the thread's end.
        for entry in reversed(entries[self.rules.keep_last :]):
            goes = await self._goes(thread, entry, paused)
            if goes is None or (self.remove is not None and not await self.remove(thread, entry)):
                self.kept += goes is None
                continue
            self.pruned += 1
            self.bytes += goes.size
            if len(self.listed) < self.most:
                self.listed.append(goes)

    async def _newest_waits(self, thread: str, entries: list[Entry]) -> bool:
        """Whether the thread's last word is a pause: then no earlier pause counts as answered."""
        newest = await self.reader.load(thread, entries[0]) if entries else None
        return newest is not None and waits_for(await state_of(newest)) is not None

    async def _goes(self, thread: str, entry: Entry, paused: bool) -> Pruned | None:
        try:
            found = await self.reader.load(thread, entry)
        except CorruptCheckpoint:
            return None
        if found is None or found.stamp != entry.stamp:
            return None
        size = await size_of(found)
        state = await state_of(found)
        at = saved_at(found, state)
        if self.rules.before is not None and (at is None or at >= self.rules.before):
            return None
        if waits_for(state) is not None and (paused or not self.rules.answered):
            self.waiting += 1
            return None
        return Pruned(thread=thread, checkpoint=entry.id, saved_at=at, size=size)

    def answer(self, dry_run: bool, tier: str | None, threads: int) -> PruneAnswer:
        """What went, or would go."""
        return PruneAnswer(
            stack=self.reader.name,
            dry_run=dry_run,
            tier=tier,
            threads=threads,
            kept=self.kept,
            waiting=self.waiting,
            pruned=self.pruned,
            bytes=self.bytes,
            checkpoints=sorted(self.listed, key=lambda row: (row.thread, row.saved_at or 0.0)),
            cut=self.pruned - len(self.listed),
            unreachable=self.reader.unreachable,
        )


def _list(console: Console, listed: list[Pruned], total: int) -> None:
    table = plain_table("thread", id_column(row.checkpoint for row in listed), ("age", "right"), ("size", "right"))
    now = time.time()
    for row in sorted(listed, key=lambda row: (row.thread, row.saved_at or 0.0)):
        age = "?" if row.saved_at is None else show_age(now - row.saved_at)
        table.add_row(Text(clean_id(row.thread)), Text(clean_id(row.checkpoint)), age, show_size(row.size))
    if listed:
        console.print(table)
    if total > len(listed):
        console.print(f"… and {total - len(listed):,} more (--most)")


def _show(console: Console, answer: PruneAnswer) -> None:
    if answer.dry_run:
        _list(console, answer.checkpoints, answer.pruned)
    did = "would be deleted" if answer.dry_run else "deleted"
    of = f" from tier {clean(answer.tier)}" if answer.tier else ""
    console.print(
        f"{count(answer.pruned, 'checkpoint')} ({show_size(answer.bytes)}) {did}{of}, {answer.kept:,} kept, "
        f"in {count(answer.threads, 'thread')}."
    )
    if answer.waiting:
        console.print(f"{answer.waiting:,} of those kept are paused turns that wait for an answer or a result.")
    show_unreachable(console, answer.unreachable)
