"""One replica and the versions of what it holds: what is deleted and mended there never touches what was saved later.

Stamps decide, not the order in which requests arrive. A delete that removed something newer than itself from the
replicas that it reaches would leave it to those that it does not reach, where no tombstone covers it. So it is told of
what is newer, and comes again with a stamp above that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace

from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.checkpoint import ITERATION_KEY, Checkpoint
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import BreakerOpen, CorruptCheckpoint, Overloaded, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import Layer
from locus_tiered.core.operations import Delete, Head, Load, Save
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import is_stamp, looks_random
from locus_tiered.layers.far import Far
from locus_tiered.layers.flusher import Flusher
from locus_tiered.layers.tombstones import TOMBSTONES, Tombstones
from locus_tiered.stores.journal_rows import PendingRow

__all__ = [
    "GivenUp",
    "ReplicaFar",
    "ReplicaFlusher",
    "delete_up_to",
    "is_a_lesser_tombstone",
    "is_iteration_save",
    "newer_version",
]


@dataclass(frozen=True, slots=True, eq=False)
class GivenUp:
    """A write that nobody waits for any more, and that the replica may still carry out, after newer ones."""

    thread: str
    context: Context = field(default_factory=copy_context)
    """Of who wrote: it says whose thread that is."""


class ReplicaFar(Far):
    """A replica as the sender of its hints sees it, who has a thread compared (``compare``) where he cannot be sure.

    He cannot after a delete: another process may have saved between our look and its arrival. And he cannot send at all
    where a copy is so damaged that nobody can tell what there is. ``late`` is told of a write whose outcome is unknown.
    """

    def __init__(
        self,
        inner: Layer,
        clock: Clock,
        tombstones: Tombstones,
        compare: Callable[[str], None],
        late: Callable[[], None],
    ) -> None:
        super().__init__(inner, clock, exclusive=False, tombstones=tombstones, lays=False)
        self.compare, self._late = compare, late
        self.given_up: dict[str, GivenUp] = {}
        """By thread's key, the last write whose outcome is unknown."""

    def gave_up(self, key: str, thread_id: str, error: BaseException | None = None) -> None:
        """Note that the outcome of a write to a thread is unknown: it may be carried out late."""
        if not isinstance(error, BreakerOpen | Overloaded):  # those were never sent
            self.given_up[key] = GivenUp(thread_id)
            self._late()

    async def send(self, key: str, row: PendingRow, checkpoint: Checkpoint | None) -> None:
        await super().send(key, row, checkpoint)
        again = row.id is None or not looks_random(row.id)
        if row.kind == "delete" and again and not row.thread.startswith(RESERVED):
            self.compare(row.thread)

    async def objections(self, key: str, rows: Sequence[PendingRow]) -> dict[PendingRow, str]:
        if any(row.attempted for row in rows):
            self.gave_up(key, rows[0].thread)
        try:
            return await super().objections(key, rows)
        except CorruptCheckpoint:
            self.compare(rows[0].thread)
            raise

    async def check_latest(self, thread_id: str) -> bool:
        """See to it that the replica's own newest is the right one, for readers without this library.

        Answers whether it had to be mended. Where its newest is damaged, there is no right one.
        """
        if thread_id.startswith(RESERVED):
            return False
        try:
            head = await self.inner.handle(Head(thread_id))
            if head is None or head.stamp is None:
                return False
            own = None
            with suppress(CorruptCheckpoint):
                own = await self.inner.handle(Load(thread_id))
            if own is not None and own.stamp == head.stamp:
                return False
            if not await self.mend(thread_id):
                return False
        except CorruptCheckpoint:
            return False
        emit("replica.latest_mended", self.inner.name, thread_id)
        return True


class ReplicaFlusher(Flusher):
    """Sends a replica's hints. That too few others could be asked about deletes is no failure of this one."""

    advice = "the replica is not believed about the thread until scrub() has compared it"

    def failed(self, error: BaseException) -> None:
        before = self.failures
        super().failed(error)
        if isinstance(error, QuorumError):
            self.failures = before  # it is left alone for a while, but nobody need doubt what it holds


async def newer_version(layer: Layer, thread_id: str, checkpoint_id: str, stamp: str) -> str:
    """The stamp of the version of a checkpoint that ``layer`` holds, if that is newer than ``stamp``; else empty."""
    try:
        there = await layer.handle(Load(thread_id, checkpoint_id))
    except CorruptCheckpoint:
        return ""
    return there.stamp if there is not None and there.stamp is not None and there.stamp > stamp else ""


async def is_a_lesser_tombstone(layer: Layer, op: Save | Delete, stamp: str) -> bool:
    """Whether ``op`` lays a tombstone where one is that is above it already: who lays it could not ask before."""
    if not isinstance(op, Save) or op.checkpoint is None or not op.thread_id.startswith(TOMBSTONES):
        return False
    return bool(await newer_version(layer, op.thread_id, op.checkpoint.id, stamp))


async def delete_up_to(far: Far, key: str, op: Delete, stamp: str) -> tuple[bool, str]:
    """Delete a checkpoint, or a thread, as it was at ``stamp``.

    Answers whether there was anything, and the stamp of what is newer, empty if nothing is. Asks first where there may
    be something newer: one more request for a thread, or for a name that a person chose.
    """
    op = replace(op, stamp=stamp, late=True)
    layer, thread_id, name = far.inner, op.thread_id, op.checkpoint_id
    newer = ""
    if thread_id.startswith(RESERVED) or (name is not None and looks_random(name)):
        return await layer.handle(op), newer
    if name is not None:
        newer = await newer_version(layer, thread_id, name, stamp)
        return not newer and await layer.handle(op), newer
    try:
        listed = await far.entries(thread_id, key)
    except CorruptCheckpoint:
        listed = []  # nobody can tell what it holds: it goes with the rest
    older = [entry for entry in listed if (entry.stamp or "") <= stamp]
    if len(older) < len(listed):
        newer = listed[0].stamp or ""
        if layer.explain()[SINGLE_DELETES]:
            return any([await layer.handle(replace(op, checkpoint_id=entry.id)) for entry in older]), newer
    return await layer.handle(op), newer


def is_iteration_save(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is one that its agent meant to delete: its own state lists its id."""
    if is_stamp(checkpoint.id) or not looks_random(checkpoint.id):
        return False
    return checkpoint.id in json.loads(checkpoint.body.encoded).get("metadata", {}).get(ITERATION_KEY, ())
