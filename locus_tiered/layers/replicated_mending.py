"""The mending half of replication: what runs in the background, and ``scrub()``.

A thread whose replicas were seen to differ, or of which a replica missed more than was kept, is compared a moment
later; one that was deleted from is looked at as readers without this library see it. A write that was given up on may
be carried out late, after newer ones (by a server that was stopped, from its buffers): some seconds after the replica
is back and has what it missed, the thread is compared, and looked at, once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Delete, Save
from locus_tiered.layers.latest_looks import LatestLooks
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_options import check_scrub
from locus_tiered.layers.replicated_reads import ReplicatedReads
from locus_tiered.layers.scrub import Progress, Scrubber, ScrubReport
from locus_tiered.layers.versions import GivenUp

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["ReplicatedMending"]

logger = logger_for(__name__)

_COMPARED_AFTER = 1.0
"""Seconds before a thread is compared whose replicas were seen to differ."""
_COMPARED_AGAIN = 30.0
"""Seconds before a thread is compared again that could not be compared everywhere."""
_LATE_AFTER = 5.0
"""Seconds after a replica has what it missed before that is looked for which it may have carried out late."""
_FIRST_ASKED, _LONGEST_ASKED = 1.0, 30.0
"""Seconds between two questions whether it has."""
_LONGEST_WAY = 1.0
"""Seconds that a comparison makes way for changes at most, after each of its steps."""


class _LateLooks:
    """An event loop's looks for writes that were carried out late."""

    def __init__(self) -> None:
        self.running = False
        self.since: dict[tuple[Replica, str], tuple[GivenUp, float]] = {}


class ReplicatedMending(ReplicatedReads, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`."""

    def _begin(self, replicas: Sequence[Replica], votes: int, read: object) -> None:
        super()._begin(replicas, votes, read)
        self._scrubber = Scrubber(cast("ReplicatedCheckpointer", self))
        self._latest_looks = LatestLooks(cast("ReplicatedCheckpointer", self))
        self._writes: dict[asyncio.Task[Any], tuple[Replica, str, Save | Delete, str]] = {}
        """Writes that have not ended, whatever became of them."""
        self._late_looks: PerLoop[_LateLooks] = PerLoop(_LateLooks)
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

    def _under_way(self) -> list[asyncio.Task[Any]]:
        """This event loop's writes that have not ended, acknowledged or not."""
        return [task for task in self._background.get() if task in self._writes]

    async def _give_way(self, seconds: float) -> None:
        """While writes of this process are under way, leave them as much time as a comparison has just taken."""
        if seconds > 0 and self._under_way():
            await self._clock.sleep(min(seconds, _LONGEST_WAY))

    # -- mending -------------------------------------------------------------------------------------

    def _look_at_latest(self, thread_id: str, key: str, *, compare: bool = False) -> None:
        """Soon after the last delete, look at what readers without this library see.

        ``compare``: and at what somebody has saved at the same moment with a lesser stamp. The delete's tombstone has
        buried it, and who is told of it instead of nothing does not look for tombstones.
        """
        if not thread_id.startswith(RESERVED):
            self._latest_looks.soon(thread_id, key, compare=compare)

    def _suspect(self, thread_id: str, key: str) -> None:
        suspected = self._suspected.get()
        if key in suspected or not self._is_open:
            return
        suspected.add(key)

        async def compare() -> None:
            try:
                await self._clock.sleep(_COMPARED_AFTER)
                report = await self._scrubber.one(thread_id)
                if report.unreachable:
                    await self._pause(_COMPARED_AGAIN)
            finally:
                suspected.discard(key)

        self._in_background(compare())

    def _look_late(self) -> None:
        """A write was given up on: see to it that what comes of it is looked for."""
        looks = self._late_looks.get()
        if not looks.running:
            looks.running = True
            self._in_background(self._late(looks))

    async def _late(self, looks: _LateLooks) -> None:
        pause = _FIRST_ASKED
        try:
            while any(replica.far.given_up for replica in self._replicas):
                await self._pause(pause)
                for replica, key, given_up in list(self._due_late(looks)):
                    await self._look_once_more(replica, key, given_up)
                pause = _FIRST_ASKED if looks.since else min(2 * pause, _LONGEST_ASKED)
        finally:
            looks.running = False

    def _due_late(self, looks: _LateLooks) -> Iterator[tuple[Replica, str, GivenUp]]:
        """Threads that a replica has been in step about for long enough since a write was given up on."""
        now = self._clock.monotonic()
        for replica in self._replicas:
            for key, given_up in list(replica.far.given_up.items()):
                place = (replica, key)
                if replica.is_resting or replica.is_behind(key):
                    looks.since.pop(place, None)
                elif place not in looks.since or looks.since[place][0] is not given_up:
                    looks.since[place] = (given_up, now)
                elif now - looks.since[place][1] >= _LATE_AFTER:
                    del looks.since[place]
                    yield replica, key, given_up

    async def _look_once_more(self, replica: Replica, key: str, given_up: GivenUp) -> None:
        """Compare a thread, and look at what readers without this library see there; once, if nothing fails."""
        work = self._scrubber.one(given_up.thread)
        try:
            report = await asyncio.get_running_loop().create_task(work, context=given_up.context.copy())
        except (LocusTieredError, OSError):
            return
        if replica.name not in report.unreachable and replica.far.given_up.get(key) is given_up:
            del replica.far.given_up[key]

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
                replica answers with by itself. (Where something was mended, or a write given up on, that is looked at
                anyway.)
            progress: Called after every thread, in their order. What it raises ends the scrub.
            threads: Only these; by default all, beginning where a scrub of this process that was stopped has ended
                (at the beginning while a replica is fenced: that takes all of them in one go).
            rate: At most so many threads a second, above zero; one after the other then, instead of four at once.

        Threads in step cost one listing per replica and no state. What is missing is copied, oldest first, from a
        replica whose copy is intact; what was deleted is deleted everywhere; what only a replica has that was away
        for longer than tombstones are kept is put in quarantine. Cancelling it loses nothing. Saves and deletes go
        first: it lets them in between two copies, and while any are under way it takes only half of the time.
        """
        check_scrub(threads, rate, progress)
        await self._ready()
        return await self._scrubber.run(deep=deep, progress=progress, threads=threads, rate=rate)


def _noticed(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a replica's background work failed: %s", type(error).__name__)
