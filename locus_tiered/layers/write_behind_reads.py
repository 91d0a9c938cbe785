"""The reading half of write-behind: the far store's answers with what is pending laid over them.

Rows that a former process left are compared with the far store before they answer anything (``Flusher.vet``): another
process may have deleted or overtaken what they hold.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    Exists,
    GetMetadata,
    Head,
    ListCheckpoints,
    ListThreads,
    ListWithMetadata,
    Load,
    QueryByMetadata,
    Row,
    Search,
)
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.layers.pending import last_word, outlives, overlay
from locus_tiered.layers.write_behind_life import WriteBehindLife
from locus_tiered.stores.base import row_of
from locus_tiered.stores.journal import Journal, key_of
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged

__all__ = ["WriteBehindReads"]

logger = logger_for(__name__)


class WriteBehindReads(WriteBehindLife, base=True):
    """See :class:`~locus_tiered.layers.write_behind.WriteBehindCheckpointer`, of which this is a part."""

    # -- what is pending -----------------------------------------------------------------------------

    async def _rows(self, journal: Journal, key: str) -> tuple[PendingRow, ...]:
        """A thread's pending rows, those of a former process compared with the far store first."""
        rows = journal.index.of(key)
        if any(row.adopted and row.error is None for row in rows):
            await self._flusher.vet(journal, key)
            rows = journal.index.of(key)
        return rows

    async def _here(self, thread_id: str) -> tuple[Journal, str, tuple[PendingRow, ...]]:
        key = self._key(thread_id)
        journal = await self._open()
        return journal, key, await self._rows(journal, key)

    _last_word = staticmethod(last_word)

    @staticmethod
    def _kept(rows: Sequence[PendingRow]) -> list[Entry]:
        """The checkpoints that the rows by themselves leave."""
        return overlay((), rows)

    async def _read(self, journal: Journal, row: PendingRow) -> Checkpoint | None:
        try:
            return await journal.checkpoint(row)
        except RowDamaged as damage:
            raise CorruptCheckpoint(
                f"{self.name}: the journal's copy of checkpoint {shorten(row.id)} of thread {shorten(row.thread)} is "
                f"damaged: {damage}. Nothing was changed; look at the disk",
                member=self.name,
                thread_id=row.thread,
                checkpoint_id=row.id,
            ) from damage

    # -- reading -------------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        if op.checkpoint_id is not None:
            return await self._load_one(op, op.checkpoint_id)
        for _ in range(1000):
            head = await self.on_head(Head(op.thread_id))
            if head is None:
                return None
            found = await self._by_entry(op.thread_id, head)
            if found is not None:
                return found
        raise BackendError(
            f"{self.name}: the newest checkpoint of thread {shorten(op.thread_id)} was listed but could not be loaded, "
            "again and again; nothing was changed. Try again",
            member=self.name,
            operation="load",
            temporary=True,
        )

    async def _by_entry(self, thread_id: str, entry: Entry) -> Checkpoint | None:
        return await self._load_one(Load(thread_id, entry.id, entry.stamp), entry.id)

    async def _load_one(self, op: Load, checkpoint_id: str) -> Checkpoint | None:
        last: PendingRow | None = None
        while True:
            journal, _, rows = await self._here(op.thread_id)
            before, last = last, last_word(rows, checkpoint_id)
            if last is None or last.kind == "delete" or last is before:
                break
            if op.stamp is not None and op.stamp != last.stamp:
                return None
            found = await self._read(journal, last)
            if found is not None:
                return found
            # It was sent, or another one took its place: look again.
        found = await self.inner.handle(op)
        if found is None or last is None or last.kind == "save" or outlives(found.entry, last):
            return found
        return None

    async def on_head(self, op: Head) -> Entry | None:
        _, key, rows = await self._here(op.thread_id)
        if not rows:
            head = await self._far.head(op.thread_id, key)
            if head is None and not self._far.exclusive and self.ack != "far":
                # What is saved from now on must be newer than the delete that another process, whose clock may be
                # ahead, has left a tombstone of: or it would be taken for older and dropped.
                gone = await self._far.tombstones.among([(op.thread_id, None)])
                self._stamps.observe(key, gone.get((op.thread_id, None)))
            return head
        kept = self._kept(rows)
        try:
            if any(row.kind == "delete" for row in rows):
                whole = overlay(await self._far.entries(op.thread_id, key), rows)
                return whole[0] if whole else None
            head = await self._far.head(op.thread_id, key)
        except BackendError as error:
            if not kept or (kept[0].stamp or "") < self._far.surely(key):
                raise  # the steps of a turn may outlast its end here; what ended it is in the far store
            # What this process acknowledged itself is answered; whether others saved since, nobody knows.
            emit("answer.stale", self.name, op.thread_id, error=type(error).__name__)
            logger.warning(
                "%s: the newest of thread %s is answered from the journal: %s", self.name, shorten(op.thread_id), error
            )
            return kept[0]
        return max((head, kept[0]), key=lambda each: "" if each is None else each.stamp or "")

    async def _entries(self, thread_id: str) -> list[Entry]:
        _, key, rows = await self._here(thread_id)
        return overlay(await self._far.entries(thread_id, key), rows)

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        _, key, rows = await self._here(op.thread_id)
        if not rows:
            return await self.inner.handle(ListCheckpoints(op.thread_id, op.limit, ordered=True))
        return overlay(await self._far.entries(op.thread_id, key), rows)[: op.limit]

    async def on_exists(self, op: Exists) -> bool:
        if op.checkpoint_id is None:
            return await self.on_head(Head(op.thread_id)) is not None
        _, _, rows = await self._here(op.thread_id)
        last = last_word(rows, op.checkpoint_id)
        if last is None:
            return await self.inner.handle(op)
        if last.kind == "save":
            return True
        return any(entry.id == op.checkpoint_id for entry in await self._entries(op.thread_id))

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        checkpoint_id = op.checkpoint_id
        if checkpoint_id is None:
            head = await self.on_head(Head(op.thread_id))
            if head is None:
                return None
            checkpoint_id = head.id
        journal, _, rows = await self._here(op.thread_id)
        last = last_word(rows, checkpoint_id)
        if last is not None and last.kind == "save":
            found = await self._read(journal, last)
            if found is not None:
                return row_of(found, stamp_seconds(last.stamp))
        elif last is not None and not await self.on_exists(Exists(op.thread_id, checkpoint_id)):
            return None
        return await self.inner.handle(GetMetadata(op.thread_id, checkpoint_id))

    # -- over all threads ----------------------------------------------------------------------------

    async def on_search(self, op: Search) -> list[Row]:
        await self.flush()
        return await self.inner.handle(op)

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        await self.flush()
        return await self.inner.handle(op)

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        await self.flush()
        return await self.inner.handle(op)

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        journal = await self._open()
        here: dict[str, bool] = {}
        for row in reversed(journal.index.all()):
            if row.thread.startswith(RESERVED) or row.thread in here or row.tenant != self._far.tenant(row.thread):
                continue
            rows = await self._rows(journal, key_of(row))
            if self._kept(rows):
                here[row.thread] = True
            elif any(each.kind == "delete" for each in rows):
                here[row.thread] = bool(await self._entries(row.thread))
        if not here:
            return await self.inner.handle(op)
        there = await self.inner.handle(ListThreads(min(op.limit + len(here), MOST), op.pattern))
        pending = [thread for thread, alive in here.items() if alive and fnmatch.fnmatchcase(thread, op.pattern)]
        return [*pending, *(thread for thread in there if thread not in here)][: op.limit]
