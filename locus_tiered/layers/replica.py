"""One replica: its leg, the hints for what it missed, how it does, and whether it is believed.

A write goes to the replica itself, or, when that fails or is known to be failing, becomes a *hint*: a row in a
journal of this replica's own, sent in order once it is back (Dynamo's hinted handoff, DeCandia et al., SOSP 2007). A
hint is a promise to the replica, never a vote of it.

Hints that outgrow their window give way, thread by thread, to one row that says: compare this thread with the other
replicas. Nothing is dropped silently.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import BackendError, JournalError, LocusTieredError
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.layer import Layer
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Delete, Operation, Save
from locus_tiered.core.signals import emit
from locus_tiered.layers.lagging import Lagging
from locus_tiered.layers.latency import Latency
from locus_tiered.layers.names import loses_index_rows
from locus_tiered.layers.said import Said, hint_row, open_hints
from locus_tiered.layers.tombstones import Tombstones
from locus_tiered.layers.versions import ReplicaFar, ReplicaFlusher, delete_up_to, is_a_lesser_tombstone, newer_version
from locus_tiered.stores.journal import Journal, key_of
from locus_tiered.stores.journal_rows import HEAD_OVERHEAD, PendingRow

__all__ = ["Replica"]

logger = logger_for(__name__)

T = TypeVar("T")

_MOST_OUTSTANDING = 64
"""Writes that may be under way to one replica; beyond that it counts as hanging, and gets hints."""


class _Session:
    """The hints as one event loop has them."""

    journal: Journal | None = None


class Replica:
    """A member of a ``ReplicatedCheckpointer``."""

    def __init__(
        self,
        layer: Layer,
        name: str,
        clock: Clock,
        *,
        path: Path | None,
        window: int,
        tombstones: Tombstones,
        compare: Callable[[str], None],
        late: Callable[[], None],
    ) -> None:
        self.layer, self.name = layer, name
        self.latency = Latency()
        self.fenced = True
        """Not believed: it was away for longer than tombstones are kept, until it was compared as a whole; or nobody
        has looked yet."""
        self._looked_at: int | None = None
        self.lost = False
        """Whether it is fenced because it holds nothing that was ever acknowledged there: it is new, or was wiped."""
        self.is_known_away = False
        """Whether it was told to be fenced already."""
        self.has_holes = False
        """Not believed: hints for it were damaged, nobody knows which, until it was compared as a whole."""
        self.is_unread = False
        """Not believed: its hints cannot be opened."""
        self.marked: dict[str, str] = {}
        """Threads of which it missed more writes than were kept, by key: not believed about them until they were
        compared."""
        self.lagging = Lagging(self.marked.__setitem__)
        """Threads of which a write was acknowledged that is still under way here: not believed about them till then."""
        self.far = ReplicaFar(layer, clock, tombstones, compare, late)
        self.flusher = ReplicaFlusher(self.far, lambda: name, clock, delivered=self._delivered)
        self._clock, self._path, self._window = clock, path, window
        self._sessions: PerLoop[_Session] = PerLoop(_Session)
        self._last: Journal | None = None
        self._temporary: Path | None = None
        self._writing: Counter[str] = Counter()
        self.stood_in: set[tuple[str, str]] = set()
        """Writes under way, by thread's key and stamp, that a hint stands in for already: a second one would come after
        later writes. (A delete and its tombstone share a stamp.)"""

    # -- hints ---------------------------------------------------------------------------------------

    async def open(self, *, make: bool) -> Journal | None:
        """The journal with this replica's hints; without a durable place one is made only when it is needed."""
        session = self._sessions.get()
        if session.journal is not None and session.journal.is_open:
            return session.journal
        path = self._path
        if path is None:
            if self._temporary is None:
                if not make:
                    return None
                self._temporary = Path(tempfile.mkdtemp(prefix="locus-tiered-hints-"))
                weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)  # should nobody close
            path = self._temporary
        journal = await open_hints(path, self, self._clock, durable=path is self._path)
        if journal is not self._last:  # else that was noticed when it was opened
            self.has_holes = self.has_holes or journal.damaged > 0
        self.is_unread = False
        session.journal = self._last = journal
        for row in session.journal.index.all():
            if row.kind == "scrub":
                self.marked[key_of(row)] = row.thread
        if session.journal.index.rows:
            self.flusher.wake(session.journal)
        return session.journal

    @property
    def is_opened_elsewhere(self) -> bool:
        """Whether another event loop has made a place for hints since this one has looked for some."""
        return self._path is None and self._temporary is not None and self.hints is None

    @property
    def hints(self) -> Journal | None:
        """The journal, if this event loop has it open."""
        journal = self._sessions.get().journal
        return journal if journal is not None and journal.is_open else None

    def rows(self, key: str) -> tuple[PendingRow, ...]:
        """The hints for one thread."""
        journal = self.hints
        return () if journal is None else journal.index.of(key)

    @property
    def waiting(self) -> int:
        """How many hints wait for it, as this process knows it; may be asked from any thread."""
        return 0 if self._last is None or self._last.pid != os.getpid() else self._last.index.rows

    def is_behind(self, key: str) -> bool:
        """Whether it is known to have missed a write to the thread."""
        return self.is_doubtful(key) or bool(self.rows(key))

    def is_doubtful(self, key: str) -> bool:
        """Whether nobody knows what it has missed of the thread."""
        return not self.is_believed or key in self.marked or key in self.lagging

    @property
    def checked(self) -> bool:
        """Whether somebody has looked for how long it was away, since it failed last: it may come back empty."""
        return self._looked_at == self.flusher.failures

    @checked.setter
    def checked(self, looked: bool) -> None:
        self._looked_at = self.flusher.failures if looked else None

    @property
    def is_believed(self) -> bool:
        """Whether it is believed at all."""
        return self.checked and not (self.fenced or self.has_holes or self.is_unread)

    async def is_compared(self, key: str) -> None:
        """The thread was compared with the other replicas, and mended."""
        self.marked.pop(key, None)
        journal = self.hints
        if journal is not None:
            await journal.drop([row for row in journal.index.of(key) if row.kind == "scrub" or row.error is not None])

    @property
    def is_merely_away(self) -> bool:
        """Whether it is not believed, but lost nothing: behind, with what it had."""
        return self.checked and (self.fenced or self.has_holes or self.is_unread) and not self.lost

    @property
    def in_step(self) -> bool:
        """Whether it is not known to have missed anything."""
        journal = self.hints
        if not self.is_believed or self.marked or self.lagging:
            return False
        return journal is None or not (journal.index.rows or journal.index.dead)

    @property
    def is_resting(self) -> bool:
        """Whether it failed and is being left alone for a while."""
        return self.flusher.is_resting or self._writing.total() >= _MOST_OUTSTANDING

    async def hint(self, key: str, op: Save | Delete, stamp: str, *, attempted: bool) -> PendingRow | None:
        """Keep a write for later; ``None`` when even that failed."""
        row = self._row(op, stamp, attempted=attempted)
        checkpoint: Checkpoint | None = op.checkpoint if isinstance(op, Save) else None
        try:
            journal = await self.open(make=True)
            assert journal is not None
            if any(each.kind == "scrub" for each in journal.index.of(key)):
                return row  # it is noted in the journal that the thread is to be compared as a whole
            body = None if checkpoint is None else await checkpoint.body.encode()
            row.size = HEAD_OVERHEAD + len(body or b"")
            gone: Sequence[PendingRow] = ()
            if journal.index.bytes + row.size > self._window:
                gone = journal.index.doom(journal.index.unsent(key))
                row = self._row(op, stamp, attempted=True, kind="scrub")
                checkpoint, body = None, None
                self.marked[key] = row.thread  # already: who is asking it finds those hints no more
                emit("replica.window", self.name, row.thread)
            metadata = None if checkpoint is None else checkpoint.metadata
            await journal.append(row, metadata, body, instead_of=gone)
            if row.kind == "scrub":
                self.marked[key] = row.thread
        except (JournalError, OSError) as error:
            self.marked[key] = row.thread
            logger.error("%s: no hint could be kept (%s); the thread is compared", self.name, type(error).__name__)
            return None
        emit("replica.hinted", self.name, row.thread, operation=op.name)
        self.flusher.wake(journal, row.due)
        return row

    def _row(self, op: Save | Delete, stamp: str, *, attempted: bool, kind: str | None = None) -> PendingRow:
        return hint_row(op, stamp, self._clock, self.far.tenant(op.thread_id), attempted=attempted, kind=kind)

    # -- writing -------------------------------------------------------------------------------------

    async def write(self, key: str, op: Save | Delete, stamp: str) -> Said:
        """Write to the replica, or keep a hint. Never raises what the replica raises."""
        if self.is_resting and not self._writing[key]:
            return await self._missed(key, op, stamp, None)
        # Behind a write that is under way: its hint, should it need one, must come before ours.
        self._writing[key] += 1
        try:
            return await self.flusher.lanes.change(key, lambda: self._write(key, op, stamp))
        finally:
            self._writing -= Counter((key,))

    async def _write(self, key: str, op: Save | Delete, stamp: str) -> Said:
        try:
            journal = self.hints
            if self.is_resting or (key, stamp) in self.stood_in:
                return await self._missed(key, op, stamp, None)
            if journal is not None and journal.index.unsent(key):
                await self.flusher.deliver(journal, key)  # what it missed goes first
            return await self._take(key, op, stamp)
        except (LocusTieredError, OSError) as error:
            return await self._missed(key, op, stamp, error)

    async def _take(self, key: str, op: Save | Delete, stamp: str) -> Said:
        if await is_a_lesser_tombstone(self.layer, op, stamp):
            return Said(self, took=True)
        result, newer = await self._now(key, op, stamp), ""
        if isinstance(op, Delete):
            result, newer = result
        return Said(self, took=True, result=result, newer=newer)

    async def catch_up(self, key: str, op: Save | Delete, stamp: str, missed: Said) -> Said:
        """Write what became a hint because it is being left alone, after the hints before it."""
        journal = self.hints
        if journal is None:
            return missed
        self._writing[key] += 1
        try:
            return await self.flusher.alone(journal, key, lambda: self._catch_up(journal, key, op, stamp, missed))
        finally:
            self._writing -= Counter((key,))

    async def _catch_up(self, journal: Journal, key: str, op: Save | Delete, stamp: str, missed: Said) -> Said:
        def is_sent() -> bool:
            return not any(row.stamp == stamp or row.kind == "scrub" for row in journal.index.of(key))

        rows = [row for row in journal.index.unsent(key) if row.kind != "scrub"]
        ours = [row for row in rows if row.stamp == stamp]
        try:
            if len(ours) < len(rows):
                await self.flusher.deliver(journal, key)
            if len(ours) < len(rows) or not ours:  # what is not a hint any more may be older than what came since
                return Said(self, took=True) if is_sent() else missed
            said = await self._take(key, op, stamp)
        except (LocusTieredError, OSError) as error:
            return replace(missed, error=error)
        with suppress(JournalError):  # else it is sent once more
            await journal.drop(ours)
        return said

    async def _now(self, key: str, op: Save | Delete, stamp: str | None = None) -> Any:
        """Have the replica do it; with ``stamp``, a delete leaves what is newer (see ``delete_up_to``)."""
        began = self._clock.monotonic()
        if isinstance(op, Save) and op.checkpoint is not None:
            self.far.sent(key, op.checkpoint.entry)
        try:
            if isinstance(op, Delete) and stamp is not None:
                result: Any = await delete_up_to(self.far, key, op, stamp)
            else:
                result = await self.layer.handle(op)
        except (LocusTieredError, OSError) as error:
            self._judge(error)
            self.far.gave_up(key, op.thread_id, error)
            raise
        if isinstance(op, Delete):
            self.far.deleted(key, op.checkpoint_id)
        self.flusher.worked()
        self.latency.took(op.name, self._clock.monotonic() - began)
        return result

    async def _missed(self, key: str, op: Save | Delete, stamp: str, error: BaseException | None) -> Said:
        if (key, stamp) in self.stood_in:
            return Said(self, took=False, hinted=True, error=error)
        row = await self.hint(key, op, stamp, attempted=error is not None)
        return Said(self, took=False, hinted=row is not None, error=error)

    async def mend(self, key: str, found: Checkpoint, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Have the replica hold this version of a checkpoint, unless it has a newer one, or ``unless`` says so."""

        async def mend() -> bool:
            if unless() or await self._has_newer(found.thread_id, found.entry):
                return False
            await self._now(key, Save(found.thread_id, None, found.id, None, found))
            return True

        return await self.flusher.lanes.change(key, mend)

    async def remove(self, key: str, thread_id: str, entry: Entry) -> bool:
        """Delete a version of a checkpoint, unless it was saved again; raises what the replica raises."""

        async def remove() -> bool:
            if await self._has_newer(thread_id, entry):
                return False
            await self._now(key, Delete(thread_id, entry.id, entry.stamp, late=entry.stamp is not None))
            return True

        return await self.flusher.lanes.change(key, remove)

    async def clear(self, key: str, thread_id: str) -> None:
        """Delete what is left of a thread of which nothing is listed any more; raises what the replica raises."""

        async def clear() -> None:
            if not await self.far.entries(thread_id, key):
                await self._now(key, Delete(thread_id, None))
                self.far.compare(thread_id)  # somebody may have saved meanwhile

        await self.flusher.lanes.change(key, clear)

    async def _has_newer(self, thread_id: str, entry: Entry) -> bool:
        """Whether somebody has saved a checkpoint again since he looked who wants to mend it."""
        if entry.id == entry.stamp:
            return False
        return bool(await newer_version(self.layer, thread_id, entry.id, entry.stamp or ""))

    def _judge(self, error: BaseException) -> None:
        """An error that is about one call does not say that the replica is down."""
        if isinstance(error, OSError) or (isinstance(error, BackendError) and error.temporary is not False):
            self.flusher.failed(error)

    # -- reading -------------------------------------------------------------------------------------

    async def ask(self, op: Operation[T]) -> T:
        """Ask the replica itself; what it raises is remembered, and raised."""
        began = self._clock.monotonic()
        try:
            result = await self.layer.handle(op)
        except asyncio.CancelledError:
            self.latency.overtaken(self._clock.monotonic() - began)
            raise
        except (LocusTieredError, OSError) as error:
            self._judge(error)
            raise
        self.latency.took(op.name, self._clock.monotonic() - began)
        return result

    async def entries(self, thread_id: str, key: str) -> list[Entry]:
        """The thread's checkpoints as the replica itself has them."""
        try:
            return await self.far.entries(thread_id, key)
        except (LocusTieredError, OSError) as error:
            self._judge(error)
            raise

    async def _delivered(self, thread_id: str) -> None:
        if loses_index_rows(self.layer):
            self.far.compare(thread_id)  # its list may have lost what another process was saving
        await self.check_latest(thread_id)

    async def check_latest(self, thread_id: str) -> bool:
        """See to it that the replica's own newest is the right one; see :meth:`ReplicaFar.check_latest`."""
        return await self.far.check_latest(thread_id)

    # -- life ----------------------------------------------------------------------------------------

    async def deliver_all(self) -> None:
        """Send every hint that there is; raises what the replica raises."""
        journal = await self.open(make=False)
        if journal is not None:
            for key in journal.index.threads():
                await self.flusher.send(journal, key)

    async def leave(self) -> None:
        """Let go of this event loop: the background task, the hints, the leg."""
        journal = self.hints
        await self.flusher.stop()
        await self.flusher.lanes.settle(5.0)
        self._sessions.drop()
        try:
            await self.layer.close()
        finally:
            if journal is not None:
                left = journal.index.rows
                await journal.detach(self)
                if self._temporary is not None and not journal.is_open:
                    if left:  # the next event loop sends them
                        logger.warning("%s: %d hints are kept nowhere else than in this process", self.name, left)
                    else:
                        shutil.rmtree(self._temporary, ignore_errors=True)
                        self._temporary = None
