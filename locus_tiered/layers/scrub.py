"""Anti-entropy: replicas are compared thread by thread, and what differs is mended.

Identity and order are compared first (ids and stamps, one listing per replica); states travel only where something
is missing. The rules, per thread:

* what a tombstone has buried is deleted wherever it still is;
* an iteration save that is older than the thread's newest checkpoint is deleted rather than copied: it existed to
  survive a crash that was survived since;
* everything else that any believed replica has (where those are too few: also any that was away) is copied to those
  that lack it, oldest first, the newest last, from a replica whose copy is intact (its digest is verified when it is
  read);
* what only a fenced replica has is moved to its quarantine thread;
* afterwards each changed (``deep``: each) replica's own newest is looked at, for readers without this library.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, LocusTieredError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Exists, ListThreads, Load, Save
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import is_stamp, looks_random
from locus_tiered.layers.replica import Replica, is_iteration_save
from locus_tiered.layers.tombstones import TOMBSTONES

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["Progress", "ScrubReport", "Scrubber"]

logger = logger_for(__name__)

_QUARANTINE = f"{RESERVED}quarantine"
_AT_ONCE = 4
"""Threads that are compared side by side; one after the other when the rate is limited."""


@dataclass(slots=True)
class ScrubReport:
    """What a scrub has done."""

    threads: int = 0
    """Threads that were compared."""
    differed: int = 0
    """Threads that were not the same everywhere."""
    copied: int = 0
    """Checkpoints copied to a replica that lacked them."""
    deleted: int = 0
    """Checkpoints deleted where they were left behind."""
    mended: int = 0
    """Damaged copies replaced, and replicas whose own newest was wrong."""
    damaged: int = 0
    """Copies that were not what was saved."""
    quarantined: int = 0
    """Checkpoints that only a fenced replica had, put aside there."""
    unreachable: set[str] = field(default_factory=set)
    """Replicas that could not be compared."""
    unmended: int = 0
    """Checkpoints of which no intact copy was found."""

    @property
    def in_step(self) -> bool:
        """Whether every replica was reached and nothing is left to do."""
        return not self.unreachable and not self.unmended


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scrub has come."""

    done: int
    total: int
    thread_id: str
    report: ScrubReport


