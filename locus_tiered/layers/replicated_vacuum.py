"""``vacuum()`` of replicas: what is old is deleted everywhere, by the stack's own order.

A backend's own vacuum goes by when a copy arrived there. One that was copied into a rebuilt replica is young in it, and
would be copied back to all others; and it knows nothing of tombstones and heartbeats, on which the rest stands. So the
stack looks itself, thread by thread, and no backend's vacuum is called.

* A checkpoint's age is that of its stamp, which is the same in every replica.
* What is too old is listed by so many replicas that no younger save that was acknowledged can have been missed.
* It is deleted up to the newest stamp that is too old, not up to now: what somebody saves meanwhile stays. One
  tombstone for the thread, with that stamp, buries all of it and nothing above it. Tombstones one by one would be
  thousands, and each costs a look at the thread. A tombstone that is old itself goes with the next ``scrub()`` that has
  reached every replica. What a replica that missed that still has comes back, and goes by the next ``vacuum()``.
* Checkpoints without a stamp, from before the stack, have no age here: they stay, and so that no tombstone for the
  thread buries them, those beside them get one each.
* A replica that deletes only whole threads leaves the others no choice: a thread with anything younger in it stays.
* Threads of the stack's own are never touched, nor those of other tenants than the caller's where a backend lists
  only these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.errors import (
    BackendError,
    CorruptCheckpoint,
    LocusTieredError,
    QuorumError,
    cause_of,
    shorten,
)
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Delete, ListCheckpoints, ListThreads
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.core.units import DAY
from locus_tiered.layers.quorum import Answers
from locus_tiered.layers.scrub_steps import side_by_side

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["vacuum"]

logger = logger_for(__name__)

_AT_ONCE = 4
"""Threads that are looked through side by side."""


async def vacuum(owner: ReplicatedCheckpointer, older_than_days: float) -> int:
    """Delete checkpoints of users that are older than so many days; answers how many were deleted.

    Replicas that cannot be reached get hints, as for any delete. When too few are left it stops: what was deleted stays
    deleted everywhere, and the error says how much that is.
    """
    await owner._ready()
    work = _Vacuum(owner, owner._clock.wall() - older_than_days * DAY)
    threads = sorted(await _threads(owner))

    async def thread(place: int) -> None:
        await work.thread(threads[place])

    await side_by_side(len(threads), thread, at_once=_AT_ONCE, done=lambda _: None)
    if work.damaged:
        raise BackendError(
            f"{owner.name}: {len(work.damaged)} threads are so damaged that nobody can tell how old they are, "
            f"{shorten(work.damaged[0])} for one: they stay; {work.so_far()}. scrub(deep=True) mends what it can",
            member=owner.name,
            operation="vacuum",
            temporary=False,
        )
    return work.deleted


async def _threads(owner: ReplicatedCheckpointer) -> set[str]:
    """All threads of users, of all replicas that can list them; so many must answer that none is missed."""
    found: set[str] = set()
    able = [replica for replica in owner._replicas if replica.layer.explain()["list_threads"]]
    failure: BaseException | None = None
    answered = 0
    for replica in able:
        try:
            found.update(await replica.ask(ListThreads(MOST)))
            answered += 1
        except (LocusTieredError, OSError) as error:
            failure = error
    needed = max(1, min(owner._noes, len(able)))
    if answered < needed:
        raise QuorumError(
            f"{owner.name}: vacuum needs {needed} replicas that list their threads, {answered} did "
            f"({'' if failure is None else cause_of(failure)}). Nothing was deleted. {owner._what_to_do()}",
            member=owner.name,
            operation="vacuum",
        ) from failure
    return {thread for thread in found if not thread.startswith(RESERVED)}


class _Vacuum:
    """One vacuum: what it has deleted so far."""

    def __init__(self, owner: ReplicatedCheckpointer, before: float) -> None:
        self._owner, self._before = owner, before
        self._one_by_one = owner.explain()[SINGLE_DELETES].granted
        self.deleted = 0
        self.damaged: list[str] = []

    def so_far(self) -> str:
        """What was deleted, for an error."""
        return f"{self.deleted} checkpoints were deleted before, and stay deleted everywhere"

    async def thread(self, thread_id: str) -> None:
        """Delete what is too old of one thread."""
        owner = self._owner
        key = owner._key(thread_id)
        try:
            # In the thread's lane: what this process saves is either listed, or comes after the delete.
            for entry in await owner._lanes.change(key, lambda: self._begin(thread_id, key)):
                await owner._lanes.change(key, partial(self._one, thread_id, key, entry))
        except (LocusTieredError, OSError) as error:
            if isinstance(error.__cause__, CorruptCheckpoint):
                self.damaged.append(thread_id)
                logger.error("%s: a damaged thread was not vacuumed: %s", owner.name, error.__cause__)
                return
            kind = QuorumError if isinstance(error, QuorumError) else BackendError
            raise kind(
                f"{owner.name}: vacuum stopped at thread {shorten(thread_id)} ({cause_of(error)}), which may "
                f"be deleted in part; {self.so_far()}. Call it again: it goes on with what is left",
                member=owner.name,
                operation="vacuum",
                temporary=getattr(error, "temporary", None),
            ) from error

    async def _begin(self, thread_id: str, key: str) -> Sequence[Entry]:
        """Delete the thread if all of it is too old; answers what is to be deleted one by one."""
        owner = self._owner
        there = await self._listed(thread_id, key)
        old = [entry for entry in there if entry.stamp is not None and stamp_seconds(entry.stamp) < self._before]
        if not old or (len(old) < len(there) and not self._one_by_one):
            return ()
        if any(entry.stamp is None for entry in there):
            return old
        newest = max(entry.stamp or "" for entry in old)
        await owner.tombstones.lay(thread_id, None, newest, late=True)
        owner._graves.dig(key, None, newest)
        if len(old) < len(there):
            return old
        said = await owner._to_all(key, Delete(thread_id, None), newest)
        owner._forget(key, None)
        newer = max(each.newer for each in said)
        # Where only whole threads can be deleted, what another process has just saved may have gone with them.
        owner._look_at_latest(thread_id, key, compare=bool(newer) or not self._one_by_one)
        self.deleted += len(old) * any(each.result for each in said)
        return ()

    async def _one(self, thread_id: str, key: str, entry: Entry) -> None:
        """Delete one checkpoint in the version that is too old."""
        owner = self._owner
        stamp = entry.stamp or ""
        if not owner._graves.hold(key, entry):
            await owner.tombstones.lay(thread_id, entry.id, stamp, late=True)
            owner._graves.dig(key, entry.id, stamp)
        said = await owner._to_all(key, Delete(thread_id, entry.id), stamp)
        if not any(each.newer for each in said):
            owner._forget(key, entry.id)
        owner._look_at_latest(thread_id, key)
        self.deleted += any(each.result for each in said)

    async def _listed(self, thread_id: str, key: str) -> list[Entry]:
        """The thread as so many replicas have it that no acknowledged save is missing, without what was deleted."""
        owner = self._owner
        op = ListCheckpoints(thread_id, MOST, ordered=True)
        answers: Answers[list[Entry]] = await owner._ask(
            op,
            key,
            lambda replica: owner._entries(replica, thread_id, key),
            lambda *_: False,
            at_once=owner._noes,
            by_lists=True,
        )
        if len(answers.others) < owner._noes:
            raise owner._unknown(op, answers, "answered")
        return await owner._sure(thread_id, key, answers)
