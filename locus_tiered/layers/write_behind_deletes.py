"""The deleting part of write-behind: what cancels out, what the far store must hear of, and what others must know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Literal

from locus_tiered.core.errors import BackendError, JournalError, JournalFull
from locus_tiered.core.operations import Delete, Exists
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import above, is_stamp
from locus_tiered.layers.pending import overlay
from locus_tiered.layers.write_behind_reads import WriteBehindReads
from locus_tiered.stores.journal import Journal
from locus_tiered.stores.journal_rows import HEAD_OVERHEAD, PendingRow

__all__ = ["GRACE", "WriteBehindDeletes"]

GRACE = 1.0
"""Seconds between the end of a turn and the moment its rows are due: its deletes come first, and cancel them."""


class WriteBehindDeletes(WriteBehindReads, base=True):
    """See :class:`~locus_tiered.layers.write_behind.WriteBehindCheckpointer`, of which this is a part."""

    exclusive: bool

    def _new_row(
        self,
        kind: Literal["save", "delete"],
        key: str,
        thread_id: str,
        checkpoint_id: str | None,
        stamp: str,
        wait: float = GRACE,
        iteration: bool = False,
        size: int = HEAD_OVERHEAD,
        attempted: bool = False,
    ) -> PendingRow:
        now = self._clock.monotonic()
        return PendingRow(
            0,
            kind,
            thread_id,
            checkpoint_id,
            stamp,
            iteration=iteration,
            attempted=attempted,
            tenant=self._far.tenant(thread_id),
            saved_at=self._clock.wall(),
            size=size,
            since=now,
            due=now + wait,
            context=copy_context(),
        )

    # -- deleting ------------------------------------------------------------------------------------

    async def on_delete(self, op: Delete) -> bool:
        op = self._dated(op)
        key = self._key(op.thread_id)

        async def delete() -> bool:
            journal = await self._open()
            rows = await self._rows(journal, key)
            if journal.poisoned is not None:
                return await self._delete_through(journal, key, op)
            try:
                await journal.catch_up()
                if op.checkpoint_id is None:
                    return await self._delete_thread(journal, key, op, rows)
                return await self._delete_one(journal, key, op, rows, op.checkpoint_id)
            except JournalError as error:
                try:
                    return await self._delete_through(journal, key, op)
                except BackendError as worse:
                    raise type(error)(
                        f"{self.name}: neither the journal ({error}) nor the far store took a delete: it was not "
                        "acknowledged, and what is there stays. Try again"
                    ) from worse

        return await self._lanes.change(key, delete)

    async def _delete_one(
        self, journal: Journal, key: str, op: Delete, rows: Sequence[PendingRow], checkpoint_id: str
    ) -> bool:
        mine = [row for row in rows if row.id == checkpoint_id]
        saves = [row for row in mine if row.kind == "save"]
        last = self._last_word(rows, checkpoint_id)
        if not saves or not all(row.iteration for row in saves):
            await self._count_again(journal, key, rows)
        if last is None:
            return await self._delete_sent(journal, key, op, rows, checkpoint_id)
        if last.kind == "delete":
            return await self._delete_again(journal, key, op)
        caught = journal.index.doom(saves)
        # Sent, or on its way: the far store must hear of the delete too.
        heard = len(caught) < len(saves) or any(row.attempted or self._far.may_hold(key, row) for row in saves)
        try:
            if heard or len(mine) > len(saves):
                row = self._delete_row(journal, key, op)
                await self._keep(journal, row, caught)
            else:
                if _has_served(caught, rows):
                    journal.forget(caught)
                else:
                    await journal.drop(caught, superseding=self._superseded(key, caught, rows))
                emit("journal.cancelled", self.name, op.thread_id)
        except BaseException:
            self._spare(journal, caught)
            raise
        return True

    def _superseded(self, key: str, caught: Sequence[PendingRow], rows: Sequence[PendingRow]) -> list[PendingRow]:
        """The other steps of a turn whose end the far store has acknowledged, and which begins to be tidied up.

        They have served, and are most likely the next to be deleted. Once that is noted, their deletes need not wait
        for the disk.
        """
        end = self._far.surely(key)
        if any(not row.iteration or row.stamp >= end for row in caught):
            return []
        return [
            row
            for row in rows
            if row.kind == "save" and row.iteration and row.stamp < end and row not in caught
            if not (row.attempted or row.in_flight or row.doomed or row.adopted or row.superseded or row.error)
        ]

    async def _count_again(self, journal: Journal, key: str, rows: Sequence[PendingRow]) -> None:
        """What is to be deleted may be the end that steps were superseded by: those that are left are not any more."""
        superseded = [row for row in rows if row.superseded]
        if superseded:
            try:
                await journal.mark_attempted(superseded)
            except JournalError:
                await self._flusher.send(journal, key)

    async def _delete_again(self, journal: Journal, key: str, op: Delete) -> bool:
        """Delete what was deleted here already: there is something only if another process saved it again since."""
        if self.exclusive:
            return False
        try:
            there = any(entry.id == op.checkpoint_id for entry in await self._entries(op.thread_id))
        except BackendError:
            return False
        if there:
            await self._keep(journal, self._delete_row(journal, key, op))
        return there

    async def _delete_sent(
        self, journal: Journal, key: str, op: Delete, rows: Sequence[PendingRow], checkpoint_id: str
    ) -> bool:
        """Delete what only the far store may have."""
        own = self._far.is_own(key, checkpoint_id)
        if self.ack == "journal" or (self.ack == "turn" and own and not is_stamp(checkpoint_id)):
            try:
                if own or self.exclusive:
                    there = await self.inner.handle(Exists(op.thread_id, checkpoint_id))
                else:
                    listed = await self._far.entries(op.thread_id, key)
                    there = any(entry.id == checkpoint_id for entry in listed)
            except BackendError:
                there = True  # nobody can tell: the delete is kept, and will have been right
            if there:
                await self._keep(journal, self._delete_row(journal, key, op))
            return there
        buries = self._far.needs_tombstone(key, checkpoint_id)
        if buries and not is_stamp(checkpoint_id):
            await self._far.entries(op.thread_id, key)
        return await self._delete_far(journal, key, op, buries=buries)

    async def _delete_thread(self, journal: Journal, key: str, op: Delete, rows: Sequence[PendingRow]) -> bool:
        if self.ack == "journal":
            there = await self._is_there(key, op.thread_id, rows)
            await self._delete_pending(journal, key, op, rows)
            return there
        head = await self._far.head(op.thread_id, key)  # the delete is to be above whatever is there
        there = await self._is_there(key, op.thread_id, rows) if rows else head is not None
        # In the journal first: a crash, or an outage, half-way through would leave the tombstone, which takes what is
        # pending here and elsewhere, and of what the far store holds only a part.
        await self._delete_pending(journal, key, op, rows)
        try:
            await self._flusher.send(journal, key)
        except BackendError as error:
            error.add_note(f"{self.name}: the delete is kept in the journal, and goes on when the far store is back")
            raise
        return there

    async def _delete_pending(self, journal: Journal, key: str, op: Delete, rows: Sequence[PendingRow]) -> None:
        """Have the journal keep a thread's delete instead of what is pending of it."""
        row = self._delete_row(journal, key, op)
        caught = journal.index.doom(rows)
        try:
            await self._keep(journal, row, caught)
        except BaseException:
            self._spare(journal, caught)
            raise

    async def _is_there(self, key: str, thread_id: str, rows: Sequence[PendingRow]) -> bool:
        """Whether a thread has any checkpoint; while nobody can tell, its delete will have been right."""
        if self._kept(rows):
            return True
        try:
            if rows:
                return bool(overlay(await self._far.entries(thread_id, key), rows))
            return await self._far.head(thread_id, key) is not None
        except BackendError:
            return True

    async def _delete_through(self, journal: Journal, key: str, op: Delete) -> bool:
        """A journal that takes nothing cannot forget its rows: they go first, and a tombstone keeps them out."""
        await self._flusher.send(journal, key)
        deleted = await self._delete_far(journal, key, op, buries=True)
        dead = [row for row in journal.index.of(key) if row.error and op.checkpoint_id in (None, row.id)]
        journal.put_off(dead)
        return deleted or bool(dead)

    async def _delete_far(self, journal: Journal, key: str, op: Delete, *, buries: bool) -> bool:
        # Its place in the order is decided here: below, it goes no higher than that.
        settled = replace(op, stamp=self._stamp(journal, key, op), late=True)
        if buries:
            await self._far.bury(settled)

        async def delete() -> bool:
            deleted = await self.inner.handle(settled)
            self._far.deleted(key, op.checkpoint_id)
            return deleted

        return await self._flusher.alone(journal, key, delete)

    async def _keep(self, journal: Journal, row: PendingRow, instead_of: Sequence[PendingRow] = ()) -> None:
        """Have the journal acknowledge a delete. It takes no more of them than its index may hold, either."""
        if not instead_of and self._is_crowded(journal):
            raise JournalFull("the journal has reached its bound of rows: this delete was not kept there")
        await journal.append(row, instead_of=instead_of)
        self._flusher.wake(journal, row.due)

    @abstractmethod
    def _is_crowded(self, journal: Journal) -> bool:
        """Whether there are as many rows as may be kept in memory."""

    def _spare(self, journal: Journal, rows: Sequence[PendingRow]) -> None:
        """They were not dropped after all: they are to be sent."""
        journal.index.spare(rows)
        if rows:
            self._flusher.wake(journal)

    def _delete_row(self, journal: Journal, key: str, op: Delete) -> PendingRow:
        stamp = self._stamp(journal, key, op)
        return self._new_row("delete", key, op.thread_id, op.checkpoint_id, stamp)

    def _stamp(self, journal: Journal, key: str, op: Delete) -> str:
        """The stamp of a delete: above all that is known to be there, whatever the clocks of others say.

        And below all that is saved after its call, or a crash would take for deleted what waits behind it.
        """
        assert op.stamp is not None
        if op.late:
            return op.stamp
        seen = [self._far.newest(key), *(row.stamp for row in journal.index.of(key))]
        if op.checkpoint_id is not None and is_stamp(op.checkpoint_id):
            seen.append(op.checkpoint_id)
        for each in filter(None, seen):
            self._stamps.observe(key, each)
        return self._raise_delete(key, op.stamp, above(op.stamp, *seen))


def _has_served(saves: Sequence[PendingRow], rows: Sequence[PendingRow]) -> bool:
    """Whether a crash may bring these saves back into the journal, because whoever adopts it drops them.

    So it is with the steps of a turn whose end is in the same journal, and leaves it by a later commit, and with what
    was noted to be superseded: see ``Far.objections``.
    """
    if all(row.superseded for row in saves):
        return True
    ends = (row for row in rows if row.kind == "save" and not (row.iteration or row.in_flight or row.doomed))
    end = max((row.stamp for row in ends if row.error is None), default="")
    return all(row.iteration and row.stamp < end for row in saves)
