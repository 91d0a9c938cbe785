"""The background half of write-behind: what was acknowledged by the journal is sent to the far store.

Per thread in order, one thread by one event loop at a time, several threads side by side. A row is marked before it
is sent and removed after: a crash in between sends it again, which changes nothing, because its id and its stamp are
fixed. While the far store fails, there is one try after another with growing pauses, whatever is pending.

One task per event loop, which ends when nothing is left to send; what a closed loop left, the next one takes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import ref

from locus_tiered.core import deadline
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import (
    BackendError,
    CapabilityMissing,
    CheckpointTooLarge,
    InvalidArgument,
    JournalError,
    LocusTieredError,
    shorten,
)
from locus_tiered.core.lanes import Lanes, PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Head
from locus_tiered.core.signals import emit
from locus_tiered.layers.far import Far
from locus_tiered.stores.journal import Journal, key_of
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged

__all__ = ["Flusher"]

logger = logger_for(__name__)

T = TypeVar("T")

_AT_ONCE = 8  # threads whose rows are sent side by side
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_TRIES = 5  # of a row that the far store refuses for good while it answers others
_MANY_TRIES = 20  # where nobody knows whether it is for good
_ELSEWHERE = 0.05  # seconds between looks at a thread that another event loop is sending
_NEVER = (InvalidArgument, CheckpointTooLarge, CapabilityMissing)


class _Here:
    """What belongs to one event loop. Holds nothing of it once its task has ended."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.until = 0.0  # sleeping until then, in monotonic seconds
        self.news: asyncio.Future[None] | None = None
        self.ended = False
        self._loop = ref(asyncio.get_running_loop())

    def is_closed(self) -> bool:
        loop = self._loop()
        return loop is None or loop.is_closed()

    def forget(self, task: asyncio.Task[None]) -> None:
        if self.task is task:
            self.task = None


@dataclass(slots=True)
class _Afterwards:
    """What is left to do for a thread after rows of it were sent."""

    thread: str
    context: Context
    saved: list[Entry] = field(default_factory=list)
    older: list[PendingRow] = field(default_factory=list)
    """Rows that were sent and must stay in the journal until the far store's newest was mended."""


