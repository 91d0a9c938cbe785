"""The writing half of replication: to all at once, back at the quorum, the rest in the background or as hints.

A replica that failed is left alone for a while, half a minute at most, and gets hints. When the next one goes away in
the meantime (replicas that are restarted one after the other), the first may have been back for long: where a quorum
cannot be reached without it, or does not come, it is asked, and when it answers it gets what it missed, this write
included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from locus_tiered.core.errors import QuorumError
from locus_tiered.core.operations import Delete, Save
from locus_tiered.layers.quorum import described, thread_of
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_mending import ReplicatedMending
from locus_tiered.layers.said import Said
from locus_tiered.stores.journal import key_of

__all__ = ["ReplicatedWrites"]


class ReplicatedWrites(ReplicatedMending, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`."""

    _hint_is_needed: bool
    """Whether what has not got a write must have a hint for it, before that is acknowledged."""

    async def _to_all(self, key: str, op: Save | Delete, stamp: str) -> list[Said]:
        """Write to all replicas; returns at the quorum, and lets the rest go on.

        Raises :class:`QuorumError` when the quorum cannot be reached any more.
        """
        began = self._clock.monotonic()
        await self._ready()
        tasks: dict[asyncio.Task[Said], Replica] = {}
        for replica in self._replicas:
            task = self._in_background(replica.write(key, op, stamp))
            tasks[task] = replica
            self._writes[task] = (replica, key, op, stamp)
            task.add_done_callback(self._writes.pop)
        said: dict[Replica, Said] = {}
        waiting = set(tasks)
        again: dict[asyncio.Task[Said], Replica] | None = None
        while waiting:
            impatient = again is None and any(each.is_left_alone for each in said.values())
            patience = _patience((tasks[task] for task in waiting), op) if impatient else None
            done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            said |= {replica: task.result() for task, replica in tasks.items() if task in done}
            votes = sum(each.vote for each in said.values())
            kept = sum(each.kept for each in said.values()) if self._hint_is_needed else len(self._replicas)
            if votes >= self._votes and kept >= len(self._replicas):
                for task in waiting:
                    tasks[task].lagging.add(key, op.thread_id, task)
                return list(said.values())
            if self._hint_is_needed and votes >= self._votes and waiting:
                waiting = await self._hint_the_slow(key, op, stamp, {task: tasks[task] for task in waiting}, said)
                if not waiting and all(each.kept for each in said.values()):
                    return list(said.values())
            if again is None and (not done or votes + len(waiting) < self._votes):
                again = {
                    self._in_background(self._after_all(each, key, op, stamp, began)): each.replica
                    for each in said.values()
                    if each.is_left_alone
                }
                tasks |= again
                waiting |= again.keys()
            if votes + len(waiting) < self._votes:
                break
        raise self._too_few(op, said)

    def _too_few(self, op: Save | Delete, said: dict[Replica, Said]) -> QuorumError:
        known = {replica.name: str(said.get(replica, "no answer yet")) for replica in self._replicas}
        votes = sum(each.vote for each in said.values())
        what_to_do = self._what_to_do()
        if votes >= self._votes:
            what_to_do = "A hint is needed for the others, and none could be kept: make room where the journal is"
        return QuorumError(
            f"{self.name}: {op.name} of {thread_of(op)} was taken by {votes} of {len(self._replicas)} "
            f"replicas, {self._votes} are needed ({described(known)}). It was not acknowledged and may or may not take "
            f"effect; what was acknowledged before is safe. {what_to_do}",
            known=known,
            member=self.name,
            operation=op.name,
        )

    async def _after_all(self, missed: Said, key: str, op: Save | Delete, stamp: str, began: float) -> Said:
        """Have a replica that was left alone take a write, and what it missed before, if it answers by now."""
        await self._heartbeats.look_at(missed.replica, since=began)
        return await missed.replica.catch_up(key, op, stamp, missed) if missed.replica.checked else missed

    async def _hint_the_slow(
        self,
        key: str,
        op: Save | Delete,
        stamp: str,
        slow: dict[asyncio.Task[Said], Replica],
        said: dict[Replica, Said],
    ) -> set[asyncio.Task[Said]]:
        """Of two replicas one has voted: the other gets a little time, then a durable hint stands in for it."""
        done, waiting = await asyncio.wait(slow, timeout=_patience(slow.values(), op))
        said |= {replica: task.result() for task, replica in slow.items() if task in done}
        for task in [each for each in slow if each in waiting]:
            replica = slow[task]
            replica.stood_in.add((key, stamp))
            row = await replica.hint(key, op, stamp, attempted=True)
            if row is None:
                replica.stood_in.discard((key, stamp))
                return set(waiting)
            said[replica] = Said(replica, took=False, hinted=True)
            replica.lagging.add(key, op.thread_id, task)
            task.add_done_callback(partial(self._not_needed, replica, row))
        return set()

    def _not_needed(self, replica: Replica, row: Any, ended: asyncio.Task[Said]) -> None:
        """The slow replica took it after all: its hint can go."""
        replica.stood_in.discard((key_of(row), row.stamp))
        journal = replica.hints
        if not ended.cancelled() and ended.exception() is None and ended.result().took and journal is not None:
            self._in_background(journal.drop([row]))


def _patience(replicas: Iterable[Replica], op: Save | Delete) -> float:
    """Seconds that replicas get before something is done without them: twice what they hardly ever take."""
    return max(2 * replica.latency.p95(op.name) for replica in replicas)
