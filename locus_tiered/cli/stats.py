"""``stats``: how much there is, where, how old, and how it is spread."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import Histogram, Journal, StatsAnswer, TierStats
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.journals import on_disk
from locus_tiered.cli.ls import seen_in
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Pattern, Stack, Threads, Timeout
from locus_tiered.cli.reading import Reader
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.states import digest, saved_at, size_of, state_of, waits_for
from locus_tiered.cli.text import clean, count, show_age, show_size
from locus_tiered.cli.working import chosen, each, plain_table, show_unreachable, with_unreachable
from locus_tiered.core.errors import CorruptCheckpoint

__all__ = ["stats"]

_BAR = 34


def stats(
    stack: Stack,
    pattern: Pattern = "*",
    thread: Threads = None,
    quick: Annotated[
        bool, typer.Option("--quick", "-q", help="Do not read the states: no bytes, no duplicates, no paused turns.")
    ] = False,
    sample: Annotated[
        int, typer.Option("--sample", min=0, metavar="N", help="Read only every so many-th thread, N in all. [0: all]")
    ] = 0,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count threads, checkpoints and bytes per tier; find duplicates, ages, paused turns and pending rows.

    Reads every state, one at a time; --quick and --sample spare a large store that.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        reader = Reader(opened, timeout=timeout)
        threads = await chosen(reader, thread, pattern)
        total = len(threads)
        if 0 < sample < total:
            threads = threads[:: math.ceil(total / sample)]
        tally = _Tally(reader, quick)
        session.interrupted_at = lambda: f"{tally.threads:,} of {len(threads):,} threads were counted."
        with session.progress("threads", len(threads)) as bar:
            await each(threads, tally.add, jobs=jobs, bar=bar)
        answer = tally.answer(total, len(threads) < total, on_disk(opened))
        code = with_unreachable(Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer, len(threads)))

    run(Session("stats", json=json, timeout=timeout), work, debug=debug)


@dataclass
class _Tally:
    reader: Reader
    quick: bool
    threads: int = 0
    checkpoints: int = 0
    bytes: int = 0
    largest: int = 0
    duplicates: int = 0
    waiting: int = 0
    oldest: float | None = None
    newest: float | None = None
    held: Counter[str] = field(default_factory=Counter)
    held_bytes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)

    async def add(self, thread: str) -> None:
        """Count one thread."""
        reader = self.reader
        entries = await reader.entries(thread)
        seen = await seen_in(reader, [place for place in reader.places if not place.private], thread)
        self.threads += 1
        self.checkpoints += len(entries)
        self.lengths[_class(len(entries))] += 1
        for name, ids in seen.items():
            self.held[name] += len(ids)
        before, newest_at = None, None
        for place, entry in enumerate(reversed(entries)):
            if self.quick:
                newest_at = self._note_time(_stamp_time(entry.stamp))
                continue
            try:
                found = await reader.load(thread, entry)
            except CorruptCheckpoint:
                continue  # verify is for that
            if found is None:
                continue
            size = await size_of(found)
            state = await state_of(found)
            self.bytes += size
            self.largest = max(self.largest, size)
            self.sizes[_class(size)] += 1
            newest_at = self._note_time(saved_at(found, state))
            mark = digest(state)
            self.duplicates += mark == before
            before = mark
            for name, ids in seen.items():
                if entry.id in ids:
                    self.held_bytes[name] += size
            if place == len(entries) - 1 and waits_for(state) is not None:
                self.waiting += 1
        if newest_at is not None:
            self.ages[_class(max(1.0, time.time() - newest_at))] += 1

    def _note_time(self, at: float | None) -> float | None:
        if at is not None:
            self.oldest = at if self.oldest is None else min(self.oldest, at)
            self.newest = at if self.newest is None else max(self.newest, at)
        return at

    def answer(self, total: int, sampled: bool, journals: list[Journal]) -> StatsAnswer:
        """The sums."""
        reader = self.reader
        tiers = [
            TierStats(
                name=place.name,
                role=place.role,
                private=place.private,
                checkpoints=self.held[place.name],
                bytes=None if self.quick else self.held_bytes[place.name],
            )
            for place in reader.places
            if place.name not in reader.unreachable
        ]
        histograms = [_histogram("checkpoints per thread", "", self.lengths)]
        if not self.quick:
            histograms.append(_histogram("bytes per checkpoint", "B", self.sizes))
        histograms.append(_histogram("age of a thread's newest", "s", self.ages))
        return StatsAnswer(
            stack=reader.name,
            threads=total,
            sampled=sampled,
            checkpoints=self.checkpoints,
            bytes=None if self.quick else self.bytes,
            largest=None if self.quick else self.largest,
            duplicates=None if self.quick else self.duplicates,
            waiting=None if self.quick else self.waiting,
            oldest=self.oldest,
            newest=self.newest,
            tiers=tiers,
            journals=journals,
            histograms=histograms,
            unreachable=reader.unreachable,
        )


def _stamp_time(stamp: str | None) -> float | None:
    from locus_tiered.core.stamp import stamp_seconds

    return None if stamp is None else stamp_seconds(stamp)


def _class(value: float) -> int:
    """Classes double: class ``n`` holds what is above ``2 ** (n - 1)`` and up to ``2 ** n``."""
    return max(0, math.ceil(math.log2(value))) if value >= 1 else -1


def _histogram(what: str, unit: str, counted: Counter[int]) -> Histogram:
    if not counted:
        return Histogram(what=what, unit=unit, classes=[])
    classes = []
    for number in range(min(counted), max(counted) + 1):
        above = 0.0 if number <= 0 else 2.0 ** (number - 1)
        classes.append((above, 0.0 if number < 0 else 2.0**number, counted[number]))
    return Histogram(what=what, unit=unit, classes=classes)


def _bound(value: float, unit: str) -> str:
    return show_size(value) if unit == "B" else show_age(value) if unit == "s" else f"{value:.0f}"


def _show(console: Console, answer: StatsAnswer, read: int) -> None:
    now = time.time()
    sampled = f" ({read:,} of them read)" if answer.sampled else ""
    console.print(f"threads      {answer.threads:,}{sampled}")
    size = "" if answer.bytes is None else f", {show_size(answer.bytes)}, the largest {show_size(answer.largest or 0)}"
    console.print(f"checkpoints  {answer.checkpoints:,}{size}")
    if answer.duplicates is not None:
        console.print(f"duplicates   {answer.duplicates:,} equal to the one before them")
    if answer.waiting is not None:
        console.print(f"paused       {count(answer.waiting, 'thread')} waiting for an answer or a result")
    if answer.oldest is not None and answer.newest is not None:
        console.print(f"age          oldest {show_age(now - answer.oldest)}, newest {show_age(now - answer.newest)}")
    table = plain_table("tier", "role", ("checkpoints", "right"), ("bytes", "right"))
    for tier in answer.tiers:
        held = "?" if tier.private else f"{tier.checkpoints:,}"
        amount = "?" if tier.private or tier.bytes is None else show_size(tier.bytes)
        table.add_row(Text(clean(tier.name)), tier.role, held, amount)
    console.print(table)
    for journal in answer.journals:
        oldest = "" if journal.oldest_age is None else f", the oldest {show_age(journal.oldest_age)}"
        dead = f", {journal.dead_letters:,} dead letters" if journal.dead_letters else ""
        rows = f"{journal.rows:,} rows pending, {show_size(journal.bytes)}{oldest}{dead}"
        console.print(Text(f"journal {clean(journal.name)}: {rows}", "yellow" if journal.rows else ""))
    for histogram in answer.histograms:
        if histogram.classes:
            _draw(console, histogram)
    show_unreachable(console, answer.unreachable)


def _draw(console: Console, histogram: Histogram) -> None:
    console.print(Text(f"\n{histogram.what}", "bold"))
    most = max(many for _, _, many in histogram.classes)
    for _, up_to, many in histogram.classes:
        bar = "█" * round(_BAR * many / most) or ("▏" if many else "")
        console.print(f"  up to {_bound(up_to, histogram.unit):>9}  {bar:<{_BAR}} {many:,}")
