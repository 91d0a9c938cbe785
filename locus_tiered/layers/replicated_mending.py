"""The mending half of replication: what runs in the background, and ``scrub()``.

A thread whose replicas were seen to differ, or of which a replica missed more than was kept, is compared a moment
later; one that was deleted from is looked at as readers without this library see it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_reads import ReplicatedReads
from locus_tiered.layers.scrub import Progress, Scrubber, ScrubReport

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["ReplicatedMending"]

logger = logger_for(__name__)

_LATEST_AFTER = 1.0
"""Seconds after the last delete of a thread before its replicas' own newest is looked at."""
_LATEST_AGAIN = 5.0
"""Seconds before it is looked at in a replica that could not be asked."""
_COMPARED_AGAIN = 30.0
"""Seconds before a thread is compared again that could not be compared everywhere."""


class ReplicatedMending(ReplicatedReads, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`."""

    def _begin(self, replicas: Sequence[Replica], votes: int, read: object) -> None:
        super()._begin(replicas, votes, read)
        self._scrubber = Scrubber(cast("ReplicatedCheckpointer", self))
        self._suspected: PerLoop[set[str]] = PerLoop(set)
        self._background: PerLoop[set[asyncio.Task[Any]]] = PerLoop(set)
        self._pausing: PerLoop[set[asyncio.Task[Any]]] = PerLoop(set)

    def _in_background(self, work: Any) -> asyncio.Task[Any]:
        tasks = self._background.get()
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_noticed)
        return task

    async def _pause(self, seconds: float) -> None:
        """Sleep, in a background task; who closes does not wait for it."""
        task, pausing = asyncio.current_task(), self._pausing.get()
        assert task is not None
        pausing.add(task)
        try:
            await self._clock.sleep(seconds)
        finally:
            pausing.discard(task)

    # -- mending -------------------------------------------------------------------------------------

    def _look_at_latest(self, thread_id: str, key: str) -> None:
        """Soon after the last delete, look at what readers without this library see."""
        if key in self._to_look_at or thread_id.startswith(RESERVED):
            self._to_look_at[key] = (thread_id, self._clock.monotonic())
            return
        self._to_look_at[key] = (thread_id, self._clock.monotonic())

        async def later() -> None:
            while key in self._to_look_at:
                wait = self._to_look_at[key][1] + _LATEST_AFTER - self._clock.monotonic()
                if wait <= 0:
                    await self._check_latest(key)
                elif wait <= _LATEST_AFTER:
                    await self._clock.sleep(wait)
                else:
                    await self._pause(wait)

        self._in_background(later())

    async def _check_latest(self, key: str) -> None:
        found = self._to_look_at.pop(key, None)
        if found is None:
            return
        for replica in self._replicas:
            if replica.is_resting or replica.is_doubtful(key):
                # Later, then. Nothing is left to do where it missed something: what is sent or copied is looked at.
                self._to_look_at.setdefault(key, (found[0], self._clock.monotonic() + _LATEST_AGAIN))
            elif not replica.is_behind(key):
                try:
                    await replica.flusher.lanes.change(key, partial(replica.check_latest, found[0]))
                except (LocusTieredError, OSError) as error:
                    replica.flusher.failed(error)
                    self._to_look_at.setdefault(key, (found[0], self._clock.monotonic() + _LATEST_AGAIN))

    def _suspect(self, thread_id: str, key: str) -> None:
        suspected = self._suspected.get()
        if key in suspected:
            return
        suspected.add(key)

        async def compare() -> None:
            try:
                await self._clock.sleep(_LATEST_AFTER)
                report = await self._scrubber.one(thread_id)
                if report.unreachable:
                    await self._pause(_COMPARED_AGAIN)
            finally:
                suspected.discard(key)

        self._in_background(compare())

    async def scrub(
        self,
        *,
        deep: bool = False,
        progress: Callable[[Progress], None] | None = None,
        threads: Sequence[str] | None = None,
        rate: float | None = None,
    ) -> ScrubReport:
        """Compare the replicas, thread by thread, and mend what differs.

        Args:
            deep: Also load every checkpoint from every replica and verify its digest, and look at the newest that each
                replica answers with by itself.
            progress: Called after every thread.
            threads: Only these; by default all, beginning where a scrub that was stopped has ended.
            rate: At most so many threads a second.

        Threads in step cost one listing per replica and no state. What is missing is copied, oldest first, from a
        replica whose copy is intact; what was deleted is deleted everywhere; what only a replica has that was away
        for longer than tombstones are kept is put in quarantine. Cancelling it loses nothing.
        """
        await self._ready()
        return await self._scrubber.run(deep=deep, progress=progress, threads=threads, rate=rate)


def _noticed(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a replica's background work failed: %s", type(error).__name__)
