"""The near tier of a cache: copies, and how far they may be believed.

A copy of exactly a given stamp is always right. About an id alone the tier is believed when this process put
the copy there, or when all that the tier holds of the thread was compared with the truth: **trust is never
stored, every process earns it anew**, so a change that the tier missed just before a crash is found (law 6).
When it fails a change, its thread is distrusted until everything it holds of that thread is gone.

Methods marked *in the lane* must be called inside the thread's lane of the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import CheckpointTooLarge, shorten
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import MOST, Layer
from locus_tiered.core.operations import Delete, Head, ListCheckpoints, Load, Operation, Save
from locus_tiered.core.signals import emit
from locus_tiered.layers.view import View, Views
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

__all__ = ["CacheStats", "NearTier"]

logger = logging.getLogger(__name__)

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
    """Calls that the near tier failed."""
    mended: int = 0
    """Threads that are trusted again."""
    too_large: int = 0
    """Checkpoints larger than the near tier's whole budget."""
    stale: int = 0
    """Answers given from the near tier while the truth could not be reached (``on_outage="stale"``)."""


class NearTier:
    """A layer that holds copies for the cache called ``name``."""

    def __init__(self, layer: Layer, name: str, stats: CacheStats, views: Views, lanes: Lanes, truth: Truth) -> None:
        self.layer = layer
        self._name, self._stats, self._views, self._lanes, self._truth = name, stats, views, lanes, truth
        # A memory store that is empty now will hold only what this cache puts into it.
        self._born_empty = isinstance(layer, BoundedMemoryCheckpointer) and layer.is_empty

    # -- reading -------------------------------------------------------------------------------------

    async def exactly(self, view: View, key: str, thread_id: str, entry: Entry) -> Checkpoint | None:
        """The copy of exactly this checkpoint; one without a stamp is never copied."""
        if entry.stamp is None or not await self._trusted(view, key):
            return None
        return self._hit(await self._read(key, Load(thread_id, entry.id, entry.stamp)))

    async def by_id(self, view: View, key: str, op: Load) -> tuple[Checkpoint | None, bool]:
        """The copy under an id, and whether it may be believed as it is; if not, :meth:`verify` first."""
        if not await self._trusted(view, key):
            return None, True
        found = await self._read(key, op)
        sure = self._born_empty or view.verified or op.stamp is not None
        if found is None or sure or found.id in view.vouched:
            return self._hit(found), True
        return found, False

    async def verified_by_id(self, view: View, key: str, op: Load) -> Checkpoint | None:
        """The copy under an id after the thread was compared with the truth; what the truth raises, it raises."""
        return self._hit(await self._read(key, op)) if await self._verify(view, key, op.thread_id) else None

    async def head(self, view: View, key: str) -> Entry | None:
        """The newest copy, as far as it can be believed while the truth cannot be reached."""
        return None if view.distrusted else await self.layer.handle(Head(key))

    async def list(self, view: View, key: str, limit: int) -> list[Entry]:
        """The copies of a thread, as far as they can be believed while the truth cannot be reached."""
        return [] if view.distrusted else await self.layer.handle(ListCheckpoints(key, limit, ordered=True))

    async def _read(self, key: str, op: Load) -> Checkpoint | None:
        try:
            found = await self.layer.handle(Load(key, op.checkpoint_id, op.stamp))
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
        """Copy a checkpoint here, in the lane; a failure is remembered, not raised."""
        if view.distrusted and not await self._mend(view, key):
            return False
        copy = checkpoint if key == checkpoint.thread_id else checkpoint.moved(thread_id=key)
        try:
            await self.layer.handle(Save(key, None, copy.id, None, copy))
        except CheckpointTooLarge:
            self._stats.too_large += 1
            emit("cache.too_large", self._name, checkpoint.thread_id, tier=self.layer.name)
            await self.drop(view, key, copy.id)  # an older version must not stay
            return False
        except Exception as error:  # noqa: BLE001 - the save succeeds; the tier is not believed meanwhile
            self._missed(view, Save(key, None, copy.id), error)
            return False
        view.vouch(copy.id)
        return True

    async def drop(self, view: View, key: str, checkpoint_id: str | None) -> None:
        """Remove a copy, or all of a thread, in the lane; a failure is remembered, not raised."""
        operation = Delete(key, checkpoint_id)
        try:
            await self.layer.handle(operation)
        except Exception as error:  # noqa: BLE001 - as above
            self._missed(view, operation, error)
            return
        if checkpoint_id is None:
            view.vouched.clear()
            view.distrusted, view.verified = False, True
        else:
            view.vouched.discard(checkpoint_id)

    async def empty(self, view: View, key: str, generation: int) -> None:
        """Let go of a thread that the truth does not have any more. Takes the lane itself."""
        if view.verified and not view.vouched and not view.distrusted:
            return  # nothing of it is here

        async def empty() -> None:
            if self._views.current(key, view, generation):
                await self.drop(view, key, None)

        await self._lanes.change(key, empty)

    async def fill(self, view: View, key: str, generation: int, checkpoint: Checkpoint) -> None:
        """Copy what was loaded, unless the thread has changed since (law 4). Takes the lane itself."""
        if checkpoint.stamp is None:
            return
        if self.layer.ordering() is None and view.head != checkpoint.entry:
            # A foreign tier orders by arrival: an old checkpoint would become its newest (law 3).
            return

        async def fill() -> None:
            if not self._views.current(key, view, generation):
                self._stats.dropped_fills += 1
                emit("cache.fill_dropped", self._name, checkpoint.thread_id, tier=self.layer.name)
            elif await self.put(view, key, checkpoint):
                self._stats.fills += 1

        await self._lanes.change(key, fill)

    # -- trust ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Believe nothing unseen any more: something below changed in threads that nobody named."""
        self._born_empty = False

    async def _trusted(self, view: View, key: str) -> bool:
        return not view.distrusted or await self._lanes.change(key, lambda: self._mend(view, key))

    async def _mend(self, view: View, key: str) -> bool:
        """Become believable about a thread again, in the lane: let go of all that is held of it."""
        if not view.distrusted:
            return True
        try:
            await self.layer.handle(Delete(key))
        except Exception as error:  # noqa: BLE001 - whatever it is, the tier stays distrusted
            logger.debug("%s: mending %s failed (%s)", self._name, self.layer.name, type(error).__name__)
            return False
        view.vouched.clear()
        view.distrusted, view.verified = False, True
        self._stats.mended += 1
        emit("tier.mended", self._name, None, tier=self.layer.name)
        return True

    async def _verify(self, view: View, key: str, thread_id: str) -> bool:
        """Compare what is held of a thread with the truth; drop what differs."""
        generation = view.generation
        truth = {entry.id: entry.stamp for entry in await self._truth(thread_id)}

        async def compare() -> bool:
            if not self._views.current(key, view, generation):
                return False
            operation: Operation[list[Entry]] = ListCheckpoints(key, MOST, ordered=True)
            try:
                for entry in await self.layer.handle(operation):
                    if entry.id not in truth or truth[entry.id] != entry.stamp:
                        emit("tier.differed", self._name, thread_id, tier=self.layer.name)
                        await self.layer.handle(Delete(key, entry.id))
            except Exception as error:  # noqa: BLE001 - not compared, so not believed
                self._failed(operation, error)
                return False
            view.verified = True
            return True

        return await self._lanes.change(key, compare)

    def _missed(self, view: View, operation: Operation[object], error: Exception) -> None:
        """The tier failed a change: nothing it says about the thread is believed until mended."""
        view.distrusted = True
        view.vouched.clear()
        self._failed(operation, error)

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
