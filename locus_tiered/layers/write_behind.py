"""``WriteBehindCheckpointer``: an agent waits for a local fsync; the far store hears of it later, or never.

What ``ack`` promises when ``save`` has returned:

===============  ======================================  ==========================================
``ack``          iteration saves of a turn               every other save
===============  ======================================  ==========================================
``"far"``        the far store has it                    the far store has it
``"turn"``       the local journal has it                the far store has it
``"journal"``    the local journal has it                the local journal has it
===============  ======================================  ==========================================

A save that the far store never heard of and that is then deleted cancels out: of a turn with ten tool calls the far
store sees one save. What is pending answers reads of this process. Rows are sent per thread in order; a save that is
acknowledged by the far store itself may overtake iteration saves before it, whose stamps put them in their place.

It does not promise that other processes see what is pending, nor that it survives the loss of the journal's disk: with
``"turn"`` that costs at most the steps of an unfinished turn, with ``"journal"`` all that is pending. A far store that
is written to without this layer leaves no tombstones: a delete there is not known to what is pending here.
"""

from __future__ import annotations

import os

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.capabilities import Explanation, Verdict
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import (
    BackendError,
    JournalError,
    JournalFull,
    JournalPoisoned,
    shorten,
)
from locus_tiered.core.layer import construction
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import CopyThread, Head, Save, Vacuum
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import StampClock
from locus_tiered.core.units import parse_bytes, show_bytes
from locus_tiered.layers.far import Far
from locus_tiered.layers.order import warn_about_order
from locus_tiered.layers.write_behind_deletes import GRACE, WriteBehindDeletes
from locus_tiered.layers.write_behind_options import (
    Ack,
    OnFarOutage,
    check_ack,
    check_exclusive,
    check_on_outage,
    check_times,
)
from locus_tiered.stores.journal import Journal, check_journal_path
from locus_tiered.stores.journal_rows import HEAD_OVERHEAD, PendingRow

__all__ = ["WriteBehindCheckpointer"]

logger = logger_for(__name__)

_MOST_ROWS = 100_000
_LOOK_AGAIN = 0.05


