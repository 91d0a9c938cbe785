"""The background half of write-behind: what was acknowledged by the journal is sent to the far store.

Per thread in order, one thread by one event loop at a time, several threads side by side. A row is marked before it
is sent and removed after: a crash in between sends it again, which changes nothing, because its id and its stamp are
fixed. While the far store fails, there is one try after another with growing pauses, whatever is pending.

One task per event loop, which ends when nothing is left to send; what a closed loop left, the next one takes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context

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

_AT_ONCE = 8  # threads whose rows are sent side by side
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_TRIES = 5  # of a row that the far store refuses for good while it answers others
_ELSEWHERE = 0.05  # seconds between looks at a thread that another event loop is sending
_NEVER = (InvalidArgument, CheckpointTooLarge, CapabilityMissing)


class _Here:
    """What belongs to one event loop."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.until = 0.0  # sleeping until then, in monotonic seconds
        self.news = asyncio.Event()


class Flusher:
    """Sends the rows of journals to one far store."""

    def __init__(self, far: Far, name: Callable[[], str], clock: Clock) -> None:
        self.lanes = Lanes()
        """One lane per thread on the way to the far store; whoever writes there directly takes it too."""
        self.last_error: str | None = None
        self.failing_since: float | None = None
        self._far, self._name, self._clock = far, name, clock
        self._here: PerLoop[_Here] = PerLoop(_Here)
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._refused: dict[PendingRow, int] = {}

    # -- in the background ---------------------------------------------------------------------------

    def wake(self, journal: Journal, due: float = 0.0) -> None:
        """Something is due at ``due`` (monotonic seconds): see to it that this event loop sends it then."""
        here = self._here.get()
        if here.task is None or here.task.done():
            here.task = asyncio.get_running_loop().create_task(self._run(journal, here), context=Context())
        elif due < here.until:
            here.news.set()

    async def _run(self, journal: Journal, here: _Here) -> None:
        index = journal.index
        while True:
            here.news.clear()
            waiting: list[tuple[float, str]] = []
            for key in index.threads():
                due = index.next_due(key)
                if due is not None and self.can_send(journal, key):
                    waiting.append((max(due, self._not_before), key))
            if not waiting:
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
        tasks = {
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(here.news.wait()),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _several(self, journal: Journal, keys: list[str], until: float) -> None:
        """Send what is due of several threads; a failure ends it, until the pause is over."""
        for start in range(0, len(keys), _AT_ONCE):
            batch = keys[start : start + _AT_ONCE]
            sends = [self.send(journal, key, until) for key in batch]
            failures = [each for each in await asyncio.gather(*sends, return_exceptions=True) if each is not None]
            for failure in failures:
                if not isinstance(failure, LocusTieredError):
                    logger.error("%s: sending failed in an unknown way", self._name(), exc_info=failure)
                    self._failed(failure)
            if failures:
                return

    async def stop(self) -> None:
        """End this event loop's task; what it was sending goes on to its end."""
        task = self._here.get().task
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

    async def _claimed(self, journal: Journal, key: str, until: float | None) -> None:
        loop = asyncio.get_running_loop()
        while not journal.index.claim(key, loop):
            await self._clock.sleep(_ELSEWHERE)
        try:
            await self._send_rows(journal, key, until)
        except (LocusTieredError, OSError) as error:
            self._failed(error)
            raise
        finally:
            journal.index.let_go(key)

    async def _send_rows(self, journal: Journal, key: str, until: float | None) -> None:
        rows = journal.index.unsent(key)
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
        older = False
        for row in rows:
            if not journal.index.start(row):
                continue
            try:
                older = (await self._send_row(journal, key, row)) or older
            finally:
                row.in_flight = False
        if older and not self._far.prunes:
            again = asyncio.get_running_loop().create_task(self._far.mend(rows[0].thread), context=context.copy())
            await again
        if rows:
            self._worked()

    async def vet(self, journal: Journal, key: str) -> None:
        """Find out what happened since to the rows that a former process left in a thread, and drop what must go."""

        async def vetted() -> None:
            rows = journal.index.unsent(key)
            if any(row.adopted for row in rows):
                context = self._far.context_of(rows[0]) or copy_context()
                work = self._vetted(journal, key, rows)
                await asyncio.get_running_loop().create_task(work, context=context.copy())

        await self.lanes.change(key, vetted)

    async def _vetted(self, journal: Journal, key: str, rows: list[PendingRow]) -> list[PendingRow]:
        """Those of ``rows`` that may still be sent; the others are dropped, or buried."""
        objections = await self._far.objections(key, rows)
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

    async def _send_row(self, journal: Journal, key: str, row: PendingRow) -> bool:
        """Send one row; answers whether it was older than what the far store holds already."""
        try:
            checkpoint = None
            if row.kind == "save":
                checkpoint = await journal.checkpoint(row)
                if checkpoint is None:
                    return False
            try:
                await journal.mark_attempted([row])
            except JournalError:
                row.attempted = True  # a poisoned journal marks nothing; what it holds must get out all the same
            older = row.kind == "save" and row.stamp < self._far.newest(key)
            await self._far.send(key, row, checkpoint)
        except (RowDamaged, *_NEVER) as error:
            await self._bury(journal, row, type(error).__name__)
            return False
        except BackendError as error:
            if error.temporary is not False or not await self._is_hopeless(row):
                raise
            await self._bury(journal, row, type(error.__cause__ or error).__name__)
            return False
        self._refused.pop(row, None)
        await self._done(journal, row)
        emit("journal.sent", self._name(), row.thread, operation=row.kind)
        return older

    async def _is_hopeless(self, row: PendingRow) -> bool:
        """Whether it is this row that the far store refuses, not everything."""
        self._refused[row] = tries = self._refused.get(row, 0) + 1
        if tries < _TRIES:
            return False
        await self._far.inner.handle(Head(row.thread))  # raises while nothing works
        return True

    async def _bury(self, journal: Journal, row: PendingRow, why: str) -> None:
        self._refused.pop(row, None)
        await journal.bury(row, why)
        emit("journal.dead_letter", self._name(), row.thread, operation=row.kind, error=why)
        logger.error(
            "%s: a %s of thread %s can never be applied (%s). It is kept in the journal and can be read; see "
            "pending().dead_letters and retry_dead_letters()",
            self._name(),
            row.kind,
            shorten(row.thread),
            why,
        )

    async def _done(self, journal: Journal, row: PendingRow) -> None:
        try:
            await journal.drop([row])
        except JournalError:
            # It is sent, though the journal cannot note that: after a restart it will be sent again.
            journal.index.remove(key_of(row), row)

    # -- how it goes ---------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        now = self._clock.monotonic()
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

    def _worked(self) -> None:
        self.failing_since = self.last_error = None
        self._pause, self._not_before = _FIRST_PAUSE, 0.0
