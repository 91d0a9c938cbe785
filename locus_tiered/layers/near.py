"""The near tier of a cache: copies, and how far they may be believed.

A copy of exactly a given stamp is always right: that is how the newest is read. About an id alone the tier is
believed only when it holds the version that this process put there, or that the truth was seen to list: **trust
is never stored, every process earns it anew**, so a change that the tier missed is found whenever it was missed
(law 6). Not to believe a copy never means to delete it: only an acknowledged delete removes anything here.

Methods marked *in the lane* must be called inside the thread's lane of the cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.deadline import timed
from locus_tiered.core.errors import CheckpointTooLarge, shorten
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import Layer
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Delete, Head, ListCheckpoints, Load, Operation, Save
from locus_tiered.core.signals import emit
from locus_tiered.layers.view import View, Views

__all__ = ["CacheStats", "NearTier"]

logger = logger_for(__name__)

R = TypeVar("R")

Truth = Callable[[str], Awaitable[list[Entry]]]


@dataclass(slots=True)
class CacheStats:
    """What a cache has done, in numbers that only grow."""

    hits: int = 0
    """Answers whose body came from the near tier."""
    misses: int = 0
    """Answers whose body came from below."""
    fills: int = 0
    """Checkpoints put into the near tier because they were loaded."""
    dropped_fills: int = 0
    """Fills given up because the thread changed meanwhile."""
    near_failures: int = 0
    """Calls that the near tier failed, or that took too long there."""
    compared: int = 0
    """Threads whose copies were compared with the truth before one was believed by its id."""
    too_large: int = 0
    """Checkpoints larger than the near tier's whole budget."""
    stale: int = 0
    """Answers given from the near tier while the truth could not be reached (``on_outage="stale"``)."""


class NearTier:
    """A layer that holds copies for the cache called ``name``. ``limit``: seconds that one call on it may take."""

    def __init__(
        self,
        layer: Layer,
        name: str,
        stats: CacheStats,
        views: Views,
        lanes: Lanes,
        truth: Truth,
        limit: float | None,
    ) -> None:
        self.layer = layer
        self._name, self._stats, self._views, self._lanes = name, stats, views, lanes
        self._truth, self._limit = truth, limit

    async def _ask(self, operation: Operation[R]) -> R:
        call = self.layer.handle(operation)
        return await (call if self._limit is None else timed(call, self._limit))

    # -- reading -------------------------------------------------------------------------------------

    async def exactly(self, key: str, thread_id: str, entry: Entry) -> Checkpoint | None:
        """The copy of exactly this checkpoint; one without a stamp is never copied."""
        if entry.stamp is None:
            return None
        return self._hit(await self._read(key, Load(thread_id, entry.id, entry.stamp)))

    async def by_id(self, view: View, key: str, op: Load) -> tuple[Checkpoint | None, bool]:
        """The copy under an id, and whether it may be believed as it is; if not, :meth:`compared_by_id` first."""
        found = await self._read(key, op)
        if found is None or op.stamp is not None or view.vouches_for(found.entry):
            return self._hit(found), True
        return found, False

    async def compared_by_id(self, view: View, key: str, op: Load) -> Checkpoint | None:
        """The copy under an id, if the truth lists that very version; what the truth raises, it raises."""
        generation = view.generation
        truth = await self._truth(op.thread_id)
        self._stats.compared += 1
        if not self._views.current(key, view, generation):
            return None
        for entry in truth:
            view.vouch(entry)
        found = await self._read(key, op)
        if found is not None and found.entry not in truth:
            emit("tier.differed", self._name, op.thread_id, tier=self.layer.name)
            return None
        return self._hit(found)

    async def head(self, key: str) -> Entry | None:
        """The newest copy, for when the truth cannot be reached."""
        return await self._ask(Head(key))

    async def list(self, key: str, limit: int) -> list[Entry]:
        """The copies of a thread, for when the truth cannot be reached."""
        return await self._ask(ListCheckpoints(key, limit, ordered=True))

    async def _read(self, key: str, op: Load) -> Checkpoint | None:
        try:
            found = await self._ask(Load(key, op.checkpoint_id, op.stamp))
        except Exception as error:  # noqa: BLE001 - a tier that failed has not said no: ask below
            self._failed(op, error)
            return None
        return found if found is None or key == op.thread_id else found.moved(thread_id=op.thread_id)

    def _hit(self, found: Checkpoint | None) -> Checkpoint | None:
        if found is not None:
            self._stats.hits += 1
            emit("cache.hit", self._name, found.thread_id, tier=self.layer.name)
        return found

    # -- changing (in the lane) ----------------------------------------------------------------------

    async def put(self, view: View, key: str, checkpoint: Checkpoint) -> bool:
        """Copy a checkpoint here, in the lane; a failure is counted, not raised."""
        copy = checkpoint if key == checkpoint.thread_id else checkpoint.moved(thread_id=key)
        view.unvouch(copy.id)  # until it is there: an older version may be
        operation = Save(key, None, copy.id, None, copy)
        try:
            await self._ask(operation)
        except CheckpointTooLarge:
            self._stats.too_large += 1
            emit("cache.too_large", self._name, checkpoint.thread_id, tier=self.layer.name)
            return False
        except Exception as error:  # noqa: BLE001 - the save succeeds; the id is not vouched for
            self._failed(operation, error)
            return False
        view.vouch(copy.entry)
        return True

    async def drop(self, view: View, key: str, checkpoint_id: str | None) -> None:
        """Remove a copy, or all of a thread, in the lane, because it was deleted; a failure is counted."""
        view.unvouch(checkpoint_id)
        operation = Delete(key, checkpoint_id)
        try:
            await self._ask(operation)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(operation, error)

    async def fill(self, view: View, key: str, generation: int, checkpoint: Checkpoint) -> None:
        """Copy what was loaded, unless the thread has changed since (law 4). Takes the lane itself."""
        if checkpoint.stamp is None:
            return
        if self.layer.ordering() is None and view.head != checkpoint.entry:
            # A foreign tier orders by arrival: an old checkpoint would become its newest (law 3).
            return

        async def fill() -> None:
            if not self._views.current(key, view, generation):
                self._given_up(checkpoint)
            elif await self.put(view, key, checkpoint):
                if self._views.current(key, view, generation):
                    self._stats.fills += 1
                else:  # changed meanwhile, from another event loop, which has lanes of its own
                    view.unvouch(checkpoint.id)
                    self._given_up(checkpoint)

        await self._lanes.change(key, fill)

    def _given_up(self, checkpoint: Checkpoint) -> None:
        self._stats.dropped_fills += 1
        emit("cache.fill_dropped", self._name, checkpoint.thread_id, tier=self.layer.name)

    def _failed(self, operation: Operation[object], error: Exception) -> None:
        self._stats.near_failures += 1
        thread_id = operation.threads[0]
        logger.warning(
            "%s: near tier %s failed during %s of thread %s (%s); the answer comes from below",
            self._name,
            self.layer.name,
            operation.name,
            shorten(thread_id),
            type(error).__name__,
        )
        emit("tier.failed", self._name, thread_id, tier=self.layer.name, operation=operation.name)
