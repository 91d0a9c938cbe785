"""When each replica was last written to, kept in the replica itself: who was away for longer than tombstones are kept?

Once an hour of use every replica gets a small checkpoint in a thread of the stack's own; its stamp is the time. A
replica whose last heartbeat is older than the others' by more than tombstones are kept for, or that has none while
others have, may hold what was deleted meanwhile and lack what was saved: it is fenced until ``scrub()`` has compared
it as a whole. Every process looks for itself: once an hour, whenever a replica failed and is back (it may have come
back empty), and every minute while one is fenced, because another process may have scrubbed it, which shows in its
heartbeat. A replica that is being looked at is not believed; who asks waits only while too few others are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import Context
from typing import Any, TypeVar

from locus.core.state import AgentState

from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import CorruptCheckpoint, LocusTieredError
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import ListThreads, Load, Save
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import StampClock, stamp_seconds
from locus_tiered.core.units import DAY
from locus_tiered.layers.replica import Replica

__all__ = ["Heartbeats"]

logger = logger_for(__name__)

T = TypeVar("T")

_THREAD, _ID = f"{RESERVED}heartbeat", "heartbeat"
_EVERY, _EVERY_FENCED = 3600.0, 60.0
_PATIENCE, _LONG_PATIENCE = 0.5, 5.0
_GIVING = 0.2
"""Seconds that a process takes to give all replicas their first heartbeats."""
_AWAY = KEPT_DAYS / 2 * DAY


class _Look:
    """The look that an event loop has under way."""

    task: asyncio.Task[None] | None = None


class Heartbeats:
    """The heartbeats of replicas, of which ``votes`` acknowledge a write and ``noes`` say that there is nothing.

    They are about the stores. Where these keep ``tenants`` apart, heartbeats are the usual tenant's, whoever calls.
    """

    def __init__(
        self, replicas: Sequence[Replica], clock: Clock, stamps: StampClock, votes: int, noes: int, tenants: bool
    ) -> None:
        self._replicas, self._clock, self._stamps = replicas, clock, stamps
        self._tenants = tenants
        self._least, self._needed = min(votes, noes), max(votes, noes)
        self._last: float | None = None
        self._last_fenced = 0.0
        self._newest: float | None = None
        self._due: set[Replica] = set()
        """Those that are to get one, and could not be given it yet: that they have none says nothing."""
        self._till_then: set[Replica] = set()
        """Believed although others, that cannot be reached yet, may have heartbeats that it should have too."""
        self._asked_at: dict[Replica, float] = {}
        self._looks: PerLoop[_Look] = PerLoop(_Look)

    async def beat(self) -> None:
        """Look at the heartbeats and give new ones where it is time to."""
        now = self._clock.monotonic()
        if self._last is None or now - self._last >= _EVERY:
            self._last = now
            for replica in self._replicas:
                replica.checked = False
        elif now - self._last_fenced >= _EVERY_FENCED and any(replica.fenced for replica in self._replicas):
            self._last_fenced = now
            for replica in self._replicas:
                replica.checked = replica.checked and not replica.fenced
        look = self._looks.get()
        if look.task is None or look.task.done():
            short = self._is_short()
            unknown = [each for each in self._replicas if not each.checked and (short or not each.is_resting)]
            if not unknown:
                return
            look.task = self._task(self._look(unknown))
        if self._is_short():
            await asyncio.wait([look.task])

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work, context=Context() if self._tenants else None)

    async def look_at(self, replica: Replica, *, since: float) -> None:
        """Look at a replica that nobody has looked at since then (monotonic seconds), and wait for what it says."""
        look = self._looks.get()
        while not replica.checked and self._asked_at.get(replica, -1.0) < since:
            if look.task is None or look.task.done():
                look.task = self._task(self._look([replica]))
            await asyncio.wait([look.task])

    def _is_short(self) -> bool:
        return sum(replica.is_believed for replica in self._replicas) < self._needed

    def forget_loop(self) -> None:
        """The running event loop is being left."""
        task = self._looks.get().task
        if task is not None:
            task.cancel()
        self._looks.drop()

    async def _look(self, replicas: Sequence[Replica]) -> None:
        reached = await self._ask(replicas)
        if self._newest is not None and len(reached) == len(replicas) and not any(reached.values()):
            # All that were asked have lost theirs. If that is true of every replica, none is behind the others.
            rest = [replica for replica in self._replicas if replica not in reached]
            everybody = reached | (await self._ask(rest) if rest else {})
            if len(everybody) == len(self._replicas) and not any(everybody.values()):
                self._newest, reached = None, everybody
                for replica in everybody:
                    replica.fenced = True  # until it has taken a new one: nothing is also what an outage may answer
        self._newest = max((found for found in (self._newest, *reached.values()) if found is not None), default=None)
        if self._newest is None and len(reached) < self._least:
            return  # too few to acknowledge anything, or to say no: perhaps those that cannot be reached know better
        new = await self._empty_beside_others(reached) if self._newest is None else set()
        absent = [replica for replica, found in reached.items() if found is None]
        beginning = self._newest is not None and bool(absent) and not await self._holds_anything()
        if self._newest is not None and absent and not beginning:
            await self._clock.sleep(_GIVING)  # another process may just be giving the first ones
            reached |= await self._ask(absent)
        giving = []
        self._due = {replica for replica in self._due if reached.get(replica) is None}
        for replica, found in reached.items():
            is_first = found is None and (beginning or replica in self._due)
            if replica in new or (self._was_away(found) and not is_first):
                self._fence(replica, lost=found is None)
            elif found is None or self._clock.wall() - found > _EVERY / 2:
                giving.append(replica)
            else:
                replica.fenced = replica.is_known_away = replica.lost = False
        if self._newest is None and len(reached) < self._needed:
            # Perhaps those that cannot be reached know better: they are believed till then, and get no heartbeat.
            for replica in giving:
                replica.fenced = False
            self._till_then.update(giving)
        else:
            self._due.update(each for each in giving if reached[each] is None)
            await asyncio.gather(*(self._give(replica) for replica in giving))
        for replica in reached:
            replica.checked = replica not in self._due
        if self._newest is not None:
            for replica in self._till_then.difference(reached):
                replica.checked = False
            self._till_then.clear()

    def _was_away(self, found: float | None) -> bool:
        return self._newest is not None and (found is None or self._newest - found > _AWAY)

    async def _ask(self, replicas: Sequence[Replica]) -> dict[Replica, float | None]:
        """What they say, of those that answer in time: nobody waits for one that hangs while enough others answer."""
        asked = {asyncio.ensure_future(self._seen(replica)): replica for replica in replicas}
        waiting = set(asked)
        try:
            done, waiting = await asyncio.wait(asked, timeout=_PATIENCE)
            while waiting and (len(done) < self._needed or not self._is_in_use(done)):
                more, waiting = await asyncio.wait(waiting, timeout=_LONG_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                done |= more
                if not more:
                    break
        finally:
            for task in waiting:
                task.cancel()
        reached: dict[Replica, float | None] = {}
        self._asked_at |= dict.fromkeys(replicas, self._clock.monotonic())
        for task, replica in asked.items():
            if task in waiting:
                replica.flusher.failed(TimeoutError())
            elif isinstance(found := task.result(), BaseException):
                replica.flusher.failed(found)
            else:
                reached[replica] = found
        return reached

    def _is_in_use(self, looks: Iterable[asyncio.Task[float | BaseException | None]]) -> bool:
        """Whether anybody ever gave a heartbeat. Before that all are waited for: who gets none then is new later."""
        return self._newest is not None or any(isinstance(look.result(), float) for look in looks)

    @staticmethod
    def _fence(replica: Replica, *, lost: bool) -> None:
        if not replica.is_known_away:
            emit("replica.fenced", replica.name)
            logger.error(
                "%s was away for too long, or is new: it is not believed until scrub() has compared it", replica.name
            )
        replica.fenced = replica.is_known_away = True
        replica.lost = lost

    async def _empty_beside_others(self, replicas: Iterable[Replica]) -> set[Replica]:
        """Without any heartbeat yet: replicas that hold nothing while others hold something."""
        empty, full = set(), False
        for replica in replicas:
            if replica.layer.explain()["list_threads"]:
                try:
                    if await replica.layer.handle(ListThreads(1)):
                        full = True
                    else:
                        empty.add(replica)
                except (LocusTieredError, OSError):
                    continue
        return empty if full else set()

    async def _holds_anything(self) -> bool:
        """Whether any replica holds a thread, or might: of tenants nobody knows."""
        if self._tenants:
            return True
        for replica in self._replicas:
            if not replica.layer.explain()["list_threads"]:
                return True
            try:
                if await replica.layer.handle(ListThreads(1)):
                    return True
            except (LocusTieredError, OSError):
                return True
        return False

    async def _seen(self, replica: Replica) -> float | BaseException | None:
        """When it was last written to; ``None``: never, or nobody can tell."""
        try:
            found = await replica.layer.handle(Load(_THREAD, _ID))
        except CorruptCheckpoint:
            return None
        except (LocusTieredError, OSError) as error:
            return error
        return None if found is None or found.stamp is None else stamp_seconds(found.stamp)

    async def shows(self, replica: Replica) -> bool:
        """Whether a replica can be reached, and has a heartbeat."""
        return isinstance(await self._task(self._seen(replica)), float)

    async def give(self, replica: Replica) -> None:
        """Give a replica a heartbeat, and believe it."""
        await self._task(self._give(replica))

    async def _give(self, replica: Replica) -> None:
        stamp = self._stamps.issue(_THREAD)
        body = await Body.of(AgentState(metadata={"heartbeat": stamp}))
        checkpoint = Checkpoint(_THREAD, _ID, stamp, {}, body)
        try:
            await replica.layer.handle(Save(_THREAD, None, _ID, None, checkpoint))
        except (LocusTieredError, OSError) as error:
            replica.flusher.failed(error)
            return
        self._due.discard(replica)
        self._newest = max(self._newest or 0.0, stamp_seconds(stamp))
        replica.fenced = replica.is_known_away = replica.lost = False
