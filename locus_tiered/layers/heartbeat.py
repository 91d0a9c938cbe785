"""When each replica was last written to, kept in the replica itself: who was away for longer than tombstones are kept?

Once an hour of use every replica gets a small checkpoint in a thread of the stack's own; its stamp is the time. A
replica whose last heartbeat is older than the others' by more than tombstones are kept for, or that has none while
others have, may hold what was deleted meanwhile and lack what was saved: it is fenced until ``scrub()`` has compared
it as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from locus.core.state import AgentState

from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.flights import Flights
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import ListThreads, Load, Save
from locus_tiered.core.signals import emit
from locus_tiered.core.stamp import StampClock, stamp_seconds
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.tombstones import KEPT_DAYS

__all__ = ["Heartbeats"]

logger = logger_for(__name__)

_THREAD, _ID = f"{RESERVED}heartbeat", "heartbeat"
_EVERY = 3600.0
_AWAY = KEPT_DAYS / 2 * 86_400.0


class Heartbeats:
    """The heartbeats of some replicas."""

    def __init__(self, replicas: Sequence[Replica], clock: Clock, stamps: StampClock) -> None:
        self._replicas, self._clock, self._stamps = replicas, clock, stamps
        self._last: float | None = None
        self._looks: Flights[None] = Flights()

    async def beat(self) -> None:
        """Look at the heartbeats and give new ones, if an hour has passed, or some replica was not looked at yet."""
        unknown = any(not replica.checked and not replica.is_resting for replica in self._replicas)
        if unknown or self._last is None or self._clock.monotonic() - self._last >= _EVERY:
            await self._looks.join("beat", self._beat)

    async def _beat(self) -> None:
        self._last = self._clock.monotonic()
        seen = await asyncio.gather(*(self._seen(replica) for replica in self._replicas))
        reached = {
            replica: found
            for replica, found in zip(self._replicas, seen, strict=True)
            if not isinstance(found, LocusTieredError)
        }
        newest = max((found for found in reached.values() if found is not None), default=None)
        new = await self._empty_beside_others(reached) if newest is None else set()
        for replica, found in reached.items():
            away = newest is not None and (found is None or newest - found > _AWAY)
            if away or replica in new:
                self._fence(replica)
            elif not replica.checked or not replica.fenced:
                await self.give(replica)
            replica.checked = True

    @staticmethod
    def _fence(replica: Replica) -> None:
        if not (replica.checked and replica.fenced):
            emit("replica.fenced", replica.name)
            logger.error(
                "%s was away for too long, or is new: it is not believed until scrub() has compared it", replica.name
            )
        replica.fenced = True

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
                except LocusTieredError:
                    continue
        return empty if full else set()

    async def _seen(self, replica: Replica) -> float | LocusTieredError | None:
        """When it was last written to; ``None``: never."""
        try:
            found = await replica.layer.handle(Load(_THREAD, _ID))
        except LocusTieredError as error:
            replica.flusher.failed(error)
            return error
        return None if found is None or found.stamp is None else stamp_seconds(found.stamp)

    async def give(self, replica: Replica) -> None:
        """Give a replica a heartbeat, and believe it."""
        stamp = self._stamps.issue(_THREAD)
        body = await Body.of(AgentState(metadata={"heartbeat": stamp}))
        checkpoint = Checkpoint(_THREAD, _ID, stamp, {}, body)
        try:
            await replica.layer.handle(Save(_THREAD, None, _ID, None, checkpoint))
        except LocusTieredError as error:
            replica.flusher.failed(error)
            return
        replica.fenced = False
