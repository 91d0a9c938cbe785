"""What a replica lists of a thread, for a comparison: a copy that is too damaged to be listed is replaced first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import CorruptCheckpoint, LocusTieredError
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Load
from locus_tiered.core.signals import emit
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.scrub_report import ScrubReport
from locus_tiered.layers.tombstones import TOMBSTONES

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["entries_of", "gives_up_step", "gives_up_tombstone"]

logger = logger_for(__name__)


async def entries_of(
    owner: ReplicatedCheckpointer, replica: Replica, thread_id: str, key: str, report: ScrubReport
) -> list[Entry] | None:
    """What it has of a thread; copies that are so damaged that they keep it from telling are replaced first."""
    mended: set[str | None] = set()
    while True:
        try:
            return await replica.entries(thread_id, key)
        except CorruptCheckpoint as damage:
            name = damage.checkpoint_id
            if name is None or name in mended or not await _replace(owner, replica, thread_id, name, key, report):
                return None
            mended.add(name)
        except (LocusTieredError, OSError) as error:
            replica.flusher.failed(error)
            return None


async def _replace(
    owner: ReplicatedCheckpointer, replica: Replica, thread_id: str, name: str, key: str, report: ScrubReport
) -> bool:
    """Replace a copy of which not even the envelope is intact by the newest that another replica has."""
    report.damaged += 1
    emit("replica.damaged", replica.name, thread_id)
    copies: list[Checkpoint] = []
    noes = 0
    for other in owner._replicas:
        if other is not replica:  # a copy that is intact is good wherever it is found
            with suppress(LocusTieredError, OSError):
                found = await other.ask(Load(thread_id, name))
                copies += [found] if found is not None and found.stamp is not None else []
                noes += found is None and (other.is_believed or other.is_merely_away)
    if not copies and noes >= owner._noes:
        return await _give_up(owner, replica, thread_id, name, key, report)
    if not copies:
        report.unmended += 1
        return False
    try:
        await replica.mend(key, max(copies, key=lambda each: each.stamp or ""))
    except (LocusTieredError, OSError):
        return False
    report.mended += 1
    return True


async def _give_up(
    owner: ReplicatedCheckpointer, replica: Replica, thread_id: str, name: str, key: str, report: ScrubReport
) -> bool:
    """Delete a copy that nobody can tell the order of, and that keeps its thread from being listed.

    So many replicas lack it that it was never acknowledged, or was deleted since.
    """
    try:
        await replica.remove(key, thread_id, Entry(name, None))
    except (LocusTieredError, OSError):
        return False
    report.deleted += 1
    logger.error("%s: deleted a damaged checkpoint of thread %s that no other replica has", replica.name, thread_id)
    return True


async def gives_up_tombstone(
    owner: ReplicatedCheckpointer,
    replica: Replica,
    listed: Collection[Replica],
    thread_id: str,
    entry: Entry,
    report: ScrubReport,
) -> bool:
    """Delete a damaged tombstone of which no replica has an intact copy, and that keeps all others from being read.

    Every replica was asked, and none has lost anything: so the delete that laid it was never acknowledged.
    """
    if thread_id != TOMBSTONES or owner._votes < 2 or len(listed) < len(owner._replicas):
        return False
    if any(each.lost for each in listed):
        return False
    return await _give_up(owner, replica, thread_id, entry.id, owner._key(thread_id), report)


async def gives_up_step(
    owner: ReplicatedCheckpointer, listed: Mapping[Replica, Sequence[Entry]], thread_id: str, entry: Entry
) -> bool:
    """Whether a copy that may be a step of a turn, older than the thread's newest checkpoint, is to be deleted.

    It is where no intact copy is left to tell what it was, every replica was asked, and so many lack it that it was
    never acknowledged, or was deleted since: the steps of a turn are, without a tombstone. So is what is listed and is
    not there: a process died over deleting it.
    """
    noes = 0
    for replica in owner._replicas:
        holds = entry in listed.get(replica, ())
        try:
            found = await replica.ask(Load(thread_id, entry.id))
        except CorruptCheckpoint:
            if not holds:
                return False
            continue
        except (LocusTieredError, OSError):
            return False
        if found is not None:
            return False
        noes += replica.is_believed  # also where it is listed: then its index outlives it
    if noes < owner._noes:
        return False
    logger.error("a checkpoint of thread %s that nobody can load is deleted: %d have not got it", thread_id, noes)
    return True
