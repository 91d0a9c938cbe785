"""Anti-entropy: replicas are compared thread by thread, and what differs is mended.

Identity and order are compared first (ids and stamps, one listing per replica); states travel only where something
is missing. The rules, per thread:

* what a tombstone has buried is deleted wherever it still is, also where all of them have it: who deleted it died;
* an iteration save that is older than the thread's newest checkpoint is deleted, not copied: the crash was survived;
* everything else that any believed replica has (where those are too few: also any that was away) is copied to those
  that lack it, oldest first, from a replica whose copy is intact (its digest is verified when it is read);
* what only a fenced replica has is moved to its quarantine thread;
* afterwards each changed (``deep``: each) replica's own newest is looked at, for readers without this library; so is
  that of a replica that may have carried out a write late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from locus_tiered.core.errors import BackendError, LocusTieredError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import ListThreads
from locus_tiered.layers.scrub_report import Progress, ScrubReport
from locus_tiered.layers.scrub_steps import side_by_side
from locus_tiered.layers.scrub_thread import compare_thread
from locus_tiered.layers.tombstones import TOMBSTONES, Names

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["Progress", "ScrubReport", "Scrubber"]

logger = logger_for(__name__)

_OTHER_TENANTS = "only this tenant's threads were compared: run scrub() for every other tenant before agents go on"

_AT_ONCE = 4
"""Threads that are compared side by side; one after the other when the rate is limited."""


@dataclass(slots=True)
class _Way:
    """How a scrub goes, and how far it has come."""

    deep: bool
    progress: Callable[[Progress], None] | None
    rate: float | None
    reached: str | None = None
    names: Names = frozenset()
    """Of all tombstones."""


class Scrubber:
    """Compares and mends the replicas of one ``ReplicatedCheckpointer``."""

    def __init__(self, owner: ReplicatedCheckpointer) -> None:
        self._owner = owner
        self._after: dict[str, str] = {}  # where a scrub that was stopped goes on, for each tenant
        self._comparing: PerLoop[dict[str, asyncio.Future[None]]] = PerLoop(dict)

    async def run(
        self,
        *,
        deep: bool,
        progress: Callable[[Progress], None] | None,
        threads: Sequence[str] | None,
        rate: float | None,
    ) -> ScrubReport:
        """See :meth:`ReplicatedCheckpointer.scrub`."""
        report = ScrubReport()
        if threads is not None:
            await self._several(list(dict.fromkeys(threads)), report, _Way(deep, progress, rate))
            return report
        whose = self._owner._scoped(TOMBSTONES)
        start = self._after.pop(whose, None)  # who scrubs beside it begins at the beginning
        if any(replica.fenced or replica.has_holes for replica in self._owner._replicas):
            start = None  # believed again only when all was compared in one go
        way = _Way(deep, progress, rate, reached=start)
        try:
            await self._everything(start, report, way)
        except BaseException:
            if way.reached is not None:
                self._after[whose] = way.reached
            raise
        return report

    async def _everything(self, start: str | None, report: ScrubReport, way: _Way) -> None:
        """Compare all threads, beginning after ``start``."""
        reserved, missed = self._marked()
        everything = sorted(await self._threads(report) | missed)
        for thread_id in sorted({TOMBSTONES, *reserved}):
            await self._thread(thread_id, report, deep=True)  # who cannot read them compares nothing
        with suppress(LocusTieredError):  # too few answer: what the replicas differ in is mended all the same
            way.names = await self._owner.tombstones.names()
        await self._several([thread for thread in everything if start is None or thread > start], report, way)
        # What is damaged wherever it is cannot be mended by waiting: nobody stays fenced for it.
        if start is None and not report.unreachable:
            for replica in self._owner._replicas:
                replica.has_holes = False
                if replica.fenced:
                    await self._owner._heartbeats.give(replica)
                    if self._owner._partition is not None:
                        logger.warning("%s is believed again, but %s", replica.name, _OTHER_TENANTS)
            await self._owner.tombstones.tidy()

    async def _several(self, todo: list[str], report: ScrubReport, way: _Way) -> None:
        """Compare these threads."""

        async def compare(place: int) -> None:
            if way.rate is not None and place > 0:
                await self._owner._clock.sleep(1 / way.rate)
            await self._thread(todo[place], report, deep=way.deep, names=way.names)

        def done(place: int) -> None:
            way.reached = todo[place]
            if way.progress is not None:
                way.progress(Progress(place + 1, len(todo), todo[place], report))

        await side_by_side(len(todo), compare, at_once=_AT_ONCE if way.rate is None else 1, done=done)

    async def _threads(self, report: ScrubReport) -> set[str]:
        """The ids of all threads of all replicas that can list them."""
        found: set[str] = set()
        able = False
        self._demand_a_tenant()
        for replica in self._owner._replicas:
            if not replica.layer.explain()["list_threads"]:
                continue
            able = True
            try:
                found.update(await replica.ask(ListThreads(MOST)))
            except (LocusTieredError, OSError):
                report.unreachable.add(replica.name)
        if not able:
            raise BackendError(
                f"{self._owner.name}: no replica can list its threads; nothing was compared. Pass threads=[...]",
                member=self._owner.name,
                operation="scrub",
                temporary=False,
            )
        return found

    def _demand_a_tenant(self) -> None:
        """Where the thread's id tells whose it is, a backend lists the threads of nobody but the usual tenant."""
        owner = self._owner
        by_id = any(replica.layer.traits.scope is not None for replica in owner._replicas)
        if by_id and owner._partition is not None and owner._partition(TOMBSTONES) is None:
            raise BackendError(
                f"{owner.name}: the replicas keep tenants apart by the ids of threads, and cannot list them all; "
                "nothing was compared. Call it for each tenant, with the tenant's scope entered in every replica, or "
                "pass threads=[...]",
                member=owner.name,
                operation="scrub",
                temporary=False,
            )

    def _marked(self) -> tuple[set[str], set[str]]:
        """Threads of which some replica missed too much: the stack's own, and those of users.

        They are compared although no replica may list them: the stack's own because the rest stands on them, the
        others because they may have been deleted since.
        """
        marked = {thread for replica in self._owner._replicas for thread in replica.marked.values()}
        reserved = {thread for thread in marked if thread.startswith(RESERVED)}
        return reserved, marked - reserved

    async def one(self, thread_id: str) -> ScrubReport:
        """Compare one thread."""
        report = ScrubReport()
        await self._thread(thread_id, report, deep=thread_id.startswith(RESERVED))
        return report

    async def _thread(self, thread_id: str, report: ScrubReport, *, deep: bool, names: Names = frozenset()) -> None:
        """Compare a thread when nobody else in this event loop does: two at once would copy everything twice."""
        key, comparing = self._owner._key(thread_id), self._comparing.get()
        while key in comparing:
            await asyncio.wait({comparing[key]})
        comparing[key] = ended = asyncio.get_running_loop().create_future()
        try:
            await compare_thread(self._owner, thread_id, report, deep=deep, names=names)
        finally:
            del comparing[key]
            ended.set_result(None)
