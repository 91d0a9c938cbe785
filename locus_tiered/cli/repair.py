"""``repair``: mend what ``verify`` finds, from undamaged copies only."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import Found, RepairAnswer, Repaired
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.findings import Examination, examine_twice
from locus_tiered.cli.opening import Opened, Place
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Pattern, Stack, Threads, Timeout, Yes
from locus_tiered.cli.reading import Reader, ask, entries_of, load_from
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean, clean_id, count
from locus_tiered.cli.working import chosen, each, id_column, plain_table, show_unreachable, with_unreachable
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import CorruptCheckpoint
from locus_tiered.core.operations import Delete, Save

__all__ = ["repair"]

_TRIES = 5  # saves of others that may come in between


def repair(
    stack: Stack,
    pattern: Pattern = "*",
    thread: Threads = None,
    restore: Annotated[
        bool,
        typer.Option(
            "--restore-leftovers",
            help="Also copy to home what only a near tier has, after home was lost. May bring back deleted ones.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Yes = False,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Mend what verify finds: from undamaged copies, oldest first, the newest last.

    Restores damaged checkpoints of home from a near tier or a replica, removes damaged and old copies from near
    tiers, and saves the newest again where a backend has another one as its latest. What a replica lacks is left to
    ReplicatedCheckpointer's scrub(), which knows what was deleted. Can be interrupted and run again. Exit code 1 when
    something is left.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        reader = Reader(opened, timeout=timeout)
        threads = await chosen(reader, thread, pattern)
        if not dry_run:
            session.confirm(f"Repair {count(len(threads), 'thread')} of {reader.name}?")
        done: list[Repaired] = []
        left: list[Repaired] = []
        session.interrupted_at = lambda: f"{len(done):,} things were mended; run it again to go on."
        if not dry_run:
            await _scrub(session, opened, threads)

        async def mend(name: str) -> None:
            result = await examine_twice(reader, name, bodies=True)
            if result.found:
                mender = _Mender(reader, result, dry_run, restore)
                await mender.mend()
                done.extend(mender.done)
                left.extend(mender.left)

        with session.progress("threads", len(threads)) as bar:
            await each(threads, mend, jobs=jobs, bar=bar)
        answer = RepairAnswer(
            stack=reader.name,
            dry_run=dry_run,
            threads=len(threads),
            done=sorted(done, key=lambda one: (one.thread, one.place)),
            left=sorted(left, key=lambda one: (one.thread, one.place)),
            unreachable=reader.unreachable,
        )
        code = Exit.FOUND if left or (dry_run and done) else Exit.FINE
        code = with_unreachable(code, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer))

    run(Session("repair", json=json, yes=yes, timeout=timeout), work, debug=debug)


async def _scrub(session: Session, opened: Opened, threads: list[str]) -> None:
    """Let replicated layers bring their replicas in step: they know what was deleted."""
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

    for layer in opened.layer.walk():
        if isinstance(layer, ReplicatedCheckpointer):
            with session.progress("replicas", len(threads)) as bar:
                await layer.scrub(deep=True, threads=threads, progress=lambda _, bar=bar: bar.step())  # type: ignore[misc]


class _Mender:
    """Mends one thread."""

    def __init__(self, reader: Reader, result: Examination, dry_run: bool, restore: bool) -> None:
        self.reader, self.result, self.dry_run, self.restore = reader, result, dry_run, restore
        self.places = {place.name: place for place in reader.places}
        self.done: list[Repaired] = []
        self.left: list[Repaired] = []
        self._touched: set[str] = set()

    async def mend(self) -> None:
        """Everything that can be mended, the oldest checkpoint first, the heads last."""
        order = {entry.id: place for place, entry in enumerate(reversed(self.result.entries))}
        for found in sorted(self.result.found, key=lambda each: order.get(each.checkpoint or "", -1)):
            if found.kind != "latest":
                await self._one(found)
        heads = {found.place for found in self.result.found if found.kind == "latest"} | self._touched
        for name in sorted(heads):
            await self._head(self.places[name], name in self._touched)

    async def _one(self, found: Found) -> None:
        place, name = self.places[found.place], found.checkpoint
        assert name is not None
        near = place.role == "near"
        sources = [each for each in self.result.good.get(name, []) if each is not place]
        if found.kind == "leftover":
            await self._leftover(found, place, name)
        elif near and (sources or found.kind == "stale"):
            await self._change(place, Delete(self.result.thread, name))
            self._say(found, "removed copy", "home has an undamaged one")
        elif not near and sources and found.kind in ("damaged", "unreadable"):
            entry = next(entry for entry in self.result.entries if entry.id == name)
            await self._copy(sources[0], place, entry)
            self._say(found, "restored", f"from {sources[0].name}")
        else:
            self._leave(found, "no undamaged copy is left" if found.kind != "missing" else "scrub decides about it")

    async def _leftover(self, found: Found, place: Place, name: str) -> None:
        homes = [each for each in self.reader.truth if each.name not in self.reader.unreachable]
        if not self.restore or not homes:
            self._leave(found, "deleted elsewhere, or lost by home: --restore-leftovers copies it back")
            return
        entries = await self._listed(place)
        entry = next((each for each in entries if each.id == name), None)
        if entry is None or entry.stamp is None:
            self._leave(found, "it has no stamp to put it in order by")
            return
        for home in homes:
            await self._copy(place, home, entry)
        self._say(found, "restored", f"to {', '.join(home.name for home in homes)}")

    async def _copy(self, source: Place, dest: Place, entry: Entry) -> None:
        if self.dry_run:
            return
        checkpoint = await load_from(source, self.result.thread, entry, self.reader.timeout)
        if checkpoint is None or checkpoint.stamp != entry.stamp:
            raise CorruptCheckpoint(
                f"{source.name} no longer has checkpoint {entry.id}: run repair again",
                member=source.name,
                thread_id=self.result.thread,
                checkpoint_id=entry.id,
            )
        await self._save(dest, checkpoint)
        self._touched.add(dest.name)

    async def _save(self, place: Place, checkpoint: Checkpoint) -> None:
        await checkpoint.body.encode()
        await self._change(place, Save(checkpoint.thread_id, None, checkpoint.id, None, checkpoint))

    async def _change(self, place: Place, operation: Save | Delete) -> None:
        if not self.dry_run:
            await ask(place, operation, self.reader.timeout)

    async def _head(self, place: Place, silent: bool) -> None:
        """Save the newest again, so that the backend's own latest is right for readers without the stack."""
        entries = self.result.entries if self.dry_run else await self._listed(place)
        newest = entries[0] if entries else None
        name = None if newest is None else newest.id
        found = Found(kind="latest", place=place.name, thread=self.result.thread, checkpoint=name, what="")
        for _ in range(_TRIES):
            if newest is None or newest.stamp is None:
                return
            if self.dry_run:
                break
            try:
                checkpoint = await load_from(place, self.result.thread, newest, self.reader.timeout)
            except CorruptCheckpoint:
                self._leave(found, "the newest is damaged, and no undamaged copy is left")
                return
            if checkpoint is not None:
                await self._save(place, checkpoint)
            # Somebody may have saved a newer one meanwhile, which must be the backend's latest then.
            before, newest = newest, next(iter(await self._listed(place)), None)
            if newest == before:
                break
        if not silent:
            self._say(found, "head saved again", "the backend had another one as its latest")

    async def _listed(self, place: Place) -> list[Entry]:
        return await entries_of(place, self.result.thread, self.reader.timeout)

    def _say(self, found: Found, action: str, why: str) -> None:
        self.done.append(_repaired(found, action, why))

    def _leave(self, found: Found, why: str) -> None:
        self.left.append(_repaired(found, "left", why))


def _repaired(found: Found, action: str, why: str) -> Repaired:
    return Repaired.model_validate(
        {"place": found.place, "thread": found.thread, "checkpoint": found.checkpoint, "action": action, "why": why}
    )


def _show(console: Console, answer: RepairAnswer) -> None:
    rows = [*answer.done, *answer.left]
    if rows:
        table = plain_table("tier", "thread", id_column(row.checkpoint for row in rows), "what", "why")
        for row in rows:
            style = "yellow" if row.action == "left" else "green"
            cells = (row.place, row.thread, row.checkpoint or "-")
            table.add_row(*(Text(clean_id(cell)) for cell in cells), Text(row.action, style), Text(clean(row.why)))
        console.print(table)
    would = "would be mended" if answer.dry_run else "mended"
    console.print(
        f"{count(answer.threads, 'thread')} looked at: {len(answer.done):,} {would}, {len(answer.left):,} left."
    )
    show_unreachable(console, answer.unreachable)