class WriteBehindCheckpointer(WriteBehindDeletes):
    """A crash-safe local journal in front of one checkpointer.

    Args:
        inner: The far store, with its retries, guards and replicas.
        journal: A directory on a local disk. Several processes may name the same one: each has a sub-directory of
            its own in it, and takes over those of processes that have ended.
        ack: What acknowledges a save; see the table above.
        linger: Seconds that an iteration save waits for the delete that cancels it.
        max_lag: Seconds that a row may be pending before new saves wait for the far store.
        max_pending: Bytes that may be pending before new saves wait for the far store.
        drain_timeout: Seconds that a save waits for room, and that ``close()`` waits for the far store.
        on_outage: With ``ack="turn"``, when the far store does not take a save that it is to acknowledge:
            ``"fail"`` raises; ``"journal"`` keeps it in the journal and says so (log, signal ``save.degraded``).
        exclusive: No other process writes to these threads: neither tombstones nor questions about others are needed.

    At a bound a save waits, then is written through, then raises :class:`JournalFull`. A journal whose disk fails a
    commit takes nothing more (:class:`JournalPoisoned` is logged): saves are then written through.

    A cancelled save or delete goes on to its end in the background.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        *,
        journal: str | os.PathLike[str],
        ack: Ack = "turn",
        linger: float = 30.0,
        max_lag: float = 60.0,
        max_pending: int | str = "256MiB",
        drain_timeout: float = 10.0,
        on_outage: OnFarOutage = "fail",
        exclusive: bool = False,
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(inner, name=name, clock=clock)
        self.journal = check_journal_path(journal)
        self.ack: Ack = check_ack(ack)
        self.on_outage: OnFarOutage = check_on_outage(on_outage)
        self.linger, self.max_lag, self.drain_timeout = check_times(linger, max_lag, drain_timeout)
        self.max_pending = parse_bytes(max_pending, "max_pending")
        self.exclusive = check_exclusive(exclusive)
        self._far = Far(self.inner, clock, exclusive=self.exclusive)
        self._begin(self._far, self.journal, clock)
        self._coming = 0  # bytes of saves that have room and are not in the journal yet
        self.put_in_order()
        self.inner.share_stamps(self._stamps)
        warn_about_order(self)

    def share_stamps(self, stamps: StampClock) -> None:
        self._stamps = stamps
        super().share_stamps(stamps)

    @property
    def saves_without_home(self) -> bool:
        return self.ack != "far"

    def explain(self) -> Explanation:
        return self.inner.explain().but(
            branching=Verdict(True, self.name, "loads, stamps anew and saves, oldest first"),
            persistent_checkpoint_ids=Verdict(True, self.name, "the journal keeps the ids it is given"),
        )

    # -- saving --------------------------------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        if op.checkpoint is None:
            op = await self.freeze(op)
        assert op.checkpoint is not None
        key = self._key(op.thread_id)
        self._stamps.observe(key, op.checkpoint.stamp)
        frozen = op

        async def save() -> str:
            journal = await self._open()
            op = self._lifted(key, frozen)
            checkpoint = op.checkpoint
            assert checkpoint is not None
            if checkpoint.stamp is None or self.ack == "far" or (self.ack == "turn" and not op.iteration):
                await self._to_far_or_journal(journal, key, op, checkpoint)
            else:
                await self._to_journal(journal, key, op, checkpoint)
            return checkpoint.id

        return await self._lanes.change(key, save)

    async def _to_far_or_journal(self, journal: Journal, key: str, op: Save, checkpoint: Checkpoint) -> None:
        try:
            await self._to_far(journal, key, op, checkpoint)
        except BackendError as error:
            if self.ack != "turn" or self.on_outage != "journal" or error.temporary is False:
                raise
            size = await self._size(checkpoint)
            if not self._take_room(journal, size):
                raise self._refusal(journal) from error
            try:
                row = await self._row(key, op, checkpoint, attempted=True)
                await self._append(journal, key, row, checkpoint)
            finally:
                self._give_room(journal, size)
            emit("save.degraded", self.name, op.thread_id, error=type(error).__name__)
            logger.warning(
                "%s: the far store did not take a save of thread %s (%s); it is kept in the journal, on this disk only",
                self.name,
                shorten(op.thread_id),
                type(error).__name__,
            )

    async def _to_far(self, journal: Journal, key: str, op: Save, checkpoint: Checkpoint) -> None:
        """Have the far store itself acknowledge a save; what must come before it is sent first."""
        if any(self._goes_first(row, checkpoint) for row in journal.index.unsent(key)):
            await self._flusher.send(journal, key)

        async def save() -> None:
            if checkpoint.stamp is not None:
                self._far.sent(key, checkpoint.entry)
            await self.inner.handle(op)
            self._far.took(key, checkpoint.entry)

        await self._flusher.alone(journal, key, save)
        # The deletes of a finished turn are to come before its iteration saves are due.
        if journal.index.of(key):
            self._hasten(journal, key)

    def _goes_first(self, row: PendingRow, checkpoint: Checkpoint) -> bool:
        """Whether a pending row must reach the far store before a newer save does."""
        lingers = row.iteration and row.kind == "save" and not row.attempted
        return not lingers or row.adopted or row.id == checkpoint.id or self._far.prunes

    async def _to_journal(self, journal: Journal, key: str, op: Save, checkpoint: Checkpoint) -> None:
        """Have the journal acknowledge a save; at its bounds, or when its disk fails, the far store."""
        why: JournalError | None = None
        size = await self._size(checkpoint)
        if await self._room(journal, size):
            try:
                row = await self._row(key, op, checkpoint)
                await self._append(journal, key, row, checkpoint)
                return
            except JournalError as error:
                why = error
                self._alarm(error, op.thread_id)
            finally:
                self._give_room(journal, size)
        try:
            await self._to_far(journal, key, op, checkpoint)
        except BackendError as error:
            raise (why or self._refusal(journal)) from error

    def _alarm(self, error: JournalError, thread_id: str) -> None:
        emit("journal.failed", self.name, thread_id, error=type(error).__name__)
        logger.error("%s: thread %s is written through: %s", self.name, shorten(thread_id), error)

    async def _append(self, journal: Journal, key: str, row: PendingRow, checkpoint: Checkpoint) -> None:
        body = await checkpoint.body.encode()
        # The same id, saved again before the far store heard of it: only the last one counts.
        replaced = journal.index.doom(
            each for each in journal.index.unsent(key) if each.id == row.id and not each.attempted and not each.adopted
        )
        try:
            await journal.append(row, checkpoint.metadata, body, instead_of=replaced)
        except BaseException:
            self._spare(journal, replaced)
            raise
        emit("journal.kept", self.name, row.thread)
        if not row.iteration:
            self._hasten(journal, key)
        self._flusher.wake(journal, row.due)

    def _hasten(self, journal: Journal, key: str) -> None:
        due = self._clock.monotonic() + GRACE
        journal.index.hasten(due, key)
        self._flusher.wake(journal, due)

    async def _size(self, checkpoint: Checkpoint) -> int:
        return len(await checkpoint.body.encode()) + HEAD_OVERHEAD

    async def _row(self, key: str, op: Save, checkpoint: Checkpoint, *, attempted: bool = False) -> PendingRow:
        assert checkpoint.stamp is not None
        size = await self._size(checkpoint)
        wait = self.linger if op.iteration else GRACE
        return self._new_row(
            "save", key, op.thread_id, checkpoint.id, checkpoint.stamp, wait, op.iteration, size, attempted
        )

    # -- bounds --------------------------------------------------------------------------------------

    def _fits(self, journal: Journal, size: int) -> bool:
        index = journal.index
        if journal.poisoned is not None or index.bytes + self._coming + size > self.max_pending:
            return False
        if self._is_crowded(journal):
            return False
        oldest = index.oldest(lambda row: self._far.context_of(row) is not None)
        return oldest is None or self._clock.monotonic() - oldest <= self.max_lag

    def _is_crowded(self, journal: Journal) -> bool:
        return journal.index.rows + journal.index.dead >= _MOST_ROWS

    def _take_room(self, journal: Journal, size: int) -> bool:
        """Have so many bytes of the journal, if there is room; :meth:`_give_room` gives them back."""
        with journal.index.lock:
            fits = self._fits(journal, size)
            self._coming += size if fits else 0
            return fits

    def _give_room(self, journal: Journal, size: int) -> None:
        with journal.index.lock:
            self._coming -= size

    async def _room(self, journal: Journal, size: int) -> bool:
        """Take so many bytes of the journal; waits for room, sending what is pending. Answers whether there was."""
        if self._take_room(journal, size):
            return True
        if journal.poisoned is not None or size > self.max_pending:
            return False
        emit("journal.waiting", self.name, None, rows=journal.index.rows, bytes=journal.index.bytes)
        now = self._clock.monotonic()
        deadline = now + self.drain_timeout
        journal.index.hasten(now)
        self._flusher.wake(journal)
        while self._clock.monotonic() < deadline:
            await self._clock.sleep(_LOOK_AGAIN)
            if self._take_room(journal, size):
                return True
        return False

    def _refusal(self, journal: Journal) -> JournalError:
        """The error for a save that neither the journal nor the far store took."""
        safe = "and the far store did not take it: this save was not acknowledged; what was acknowledged before is kept"
        if journal.poisoned is not None:
            return JournalPoisoned(
                f"{self.name}: the journal's disk failed ({journal.poisoned}), so this save went to the far store, "
                f"{safe}. Look at the disk, then start the process anew"
            )
        return JournalFull(
            f"{self.name}: the journal has reached its bounds ({show_bytes(self.max_pending)}, {self.max_lag:g} s, "
            f"{_MOST_ROWS} rows), {safe}. Try again when the far store is back, or raise max_pending and max_lag"
        )

    # -- the other changes ---------------------------------------------------------------------------

    async def on_vacuum(self, op: Vacuum) -> int:
        await self.flush()
        return await self.inner.handle(op)

    async def on_copy_thread(self, op: CopyThread) -> bool:
        """Load, stamp anew and save, oldest first; not atomic: when it fails half-way, what was copied stays."""
        entries: list[Entry] = await self._entries(op.source_thread_id)
        key = await self._look(op.dest_thread_id, again=True)
        copied = False
        for entry in reversed(entries):
            found = await self._by_entry(op.source_thread_id, entry)
            if found is not None:
                checkpoint = self._restamped(found, op.dest_thread_id, key)
                await self.handle(Save(op.dest_thread_id, None, checkpoint.id, None, checkpoint))
                copied = True
        return copied

    async def _look_below(self, thread_id: str) -> Entry | None:
        return await self.handle(Head(thread_id))

    def __repr__(self) -> str:
        def unless(value: object, usual: object) -> object:
            return None if value == usual else value

        return construction(
            self,
            self.inner,
            journal=str(self.journal),
            ack=unless(self.ack, "turn"),
            linger=unless(self.linger, 30.0),
            max_lag=unless(self.max_lag, 60.0),
            max_pending=unless(show_bytes(self.max_pending), "256MiB"),
            drain_timeout=unless(self.drain_timeout, 10.0),
            on_outage=unless(self.on_outage, "fail"),
            exclusive=unless(self.exclusive, False),
        )
