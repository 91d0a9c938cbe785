"""The life of a write-behind layer: its journal in every event loop, flushing, closing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import InvalidArgument, shorten
from locus_tiered.core.lanes import Lanes, PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Operation
from locus_tiered.core.ordering import OrderingLayer
from locus_tiered.core.signals import emit
from locus_tiered.layers.far import Far
from locus_tiered.layers.flusher import Flusher
from locus_tiered.layers.names import home_of
from locus_tiered.layers.write_behind_options import Ack
from locus_tiered.stores.journal import Journal, Pending, key_of

__all__ = ["WriteBehindLife"]

logger = logger_for(__name__)

T = TypeVar("T")

_LOOK_AGAIN = 0.05
_SETTLE_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0


class _Session:
    """The journal as one event loop has it, and how many calls use it there."""

    journal: Journal | None = None
    inside = 0


class WriteBehindLife(OrderingLayer, base=True):
    """See :class:`~locus_tiered.layers.write_behind.WriteBehindCheckpointer`, of which this is a part."""

    ack: Ack
    drain_timeout: float

    def _begin(self, far: Far, journal: Path, clock: Clock) -> None:
        self._far, self._path = far, journal
        with suppress(OSError):
            self._path = journal.absolute()  # the program may go to another directory
        self._lanes = Lanes()
        self._flusher = Flusher(far, lambda: self.name, clock)
        self._sessions: PerLoop[_Session] = PerLoop(_Session)
        self._last: Journal | None = None
        self._left: dict[tuple[str, str, str | None, str], Context | None] = {}
        self._home = home_of(self.inner)

    async def handle(self, operation: Operation[T]) -> T:
        session = self._sessions.get()
        session.inside += 1  # close() leaves the journal open for whoever uses it still
        try:
            return await super().handle(operation)
        finally:
            session.inside -= 1

    @contextmanager
    def _inside(self) -> Iterator[None]:
        session = self._sessions.get()
        session.inside += 1
        try:
            yield
        finally:
            session.inside -= 1

    # -- the journal ---------------------------------------------------------------------------------

    async def _open(self) -> Journal:
        session = self._sessions.get()
        journal = session.journal
        if journal is None or not journal.is_open:
            journal = await Journal.attach(self._path, self._home, self._clock, self)
            session.journal = self._last = journal
            self._know_again(journal)
            if journal.index.rows:
                emit("journal.adopted", self.name, None, rows=journal.index.rows)
                self._flusher.wake(journal)
        if self._far.has_news() and journal.index.rows:
            self._flusher.wake(journal)  # rows of this tenant may have waited for it
        return journal

    def _know_again(self, journal: Journal) -> None:
        """What this object left in the journal when it closed is its own, not a former process's."""
        left, self._left = self._left, {}
        for row in journal.index.all() if left else ():
            if row.adopted and (known := (key_of(row), row.kind, row.id, row.stamp)) in left:
                row.context, row.adopted = left[known], False

    @property
    def _attached(self) -> Journal | None:
        journal = self._sessions.get().journal
        return journal if journal is not None and journal.is_open else None

    async def recover(self) -> Pending:
        """Open the journal now and take over what former processes left; answers what is pending.

        The first operation does so by itself.
        """
        with self._inside():
            await self._open()
        return self.pending()

    async def flush(self, thread_id: str | None = None) -> None:
        """Wait until everything that is pending now (of one thread, or of all) has reached the far store.

        Raises what the far store raises; what could not be sent stays pending. Rows of tenants whose context this
        process has not seen yet stay too: see ``pending().waiting_for_tenant``. A cancelled caller leaves.
        """
        if thread_id is not None and not (isinstance(thread_id, str) and thread_id):
            raise InvalidArgument(
                f"flush() takes the id of a thread or None, not {shorten(thread_id)}; nothing was sent"
            )
        with self._inside():
            key = None if thread_id is None else self._key(thread_id)
            journal = await self._open()
            if key is not None:
                await self._flusher.send(journal, key)
            else:
                await self._send_all(journal)

    def _key(self, thread_id: str) -> str:
        self._far.tenant(thread_id)  # whoever comes by: his context may be what a former row waits for
        return self._scoped(thread_id)

    async def _send_all(self, journal: Journal) -> bool:
        """Send all that is pending now."""
        keys = list({**dict.fromkeys(journal.index.threads()), **dict.fromkeys(self._flusher.unfinished)})
        failures = [
            each
            for start in range(0, len(keys), 8)
            for each in await asyncio.gather(
                *(self._flusher.send(journal, key) for key in keys[start : start + 8]), return_exceptions=True
            )
            if each is not None
        ]
        for failure in failures:
            raise failure
        return True

    async def retry_dead_letters(self) -> int:
        """Have the far store asked again for what it never took; answers how many operations that is."""
        with self._inside():
            journal = await self._open()
            dead = [row for row in journal.index.all() if row.error is not None]
            await journal.revive(dead)
            self._flusher.wake(journal)
        return len(dead)

    def pending(self) -> Pending:
        """What is still to be sent, as this process knows it; before the first operation nothing is known.

        After ``close()`` it is what was left then.
        """
        journal = self._last
        if journal is None or journal.pid != os.getpid():
            return Pending(opened=False)
        waiting = sum(
            len(journal.index.unsent(key))
            for key in journal.index.threads()
            if not self._flusher.can_send(journal, key)
        )
        return journal.pending(waiting=waiting, last_error=self._flusher.last_error)

    # -- the end -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Send what is pending, for at most ``drain_timeout`` seconds, then close the far store and the journal.

        What could not be sent stays in the journal, is logged, and is sent by the next use of this stack, in this
        process or another. While the far store has been failing for longer than ``drain_timeout`` already, it is
        tried only once. A call that is still under way then keeps the journal open until the next ``close()``.
        """
        left = await self._lanes.settle(_SETTLE_SECONDS)
        if left:
            logger.warning("%s: closed with %d changes still running", self.name, left)
        try:
            await self._drain()
        finally:
            await self._flusher.stop()
        await self._flusher.lanes.settle(_LAST_WORDS_SECONDS)
        try:
            await super().close()
        finally:
            await self._leave()

    async def _drain(self) -> None:
        journal = self._attached
        if journal is None:
            last = self._last
            if not self._left and (last is None or not last.is_open or not last.index.rows):
                return
            journal = await self._open()  # what this object acknowledged in event loops that are gone
        now = self._clock.monotonic()
        failing = self._flusher.failing_since
        deadline = now if failing is not None and now - failing > self.drain_timeout else now + self.drain_timeout
        newest = max((row.seq for row in journal.index.all()), default=0)
        pause = _LOOK_AGAIN
        while self._owes(journal, newest):
            try:
                await self._in_time(self._send_all(journal), max(deadline - self._clock.monotonic(), _LOOK_AGAIN))
            except Exception as error:  # noqa: BLE001 - told below; the rest must be closed all the same
                self._flusher.last_error = self._flusher.last_error or type(error).__name__
            if not self._owes(journal, newest) or self._clock.monotonic() + pause > deadline:
                break
            await self._clock.sleep(pause)
            pause = min(2 * pause, 1.0)
        if journal.index.rows:
            logger.warning(
                "%s: closed with %d operations still to be sent (%s); they are kept in the journal %s",
                self.name,
                journal.index.rows,
                self._flusher.last_error or "the far store was too slow, or their tenant is unknown",
                self._path,
            )

    def _owes(self, journal: Journal, newest: int) -> bool:
        """Whether any row up to ``newest`` is left that this process could send."""
        return any(
            min((row.seq for row in journal.index.unsent(key)), default=newest + 1) <= newest
            and self._flusher.can_send(journal, key)
            for key in journal.index.threads()
        )

    async def _leave(self) -> None:
        """Let go of the journal in this event loop, unless somebody is still using it here."""
        session = self._sessions.get()
        journal = self._attached
        if journal is None and self._last is not None and self._last.is_open:
            journal = self._last  # used by event loops that are gone
        session.journal = None
        if journal is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_WORDS_SECONDS
        while session.inside or self._lanes.running or self._flusher.lanes.running:
            if loop.time() >= deadline or session.journal is not None:
                return
            await asyncio.sleep(_LOOK_AGAIN)
        if session.journal is None:
            own = [row for row in journal.index.all() if not row.adopted and row.error is None]
            self._left = {(key_of(row), row.kind, row.id, row.stamp): row.context for row in own}
            await journal.detach(self)

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float) -> T | None:
        """The result of ``work``, or ``None`` when it takes longer than that; what it began then goes on."""
        task = asyncio.ensure_future(work)
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            if not task.done():
                task.cancel()  # what is being sent goes on in its lane
        if not task.cancelled() and task.done():
            return task.result()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen; it came too late
        return None
