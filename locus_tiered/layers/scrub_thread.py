"""One thread of a comparison of replicas: what each has is listed, and what differs is mended.

The rules are in :mod:`~locus_tiered.layers.scrub`.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import CapabilityMissing, CorruptCheckpoint, LocusTieredError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Delete, Exists, Load, Save
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import is_stamp, looks_random
from locus_tiered.layers.quorum import newest_versions
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.scrub_listing import entries_of, gives_up_step, gives_up_tombstone
from locus_tiered.layers.scrub_report import ScrubReport
from locus_tiered.layers.scrub_steps import MOST_ROUNDS, Rounds, is_under_way, paced
from locus_tiered.layers.tombstones import Names, buries, graves_of, may_bury
from locus_tiered.layers.versions import is_iteration_save

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["compare_thread"]

logger = logger_for(__name__)

_QUARANTINE = f"{RESERVED}quarantine"


async def compare_thread(
    owner: ReplicatedCheckpointer, thread_id: str, report: ScrubReport, *, deep: bool, names: Names = frozenset()
) -> None:
    """Compare one thread, and mend it; again, until there is nothing left to copy.

    With the ``names`` of all tombstones, what they bury is deleted although every replica still has it.
    """
    key = owner._key(thread_id)
    rounds = Rounds(names)
    work: _Work | None = None
    report.threads += not thread_id.startswith(RESERVED)
    try:
        while not rounds.is_last:
            found = await paced(owner, owner._lanes.change(key, lambda: _round(owner, thread_id, report, rounds)))
            work = found or work
            if found is not None and not rounds.is_last:
                await found.mend()
        if work is not None and deep:
            await work.verify()
        if work is not None:
            await work.look(everywhere=deep)
    except BaseException:
        owner._look_at_latest(thread_id, key)  # nobody else does any more
        raise


async def _round(owner: ReplicatedCheckpointer, thread_id: str, report: ScrubReport, rounds: Rounds) -> _Work | None:
    """Compare what the replicas list while nobody in this process changes it."""
    key = owner._key(thread_id)
    rounds.number += 1
    asked = [replica for replica in owner._replicas if replica not in rounds.silent]
    listed: dict[Replica, list[Entry]] = {}
    for replica, found in zip(
        asked,
        await asyncio.gather(*(entries_of(owner, each, thread_id, key, report) for each in asked)),
        strict=True,
    ):
        if found is None:
            rounds.silent.add(replica)
            report.unreachable.add(replica.name)
        else:
            listed[replica] = found
    sources = [replica for replica in listed if not replica.fenced]
    if len(sources) < owner._noes:
        # Too few alone: those that were away have what they had, and tombstones tell what was deleted since.
        sources += [replica for replica in listed if replica.is_merely_away]
    if not sources and len(listed) == len(owner._replicas):
        sources = list(listed)  # all are new, or were wiped: nobody knows better, and what any of them has stays
    if len(sources) < owner._noes and (len(listed) < len(owner._replicas) or not sources):
        report.unreachable.update(replica.name for replica in owner._replicas if replica.fenced)
        rounds.is_last = True
        return None
    wanted = newest_versions(listed[replica] for replica in sources)
    owner._conflicts.seen(key, wanted.values())
    if rounds.number == 1 and not any(key in replica.marked for replica in owner._replicas):
        rounds.newest = max((entry.stamp or "" for entry in wanted.values()), default="")
    work = _Work(owner, thread_id, key, listed, wanted, report, rounds)
    kept = {entry for entry in wanted.values() if not owner._graves.hold(key, entry)}
    differs = any(set(entries) != kept for entries in listed.values())
    report.differed += differs and rounds.number == 1
    missing = [entry for entry in wanted.values() if work.is_missing(entry)]
    left = any(entry not in rounds.unfound for entry in missing)
    left = left or (rounds.number == 1 and (differs or bool(work.doubted())))
    rounds.is_last = not left or rounds.number > MOST_ROUNDS
    if not left:
        report.unmended += len(missing)
        if not report.unreachable:
            for replica in listed:
                await replica.is_compared(key)
    return work


class _Work:
    """One thread that is being mended."""

    def __init__(
        self,
        owner: ReplicatedCheckpointer,
        thread_id: str,
        key: str,
        listed: dict[Replica, list[Entry]],
        wanted: dict[str, Entry],
        report: ScrubReport,
        rounds: Rounds,
    ) -> None:
        self.owner, self.thread_id, self.key, self.listed, self.wanted = owner, thread_id, key, listed, wanted
        self.report, self.rounds, self.changed = report, rounds, rounds.changed
        self._undecided: set[Entry] = set()
        """Of these nobody can tell now whether they are to be copied or to be deleted."""

    def doubted(self) -> set[Entry]:
        """What a tombstone may bury, whoever has it."""
        if may_bury(self.rounds.names, self.thread_id, None):
            return set(self.wanted.values())
        return {each for each in self.wanted.values() if may_bury(self.rounds.names, self.thread_id, each.id)}

    async def bury(self, wanted: dict[str, Entry]) -> None:
        """Delete what was deleted, and what need not be copied any more; take it out of ``wanted``."""
        buried = {entry for entry in wanted.values() if self.owner._graves.hold(self.key, entry)}
        partly = [entry for entry in wanted.values() if any(entry not in each for each in self.listed.values())]
        doubted = self.doubted().difference(partly)
        gone = await self.owner.tombstones.among(graves_of(self.thread_id, [*partly, *doubted]))
        buried |= {entry for entry in doubted if buries(gone, self.thread_id, entry)}
        head = max((entry.stamp or "" for entry in wanted.values()), default="")
        for entry in partly:
            if buries(gone, self.thread_id, entry):
                buried.add(entry)
            elif entry in buried or entry in self.rounds.lasting:
                continue
            elif (entry.stamp or "") < head and looks_random(entry.id) and not is_stamp(entry.id):
                found = await self._intact(entry)
                if found is None:
                    given_up = await gives_up_step(self.owner, self.listed, self.thread_id, entry)
                    (buried if given_up else self._undecided).add(entry)
                elif is_iteration_save(found):
                    buried.add(entry)
                else:
                    self.rounds.lasting.add(entry)
        self.rounds.tried |= buried
        for entry in buried:
            del wanted[entry.id]
        for replica, entries in self.listed.items():
            if entries and not wanted and await self._remove_thread(replica):
                continue
            for entry in [each for each in entries if each.id not in wanted]:
                await self._remove(replica, entry)
        if not wanted and (self.thread_id, None) in gone:
            await self._clear()

    async def _clear(self) -> None:
        """Delete the rest of a deleted thread where checkpoints of it were deleted one by one.

        A backend may have kept a copy of the newest, or what its index has lost.
        """
        for replica in [each for each in self.listed if each in self.changed]:
            try:
                await replica.clear(self.key, self.thread_id)
            except (LocusTieredError, OSError):
                self.report.unreachable.add(replica.name)

    async def _remove(self, replica: Replica, entry: Entry) -> None:
        known_elsewhere = self._is_known_elsewhere(replica, entry)
        if replica.fenced and not known_elsewhere and is_under_way(self.owner, entry):
            return
        if not replica.layer.explain()[SINGLE_DELETES]:
            self.report.unmended += 1  # it can be reached, and can never do it: nobody stays fenced for that
            return
        try:
            if replica.fenced and not known_elsewhere:
                await self._put_aside(replica, entry)
            if await replica.remove(self.key, self.thread_id, entry):
                self.report.deleted += 1
                self.changed.add(replica)
        except CapabilityMissing:
            self.report.unmended += 1
        except (LocusTieredError, OSError):
            self.report.unreachable.add(replica.name)

    async def _remove_thread(self, replica: Replica) -> bool:
        """Delete all that a replica has of a thread of which nothing is to stay, where it cannot delete one by one."""
        entries = self.listed[replica]
        if replica.layer.explain()[SINGLE_DELETES]:
            return False
        alone = [each for each in entries if replica.fenced and not self._is_known_elsewhere(replica, each)]
        if any(is_under_way(self.owner, each) for each in alone):
            return False

        async def remove() -> bool:
            if not set(await replica.entries(self.thread_id, self.key)) <= set(entries):
                return False  # somebody has saved meanwhile
            await replica.ask(Delete(self.thread_id))
            replica.far.deleted(self.key, None)
            return True

        try:
            for entry in alone:
                await self._put_aside(replica, entry)
            if await replica.flusher.lanes.change(self.key, remove):
                self.report.deleted += len(entries)
                self.changed.add(replica)
        except CapabilityMissing:
            self.report.unmended += len(entries)
        except (LocusTieredError, OSError):
            self.report.unreachable.add(replica.name)
        return True

    def _is_known_elsewhere(self, replica: Replica, entry: Entry) -> bool:
        return any(entry in each for other, each in self.listed.items() if other is not replica and not other.fenced)

    async def _put_aside(self, replica: Replica, entry: Entry) -> None:
        """Copy what only this replica has, which was away, to its quarantine."""
        found = await self._whatever_it_is(replica, entry)
        if found is not None and found.stamp is not None:
            aside = found.moved(thread_id=_QUARANTINE, id=json.dumps([self.thread_id, entry.id]))
            await replica.layer.handle(Save(_QUARANTINE, None, aside.id, None, aside))
            self.report.quarantined += 1
            emit("replica.quarantined", replica.name, self.thread_id)

    async def _whatever_it_is(self, replica: Replica, entry: Entry) -> Checkpoint | None:
        """A copy that nobody else has; ``None`` when it is damaged: nobody can tell any more what it was."""
        try:
            return await replica.ask(Load(self.thread_id, entry.id, entry.stamp))
        except CorruptCheckpoint as damage:
            self.report.damaged += 1
            emit("replica.damaged", replica.name, self.thread_id)
            logger.error("%s: deleted, as only a replica had it that was away: %s", replica.name, damage)
            return None

    def is_missing(self, entry: Entry) -> bool:
        """Whether it is to be copied, and nobody has tried yet."""
        if entry in self.rounds.tried or self.rounds.is_news(entry):
            return False
        return any(entry not in each for each in self.listed.values())

    async def mend(self) -> None:
        """Delete what is to be deleted, and copy what is missing."""
        if not self.thread_id.startswith(RESERVED):
            await self.bury(self.wanted)
        await self.copy(self.wanted)

    async def copy(self, wanted: dict[str, Entry]) -> None:
        """Copy what is missing, oldest first."""
        copied: list[Entry] = []
        # Those without a stamp are below all others, in the order of whoever lists them.
        for entry in sorted(reversed(wanted.values()), key=lambda each: each.stamp or ""):  # noqa: C414  # stable
            if self.is_missing(entry):
                await paced(self.owner, self._copy(entry, copied))
        if copied and not self.thread_id.startswith(RESERVED):
            await self._take_back(copied)

    async def _copy(self, entry: Entry, copied: list[Entry]) -> None:
        if self.owner._graves.hold(self.key, entry):
            return  # deleted by this process since
        found = None if entry in self._undecided else await self._intact(entry)
        if found is None:
            self.rounds.unfound.add(entry)  # or it was only replaced since: the next round tells
            return
        copied.append(entry)
        self.rounds.tried.add(entry)
        for replica in [each for each, entries in self.listed.items() if entry not in entries]:
            if await self._put(replica, found):
                self.report.copied += 1
                emit("replica.mended", replica.name, self.thread_id)

    async def _take_back(self, copied: list[Entry]) -> None:
        """Delete what somebody else deleted while we copied. Who deletes leaves the tombstone first."""
        gone = await self.owner.tombstones.among(graves_of(self.thread_id, copied))
        for entry in copied:
            if buries(gone, self.thread_id, entry) or await self._has_gone(entry):
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
            if await replica.mend(self.key, found, unless=partial(self.owner._graves.hold, self.key, found.entry)):
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

    async def look(self, *, everywhere: bool) -> None:
        """Look at what readers without this library see as the newest, where it may be wrong."""
        for replica in self.listed:
            if everywhere or replica in self.changed or self.key in replica.far.given_up:
                try:
                    if await replica.flusher.lanes.change(self.key, partial(replica.check_latest, self.thread_id)):
                        self.report.mended += 1
                except (LocusTieredError, OSError):
                    self.report.unreachable.add(replica.name)

    async def verify(self) -> None:
        """Load every copy; what is damaged is replaced from one that is not."""
        for entry in self.wanted.values():
            await paced(self.owner, self._verify(entry))

    async def _verify(self, entry: Entry) -> None:
        intact: Checkpoint | None = None
        damaged: list[Replica] = []
        for replica in [each for each, entries in self.listed.items() if entry in entries]:
            found: Any = await self._load(replica, entry)
            if found == "damaged":
                damaged.append(replica)
            elif isinstance(found, Checkpoint):
                intact = found
        for replica in damaged:
            if intact is None:
                known = await gives_up_tombstone(self.owner, replica, self.listed, self.thread_id, entry, self.report)
                self.report.unmended += not known
            elif await self._put(replica, intact):
                self.report.mended += 1
                emit("replica.restored", replica.name, self.thread_id)