class Flusher:
    """Sends the rows of journals to one far store. ``delivered`` is awaited after rows of a thread were sent."""

    advice = "see pending().dead_letters and retry_dead_letters()"
    """What a user is told about rows that can never be applied."""

    def __init__(
        self,
        far: Far,
        name: Callable[[], str],
        clock: Clock,
        delivered: Callable[[str], Coroutine[Any, Any, object]] | None = None,
    ) -> None:
        self.lanes = Lanes()
        """One lane per thread on the way to the far store; whoever writes there directly takes it too."""
        self.last_error: str | None = None
        self.failing_since: float | None = None
        self.failures = 0
        """How often the far store has failed."""
        self._far, self._name, self._clock = far, name, clock
        self._delivered = delivered
        self._here: PerLoop[_Here] = PerLoop(_Here)
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._refused: dict[PendingRow, int] = {}
        self._resting: dict[str, float] = {}  # threads one row of which was refused: not before then
        self.unfinished: dict[str, _Afterwards] = {}
        """Threads whose rows were sent, but not all that comes after."""

    # -- in the background ---------------------------------------------------------------------------

    def wake(self, journal: Journal, due: float = 0.0) -> None:
        """Something is due at ``due`` (monotonic seconds): see to it that this event loop sends it then."""
        here = self._here.get()
        if here.task is None or here.task.done():
            here.task = asyncio.get_running_loop().create_task(self._run(journal, here), context=Context())
            here.task.add_done_callback(here.forget)
        elif due < here.until and here.news is not None and not here.news.done():
            here.news.set_result(None)

    async def _run(self, journal: Journal, here: _Here) -> None:
        index = journal.index
        while True:
            waiting = [(self._not_before, key) for key in list(self.unfinished)]
            for key in index.threads():
                # What is being cancelled is not waited for, nor is what a comparison of replicas will do.
                rows = [row for row in index.unsent(key) if row.kind != "scrub"]
                if rows and self._far.context_of(rows[0]) is not None:
                    due = min(row.due for row in rows)
                    waiting.append((max(due, self._not_before, self._resting.get(key, 0.0)), key))
            if not waiting:
                self._refused.clear()
                self._resting.clear()
                return
            now = self._clock.monotonic()
            due_now = [key for due, key in sorted(waiting) if due <= now]
            if due_now:
                await self._several(journal, due_now, now)
                continue
            here.until = min(waiting)[0]
            await self._wait(here, here.until - now)
            here.until = 0.0

    async def _wait(self, here: _Here, seconds: float) -> None:
        news = here.news = asyncio.get_running_loop().create_future()
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({sleep, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            here.news = None

    async def _several(self, journal: Journal, keys: list[str], until: float) -> None:
        """Send what is due of several threads; a failure ends it, until the pause is over."""
        for start in range(0, len(keys), _AT_ONCE):
            batch = keys[start : start + _AT_ONCE]
            sends = [self.send(journal, key, until) for key in batch]
            failures = [each for each in await asyncio.gather(*sends, return_exceptions=True) if each is not None]
            for failure in failures:
                if not isinstance(failure, LocusTieredError):
                    logger.error("%s: sending failed in an unknown way", self._name(), exc_info=failure)
                    self.failed(failure)
            if failures:
                return

    async def stop(self) -> None:
        """End this event loop's task; the row that it was sending goes on to its end, in its lane."""
        here = self._here.get()
        here.ended = True
        task = here.task
        self._here.drop()
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    def can_send(self, journal: Journal, key: str) -> bool:
        """Whether a thread's rows can be sent by this process: their tenant is known."""
        rows = journal.index.unsent(key)
        return not rows or self._far.context_of(rows[0]) is not None

    # -- sending a thread ----------------------------------------------------------------------------

    async def send(self, journal: Journal, key: str, until: float | None = None) -> None:
        """Send a thread's rows up to the last one that was due at ``until`` (``None``: all that there are now).

        Raises what the far store raises. A cancelled caller leaves; the sending goes on.
        """
        await self.lanes.change(key, lambda: self._claimed(journal, key, until))

    async def deliver(self, journal: Journal, key: str) -> None:
        """As :meth:`send`, for who is in the thread's lane already."""
        await self._claimed(journal, key, None)

    @property
    def is_resting(self) -> bool:
        """Whether the far store failed and is being left alone for a while."""
        return self.failing_since is not None and self._clock.monotonic() < self._not_before

    async def alone(self, journal: Journal, key: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``call`` while nobody sends rows of the thread, in whatever event loop, and no row of it is in flight.

        A cancelled caller leaves; the call goes on.
        """

        async def claimed() -> T:
            await self._claim(journal, key, self._here.get())
            try:
                return await call()
            finally:
                journal.index.let_go(key)

        return await self.lanes.change(key, claimed)

    async def _claim(self, journal: Journal, key: str, here: _Here) -> None:
        while not journal.index.claim(key, here):
            await self._clock.sleep(_ELSEWHERE)

    async def _claimed(self, journal: Journal, key: str, until: float | None) -> None:
        here = self._here.get()
        await self._claim(journal, key, here)
        try:
            await self._send_rows(journal, key, until, here)
        except (LocusTieredError, OSError) as error:
            self.failed(error)
            raise
        finally:
            journal.index.let_go(key)

    async def _send_rows(self, journal: Journal, key: str, until: float | None, here: _Here) -> None:
        if key in self.unfinished:
            await self._finish(journal, key)
        rows = [row for row in journal.index.unsent(key) if row.kind != "scrub"]
        if until is not None:
            last = max((place for place, row in enumerate(rows) if row.due <= until), default=-1)
            rows = rows[: last + 1]
        if not rows:
            return
        context = self._far.context_of(rows[0])
        if context is None:
            return
        task = asyncio.get_running_loop().create_task(self._vetted(journal, key, rows), context=context.copy())
        rows = await task
        if not rows:
            return
        after = self.unfinished[key] = _Afterwards(rows[0].thread, context)
        for row in rows:
            if here.ended:
                break
            if not journal.index.start(row):
                continue
            try:
                await self._send_row(journal, key, row, after)
            finally:
                row.in_flight = False
        await self._finish(journal, key)
        self.worked()

    async def _finish(self, journal: Journal, key: str) -> None:
        """What comes after rows were sent; when it fails, it stays to be done."""
        after = self.unfinished[key]

        async def finish() -> None:
            deadline.forget()
            if after.older:
                after.saved += await self._far.mend(after.thread)
                # Only now: a crash before this is seen by what is still in the journal, and mended by the next one.
                while after.older:
                    await self._sent(journal, after.older[0])
                    del after.older[0]
            await self._far.recall(key, after.thread, after.saved)
            if self._delivered is not None:
                await self._delivered(after.thread)

        await asyncio.get_running_loop().create_task(finish(), context=after.context.copy())
        self.unfinished.pop(key, None)

    async def vet(self, journal: Journal, key: str) -> None:
        """Find out what happened since to the rows that a former process left in a thread, and drop what must go."""

        async def vetted() -> None:
            rows = journal.index.unsent(key)
            if any(row.adopted for row in rows):
                context = self._far.context_of(rows[0]) or copy_context()
                work = self._vetted(journal, key, rows)
                await asyncio.get_running_loop().create_task(work, context=context.copy())

        await self.alone(journal, key, vetted)

    async def _vetted(self, journal: Journal, key: str, rows: list[PendingRow]) -> list[PendingRow]:
        """Those of ``rows`` that may still be sent; the others are dropped, or buried."""
        deadline.forget()
        objections = await self._far.objections(key, rows)
        if not self._far.prunes and any(
            row.kind == "save" and row.attempted and why == "overtaken" for row, why in objections.items()
        ):
            await self._far.mend(rows[0].thread)  # it may have arrived there after what is newer
        for row, why in objections.items():
            if why == "too old":
                await self._bury(journal, row, "TooOld")
                continue
            await self._done(journal, row)
            emit("journal.dropped", self._name(), row.thread, why=why)
            logger.info(
                "%s: a %s of thread %s was not sent: %s meanwhile", self._name(), row.kind, shorten(row.thread), why
            )
        kept = [row for row in rows if row not in objections]
        for row in kept:
            row.adopted = False
        return kept

    async def _send_row(self, journal: Journal, key: str, row: PendingRow, after: _Afterwards) -> None:
        """Send one row, and note what is to be done afterwards."""
        try:
            checkpoint = None
            if row.kind == "save":
                checkpoint = await journal.checkpoint(row)
                if checkpoint is None:  # dropped meanwhile
                    journal.index.remove(key, row)
                    return
            try:
                await journal.mark_attempted([row])
            except JournalError:
                row.attempted = True  # a poisoned journal marks nothing; what it holds must get out all the same
            older = row.kind == "save" and row.stamp < self._far.newest(key)
            if row.kind == "save":
                after.saved.append(row.entry)
            await self._far.send(key, row, checkpoint)
        except (RowDamaged, *_NEVER) as error:
            await self._bury(journal, row, type(error).__name__)
            return
        except BackendError as error:
            if error.temporary is True or not await self._is_hopeless(key, row, error.temporary is None):
                raise
            await self._bury(journal, row, type(error.__cause__ or error).__name__)
            return
        self._refused.pop(row, None)
        self._resting.pop(key, None)
        if older and not self._far.prunes:
            after.older.append(row)
            return
        # A save that was sent and is deleted again must not stay behind its delete.
        covered = [each for each in after.older if row.kind == "delete" and row.id in (None, each.id)]
        after.older = [each for each in after.older if each not in covered]
        await self._sent(journal, row, *covered)

    async def _sent(self, journal: Journal, row: PendingRow, *others: PendingRow) -> None:
        await self._done(journal, row, *others)
        emit("journal.sent", self._name(), row.thread, operation=row.kind)

    async def _is_hopeless(self, key: str, row: PendingRow, unknown: bool) -> bool:
        """Whether it is this row that the far store refuses, not everything. Its thread rests between the tries."""
        self._refused[row] = tries = self._refused.get(row, 0) + 1
        self._resting[key] = self._clock.monotonic() + min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE)
        if tries < (_MANY_TRIES if unknown else _TRIES):
            return False
        await self._far.inner.handle(Head(row.thread))  # raises while nothing works
        return True

    async def _bury(self, journal: Journal, row: PendingRow, why: str) -> None:
        self._refused.pop(row, None)
        self._resting.pop(key_of(row), None)
        try:
            await journal.bury(row, why)
        except JournalError:
            journal.index.bury(row, why)  # after a restart it is tried again
        emit("journal.dead_letter", self._name(), row.thread, operation=row.kind, error=why)
        logger.error(
            "%s: a %s of thread %s can never be applied (%s). It is kept in the journal: %s",
            *(self._name(), row.kind, shorten(row.thread), why, self.advice),
        )

    async def _done(self, journal: Journal, *rows: PendingRow) -> None:
        try:
            await journal.drop(rows)
        except JournalError:
            # It is sent, though the journal cannot note that yet: after a crash it will be sent again.
            journal.put_off(rows)

    # -- how it goes ---------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Note that the far store failed: it is left alone for a while."""
        now = self._clock.monotonic()
        self.failures += 1
        if self.failing_since is None:
            self.failing_since = now
        cause = error.__cause__ if type(error) is BackendError and error.__cause__ is not None else error
        self.last_error = type(cause).__name__
        if now < self._not_before:
            return  # several threads failed at once: one failure
        jitter = 0.5 + self._clock.random_bits(16) / 2**17
        self._not_before = now + self._pause * jitter
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        emit("journal.send_failed", self._name(), None, error=self.last_error)

    def worked(self) -> None:
        """Note that the far store works."""
        self.failing_since = self.last_error = None
        self._pause, self._not_before = _FIRST_PAUSE, 0.0