class Scrubber:
    """Compares and mends the replicas of one ``ReplicatedCheckpointer``."""

    def __init__(self, owner: ReplicatedCheckpointer) -> None:
        self._owner = owner
        self._after: str | None = None  # where a scrub that was stopped goes on

    async def run(
        self,
        *,
        deep: bool,
        progress: Callable[[Progress], None] | None,
        threads: Sequence[str] | None,
        rate: float | None,
    ) -> ScrubReport:
        """See :meth:`ReplicatedCheckpointer.scrub`."""
        report = ScrubReport()
        replicas = self._owner._replicas
        everything = sorted(await self._threads(report)) if threads is None else list(threads)
        start = self._after if threads is None else None
        todo = [thread for thread in everything if start is None or thread > start]
        if threads is None:
            for thread_id in self._reserved():
                await self._thread(thread_id, report, deep=False)
        at_once = _AT_ONCE if rate is None else 1
        for place in range(0, len(todo), at_once):
            batch = todo[place : place + at_once]
            await asyncio.gather(*(self._thread(thread_id, report, deep=deep) for thread_id in batch))
            if threads is None:
                self._after = batch[-1]
            if progress is not None:
                for done, thread_id in enumerate(batch, place + 1):
                    progress(Progress(done, len(todo), thread_id, report))
            if rate is not None:
                await self._owner._clock.sleep(1 / rate)
        if threads is None:
            complete = start is None
            self._after = None
            if complete and report.in_step:
                for replica in replicas:
                    if replica.fenced:
                        await self._owner._heartbeats.give(replica)
                await self._owner.tombstones.tidy()
        return report

    async def _threads(self, report: ScrubReport) -> set[str]:
        """The ids of all threads of all replicas that can list them."""
        found: set[str] = set()
        able = False
        for replica in self._owner._replicas:
            if not replica.layer.explain()["list_threads"]:
                continue
            able = True
            try:
                found.update(await replica.ask(ListThreads(MOST)))
            except (LocusTieredError, OSError):
                report.unreachable.add(replica.name)
        if not able:
            raise BackendError(
                f"{self._owner.name}: no replica can list its threads; nothing was compared. Pass threads=[...]",
                member=self._owner.name,
                operation="scrub",
                temporary=False,
            )
        return found

    def _reserved(self) -> list[str]:
        """The stack's own threads that are compared first, because the rest stands on them: tombstones."""
        marked = {thread for replica in self._owner._replicas for thread in replica.marked.values()}
        return sorted({TOMBSTONES, *(thread for thread in marked if thread.startswith(RESERVED))})

    async def one(self, thread_id: str) -> ScrubReport:
        """Compare one thread."""
        report = ScrubReport()
        await self._thread(thread_id, report, deep=False)
        return report

    async def _thread(self, thread_id: str, report: ScrubReport, *, deep: bool) -> None:
        """Compare one thread while nobody in this process changes it."""
        owner = self._owner
        await owner._lanes.change(owner._key(thread_id), lambda: self._compare(thread_id, report, deep=deep))

    async def _compare(self, thread_id: str, report: ScrubReport, *, deep: bool) -> None:
        owner = self._owner
        key = owner._key(thread_id)
        report.threads += not thread_id.startswith(RESERVED)
        listed: dict[Replica, list[Entry]] = {}
        for replica, found in zip(
            owner._replicas,
            await asyncio.gather(*(self._entries(each, thread_id, key, report) for each in owner._replicas)),
            strict=True,
        ):
            if found is None:
                report.unreachable.add(replica.name)
            else:
                listed[replica] = found
        sources = [replica for replica in listed if not replica.fenced]
        if len(sources) < owner._noes:
            # Too few alone: those that were away have what they had, and tombstones tell what was deleted since.
            sources += [replica for replica in listed if replica.is_merely_away]
        if len(sources) < owner._noes and (len(listed) < len(owner._replicas) or not sources):
            report.unreachable.update(replica.name for replica in owner._replicas if replica.fenced)
            return
        wanted: dict[str, Entry] = {}
        for replica in sources:
            for entry in listed[replica]:
                best = wanted.get(entry.id)
                if best is None or (best.stamp or "") < (entry.stamp or ""):
                    wanted[entry.id] = entry
        owner._conflicts.seen(key, wanted.values())
        work = _Work(owner, thread_id, key, listed, report)
        if any(set(entries) != set(wanted.values()) for entries in listed.values()):
            report.differed += 1
            if not thread_id.startswith(RESERVED):
                await work.bury(wanted)
            await work.copy(wanted)
        if deep:
            await work.verify(wanted)
        for replica in listed:
            if not report.unreachable:
                await replica.is_compared(key)
            if deep or replica in work.changed:
                with suppress(LocusTieredError, OSError):
                    if await replica.flusher.lanes.change(key, partial(replica.check_latest, thread_id)):
                        report.mended += 1

    async def _entries(self, replica: Replica, thread_id: str, key: str, report: ScrubReport) -> list[Entry] | None:
        """What it has of a thread; copies that are so damaged that they keep it from telling are replaced first."""
        mended: set[str | None] = set()
        while True:
            try:
                return await replica.entries(thread_id, key)
            except CorruptCheckpoint as damage:
                name = damage.checkpoint_id
                if name is None or name in mended or not await self._replace(replica, thread_id, name, key, report):
                    return None
                mended.add(name)
            except (LocusTieredError, OSError) as error:
                replica.flusher.failed(error)
                return None

    async def _replace(self, replica: Replica, thread_id: str, name: str, key: str, report: ScrubReport) -> bool:
        """Replace a copy of which not even the envelope is intact by the newest that another replica has."""
        report.damaged += 1
        emit("replica.damaged", replica.name, thread_id)
        copies: list[Checkpoint] = []
        for other in self._owner._replicas:
            if other is not replica:  # a copy that is intact is good wherever it is found
                with suppress(LocusTieredError, OSError):
                    found = await other.ask(Load(thread_id, name))
                    copies += [found] if found is not None and found.stamp is not None else []
        if not copies:
            report.unmended += 1
            return False
        try:
            await replica.mend(key, max(copies, key=lambda each: each.stamp or ""))
        except (LocusTieredError, OSError):
            return False
        report.mended += 1
        return True


