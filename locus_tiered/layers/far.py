"""The far store, as a write-behind layer sees it: what it is known to hold, and what must not be sent to it any more.

Knowing that the far store does *not* hold an id is what lets a save and a delete cancel out. It is known of an id
that is its own stamp (nobody had it before), and of any other from the list that is read anyway when a thread is
first looked at. Where it is not known, the delete is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core import deadline
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import Clock
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.layer import MOST, Layer
from locus_tiered.core.operations import Delete, Head, ListCheckpoints, Load, Save
from locus_tiered.core.stamp import is_stamp, looks_random, stamp_seconds
from locus_tiered.core.units import DAY
from locus_tiered.layers.pending import outlives, overlay
from locus_tiered.layers.tombstones import Tombstones
from locus_tiered.stores.journal_rows import PendingRow

__all__ = ["Far"]

_MOST_IDS = 1024
_OLD_SECONDS = KEPT_DAYS / 2 * DAY


class Far:
    """One far store. ``exclusive``: this process is the only one that writes to its threads. ``lays``: deletes that
    are sent leave tombstones.
    """

    def __init__(
        self,
        inner: Layer,
        clock: Clock,
        *,
        exclusive: bool,
        tombstones: Tombstones | None = None,
        lays: bool = True,
    ) -> None:
        self.inner = inner
        self.exclusive = exclusive
        self.tombstones = Tombstones(inner, clock) if tombstones is None else tombstones
        self.prunes = inner.traits.prunes
        self._lays = lays and not exclusive
        self._clock = clock
        self._partition = inner.traits.partition
        # Per thread: the ids that it may hold and that are no stamps. Not there: nobody has looked.
        self._ids: LRUCache[str, set[str]] = LRUCache(16_384)
        self._newest: LRUCache[str, str] = LRUCache(65_536)
        self._sure: LRUCache[str, Entry] = LRUCache(65_536)
        self._own: LRUCache[tuple[str, str], bool] = LRUCache(65_536)
        self._contexts: LRUCache[str, Context] = LRUCache(4096)
        self._lock = Lock()
        self._has_news = False

    # -- tenants and context variables ---------------------------------------------------------------

    def tenant(self, thread_id: str) -> str | None:
        """Whose thread this is, in the caller's context; his context is remembered for what his crash left."""
        if self._partition is None:
            return None
        tenant = self._partition(thread_id)
        if tenant is not None:
            with self._lock:
                self._has_news = self._has_news or tenant not in self._contexts
                self._contexts[tenant] = copy_context()
        return tenant

    def has_news(self) -> bool:
        """Whether a tenant's context was seen for the first time since this was asked last."""
        if not self._has_news:
            return False
        with self._lock:
            self._has_news = False
        return True

    def context_of(self, row: PendingRow) -> Context | None:
        """The context to send a row in; ``None`` where only a guess would be left."""
        if row.context is not None:
            return row.context
        if self._partition is None:
            return copy_context()
        if row.tenant is None:
            context: Context | None = Context()
        else:
            with self._lock:
                context = self._contexts.get(row.tenant)
        if context is None or context.copy().run(self._partition, row.thread) != row.tenant:
            return None
        return context

    # -- what it holds -------------------------------------------------------------------------------

    async def entries(self, thread_id: str, key: str) -> list[Entry]:
        """The thread's checkpoints as the far store has them, newest first."""
        listed = await self.inner.handle(ListCheckpoints(thread_id, MOST, ordered=True))
        names = {entry.id for entry in listed if not is_stamp(entry.id)}
        with self._lock:
            if len(names) <= _MOST_IDS:
                self._ids[key] = names | {each for each in self._ids.get(key, ()) if (key, each) in self._own}
            else:
                self._ids.pop(key, None)
        if listed and listed[0].stamp is not None:
            self._saw(key, listed[0])
        return listed

    async def head(self, thread_id: str, key: str) -> Entry | None:
        """The thread's newest checkpoint; the first look at a thread also learns which ids there are."""
        if key not in self._ids:
            listed = await self.entries(thread_id, key)
            return listed[0] if listed else None
        head = await self.inner.handle(Head(thread_id))
        if head is not None and head.stamp is not None:
            self._saw(key, head)
        return head

    def _saw(self, key: str, entry: Entry) -> None:
        stamp = entry.stamp or ""
        with self._lock:
            self._newest[key] = max(stamp, self._newest.get(key, ""))
            sure = self._sure.get(key)
            if sure is None or (sure.stamp or "") < stamp:
                self._sure[key] = entry

    def took(self, key: str, entry: Entry) -> None:
        """Note that it acknowledged this checkpoint."""
        if entry.stamp is not None:
            self._saw(key, entry)

    def surely(self, key: str) -> str:
        """The greatest stamp that the far store listed, or acknowledged, in the thread; empty if none, or if that
        was deleted since.
        """
        with self._lock:
            sure = self._sure.get(key)
            return "" if sure is None else sure.stamp or ""

    def newest(self, key: str) -> str:
        """The greatest stamp that the far store may hold in the thread, as far as is known; empty if none."""
        with self._lock:
            return self._newest.get(key, "")

    def may_hold(self, key: str, row: PendingRow) -> bool:
        """Whether it may hold the id of a save that was not sent yet."""
        if row.id == row.stamp:
            return False
        if row.id is not None and (is_stamp(row.id) or not looks_random(row.id)):
            return True  # saved before, or a name that a person chose: anybody may have saved it since we looked
        with self._lock:
            ids = self._ids.get(key)
            return ids is None or row.id in ids

    def looked(self, key: str) -> bool:
        """Whether it is known which ids the thread has."""
        with self._lock:
            return key in self._ids

    def is_own(self, key: str, checkpoint_id: str) -> bool:
        """Whether this process has sent this checkpoint itself."""
        with self._lock:
            return (key, checkpoint_id) in self._own

    def sent(self, key: str, entry: Entry) -> None:
        """Note, before it is sent, that it may hold this checkpoint from now on."""
        with self._lock:
            self._own[key, entry.id] = True
            ids = self._ids.get(key)
            if ids is not None and not is_stamp(entry.id):
                ids.add(entry.id)
                if len(ids) > _MOST_IDS:
                    del self._ids[key]
            if entry.stamp is not None:
                self._newest[key] = max(entry.stamp, self._newest.get(key, ""))

    def deleted(self, key: str, checkpoint_id: str | None) -> None:
        """Note that it does not hold this checkpoint any more (``None``: the thread)."""
        with self._lock:
            if checkpoint_id is None:
                self._newest.pop(key, None)
                self._sure.pop(key, None)
                if key in self._ids:
                    self._ids[key] = set()
                return
            sure = self._sure.get(key)
            if sure is not None and sure.id == checkpoint_id:
                del self._sure[key]
            if key in self._ids:
                self._ids[key].discard(checkpoint_id)

    # -- sending -------------------------------------------------------------------------------------

    async def send(self, key: str, row: PendingRow, checkpoint: Checkpoint | None) -> None:
        """Have it do what a row says, in the context that the row belongs to."""
        context = self.context_of(row)
        assert context is not None
        task = asyncio.get_running_loop().create_task(self._send(key, row, checkpoint), context=context.copy())
        await task

    async def _send(self, key: str, row: PendingRow, checkpoint: Checkpoint | None) -> None:
        deadline.forget()
        if row.kind == "save":
            assert checkpoint is not None
            self.sent(key, checkpoint.entry)
            await self.inner.handle(Save(row.thread, None, checkpoint.id, None, checkpoint, row.iteration))
            self.took(key, checkpoint.entry)
            return
        delete = Delete(row.thread, row.id, row.stamp, late=True)
        if row.id is None:
            await self._send_thread_delete(key, row, delete)
            return
        if self.needs_tombstone(key, row.id):
            await self.bury(delete, late=True)
        await self.inner.handle(delete)
        self.deleted(key, row.id)

    async def _send_thread_delete(self, key: str, row: PendingRow, delete: Delete) -> None:
        """Delete a thread as it was when the delete was acknowledged: what was saved since stays.

        By others; or by a former process, whose disk failed and could not note that this had been sent.
        """
        if self._lays:
            await self.bury(delete, late=True)
        if not self.exclusive or row.context is None:
            listed = await self.entries(row.thread, key)
            if any(outlives(entry, row) for entry in listed):
                for entry in listed:
                    if not outlives(entry, row):
                        await self.inner.handle(replace(delete, checkpoint_id=entry.id))
                return
        await self.inner.handle(delete)
        self.deleted(key, None)

    async def objections(self, key: str, rows: Sequence[PendingRow]) -> dict[PendingRow, str]:
        """Rows of a thread that must not be sent any more, and why; asked before anything is sent.

        ``deleted`` and ``overtaken`` by another process, ``too old``, or (a delete) ``absent``. Without another
        process there are none, except for what a former one left.
        """
        former = [row for row in rows if row.adopted]
        if not rows or (self.exclusive and not former) or rows[0].thread.startswith(RESERVED):
            return {}
        objections: dict[PendingRow, str] = {}
        thread_id = rows[0].thread
        saves = [row for row in rows if row.kind == "save"]
        gone: dict[tuple[str, str | None], str] = {}
        if saves and (former or not self.exclusive):
            doubtful = [(thread_id, row.id) for row in saves if row.adopted or row.attempted]
            gone = await self.tombstones.among([(thread_id, None), *doubtful])
        listed: list[Entry] | None = None
        if former or not self.looked(key) or any(_may_be_overtaken(row) for row in rows):
            listed = await self.entries(thread_id, key)
        there = {entry.id: entry for entry in listed or ()}
        # What a delete among these rows is about to take away survives nothing for anybody.
        staying = overlay(listed or (), (row for row in rows if row.kind == "delete"))
        newest = [entry.stamp for entry in staying if entry.stamp is not None]
        newest += [row.stamp for row in saves if not row.iteration]
        latest = max(newest, default="")
        for row in rows:
            same = None if row.id is None else there.get(row.id)
            if row.kind == "delete":
                if same is not None and outlives(same, row):
                    objections[row] = "overtaken"
                elif row.id is not None and same is None and listed is not None and not self.is_own(key, row.id):
                    sent_before = any(save.id == row.id for save in saves)
                    if not sent_before:
                        objections[row] = "absent"
                continue
            if same is not None:
                row.attempted = True  # it may have been sent by a journal that could not note so
            overtaken = same is not None and (same.stamp or "") > row.stamp
            if row.stamp <= max(gone.get((thread_id, None), ""), gone.get((thread_id, row.id), "")):
                objections[row] = "deleted"
            elif overtaken or (row.adopted and (row.superseded or (row.iteration and latest > row.stamp))):
                objections[row] = "overtaken"
            elif row.adopted and self._clock.wall() - row.saved_at > _OLD_SECONDS:
                objections[row] = "too old"
        return objections

    async def mend(self, thread_id: str) -> list[Entry]:
        """Have the far store's own newest be the right one after something older was sent (for bare readers).

        Answers what was saved again.
        """
        head = await self.inner.handle(Head(thread_id))
        if head is None or head.stamp is None:
            return []
        found = await self.inner.handle(Load(thread_id, head.id, head.stamp))
        if found is None:
            return []
        await self.inner.handle(Save(thread_id, None, found.id, None, found))
        return [found.entry]

    async def recall(self, key: str, thread_id: str, saved: Sequence[Entry]) -> None:
        """Take back what was sent while another process deleted it, or its thread: after our question, before that.

        Who deletes leaves the tombstone first. So either it is seen here, or that delete comes after our sending.
        """
        if not saved or self.exclusive:
            return
        asked = [(thread_id, None), *((thread_id, entry.id) for entry in saved)]
        gone = await self.tombstones.among(asked)
        thread = gone.get((thread_id, None), "")
        graves = {entry: max(thread, gone.get((thread_id, entry.id), "")) for entry in saved}
        dead = {entry: grave for entry, grave in graves.items() if (entry.stamp or "") <= grave}
        if dead:
            for entry in await self.entries(thread_id, key):
                if entry in dead:
                    await self.inner.handle(Delete(thread_id, entry.id, dead[entry], late=True))
                    self.deleted(key, entry.id)

    async def bury(self, delete: Delete, *, late: bool = False) -> None:
        """Leave the tombstone of a delete before it is sent, unless the far store does so itself.

        One that is taken by too few replicas goes on with its delete there; laid from here it would go on alone.
        ``late`` as in :meth:`Tombstones.lay`.
        """
        assert delete.stamp is not None
        if not self.inner.lays_tombstones:
            await self.tombstones.lay(delete.thread_id, delete.checkpoint_id, delete.stamp, late=late)

    def needs_tombstone(self, key: str, checkpoint_id: str) -> bool:
        """Whether a former process may still hold a save of this id, which a delete must keep from being sent."""
        if not self._lays:
            return False
        if is_stamp(checkpoint_id):
            old = self._clock.wall() - stamp_seconds(checkpoint_id) > _OLD_SECONDS
            return not old and not self.is_own(key, checkpoint_id)
        return not (looks_random(checkpoint_id) and self.is_own(key, checkpoint_id))


def _may_be_overtaken(row: PendingRow) -> bool:
    """Whether another process may have saved this very id: one that a person chose."""
    return row.id is not None and not looks_random(row.id)