class _Work:
    """One thread that is being mended."""

    def __init__(
        self,
        owner: ReplicatedCheckpointer,
        thread_id: str,
        key: str,
        listed: dict[Replica, list[Entry]],
        report: ScrubReport,
    ) -> None:
        self.owner, self.thread_id, self.key, self.listed, self.report = owner, thread_id, key, listed, report
        self.changed: set[Replica] = set()
        self._undecided: set[str] = set()
        """Ids of which nobody can tell now whether they are to be copied or to be deleted."""

    async def bury(self, wanted: dict[str, Entry]) -> None:
        """Delete what was deleted, and what need not be copied any more; take it out of ``wanted``."""
        partly = [entry for entry in wanted.values() if any(entry not in each for each in self.listed.values())]
        gone = await self.owner.tombstones.among(_graves(self.thread_id, partly))
        head = max((entry.stamp or "" for entry in wanted.values()), default="")
        for entry in partly:
            if (entry.stamp or "") <= _buried(gone, self.thread_id, entry):
                del wanted[entry.id]
            elif (entry.stamp or "") < head and looks_random(entry.id) and not is_stamp(entry.id):
                found = await self._intact(entry)
                if found is None:
                    self._undecided.add(entry.id)
                elif is_iteration_save(found):
                    del wanted[entry.id]
        for replica, entries in self.listed.items():
            for entry in entries:
                if entry.id not in wanted:
                    await self._remove(replica, entry)

    async def _remove(self, replica: Replica, entry: Entry) -> None:
        known_elsewhere = any(entry in each for other, each in self.listed.items() if not other.fenced)
        try:
            if replica.fenced and not known_elsewhere:
                found = await replica.ask(Load(self.thread_id, entry.id, entry.stamp))
                if found is not None and found.stamp is not None:
                    aside = found.moved(thread_id=_QUARANTINE, id=json.dumps([self.thread_id, entry.id]))
                    await replica.layer.handle(Save(_QUARANTINE, None, aside.id, None, aside))
                    self.report.quarantined += 1
                    emit("replica.quarantined", replica.name, self.thread_id)
            if await replica.remove(self.key, self.thread_id, entry):
                self.report.deleted += 1
                self.changed.add(replica)
        except (LocusTieredError, OSError):
            self.report.unreachable.add(replica.name)

    async def copy(self, wanted: dict[str, Entry]) -> None:
        """Copy what is missing, oldest first."""
        # Those without a stamp are below all others, in the order of whoever lists them.
        for entry in sorted(wanted.values(), key=lambda each: each.stamp or ""):
            lacking = [replica for replica, entries in self.listed.items() if entry not in entries]
            if not lacking:
                continue
            found = None if entry.id in self._undecided else await self._intact(entry)
            if found is None:
                self.report.unmended += 1
                continue
            for replica in lacking:
                if await self._put(replica, found):
                    self.report.copied += 1
                    emit("replica.mended", replica.name, self.thread_id)
        copied = [entry for entry in wanted.values() if any(entry not in each for each in self.listed.values())]
        if not copied or self.thread_id.startswith(RESERVED):
            return
        # Deleted by somebody else while we copied? Who deletes leaves the tombstone first.
        gone = await self.owner.tombstones.among(_graves(self.thread_id, copied))
        for entry in copied:
            if (entry.stamp or "") <= _buried(gone, self.thread_id, entry) or await self._has_gone(entry):
                for replica, entries in self.listed.items():
                    if entry not in entries:
                        await self._remove(replica, entry)

    async def _has_gone(self, entry: Entry) -> bool:
        """Whether an iteration save was deleted while it was copied: nobody leaves a tombstone for those."""
        if is_stamp(entry.id) or not looks_random(entry.id):
            return False
        for replica, entries in self.listed.items():
            if entry in entries:
                with suppress(LocusTieredError, OSError):
                    if not await replica.ask(Exists(self.thread_id, entry.id)):
                        return True
        return False

    async def _put(self, replica: Replica, found: Checkpoint) -> bool:
        try:
            if await replica.mend(self.key, found):
                self.changed.add(replica)
                return True
        except (LocusTieredError, OSError):
            self.report.unreachable.add(replica.name)
        return False

    async def _intact(self, entry: Entry) -> Checkpoint | None:
        """The checkpoint from a replica whose copy is what was saved; damaged copies on the way are replaced."""
        damaged: list[Replica] = []
        intact: Checkpoint | None = None
        for replica in sorted(self.listed, key=lambda each: (each.fenced, each.latency.usual)):
            if entry not in self.listed[replica]:
                continue
            found = await self._load(replica, entry)
            if found == "damaged":
                damaged.append(replica)
            elif isinstance(found, Checkpoint):
                intact = found
                break
        if intact is not None:
            for replica in damaged:
                if await self._put(replica, intact):
                    self.report.mended += 1
                    emit("replica.restored", replica.name, self.thread_id)
        return intact

    async def _load(self, replica: Replica, entry: Entry) -> Checkpoint | str | None:
        try:
            return await replica.ask(Load(self.thread_id, entry.id, entry.stamp))
        except CorruptCheckpoint:
            self.report.damaged += 1
            emit("replica.damaged", replica.name, self.thread_id)
            return "damaged"
        except (LocusTieredError, OSError):
            self.report.unreachable.add(replica.name)
            return None

    async def verify(self, wanted: dict[str, Entry]) -> None:
        """Load every copy; what is damaged is replaced from one that is not."""
        for entry in wanted.values():
            intact: Checkpoint | None = None
            damaged: list[Replica] = []
            for replica, entries in self.listed.items():
                if entry not in entries:
                    continue
                found: Any = await self._load(replica, entry)
                if found == "damaged":
                    damaged.append(replica)
                elif isinstance(found, Checkpoint):
                    intact = found
            for replica in damaged:
                if intact is None:
                    self.report.unmended += 1
                elif await self._put(replica, intact):
                    self.report.mended += 1
                    emit("replica.restored", replica.name, self.thread_id)


def _graves(thread_id: str, entries: Sequence[Entry]) -> list[tuple[str, str | None]]:
    """Where tombstones for these checkpoints would be."""
    return [(thread_id, None), *((thread_id, entry.id) for entry in entries)]


def _buried(gone: Mapping[tuple[str, str | None], str], thread_id: str, entry: Entry) -> str:
    """The stamp up to which tombstones bury a checkpoint."""
    return max(gone.get((thread_id, None), ""), gone.get((thread_id, entry.id), ""))
