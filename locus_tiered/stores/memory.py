"""``BoundedMemoryCheckpointer``: checkpoints in memory, within a budget of bytes.

It promises: never more than ``max_bytes`` (the JSON text of states plus a fixed overhead per checkpoint), never
a value shared with a caller, and never an older checkpoint as the newest: when the newest of a thread must go,
what is older in that thread goes with it.

It does not promise to keep anything: what does not fit goes, least recently used first. As the only
checkpointer of an agent it forgets conversations; put it in front of something that does not.
"""

from __future__ import annotations

import bisect
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

from cachetools import Cache, LRUCache

from locus_tiered.core.checkpoint import Body, Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import CheckpointTooLarge, StackConfigError, shorten
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.layer import construction
from locus_tiered.core.operations import (
    Delete,
    Head,
    ListCheckpoints,
    ListThreads,
    ListWithMetadata,
    Load,
    QueryByMetadata,
    Row,
    Save,
    Vacuum,
)
from locus_tiered.core.signals import emit
from locus_tiered.core.traits import ORDINARY, Traits
from locus_tiered.core.units import DAY, parse_bytes, positive_seconds, show_bytes
from locus_tiered.stores.base import Store, matching, row_of, same_value

__all__ = ["BoundedMemoryCheckpointer", "MemoryStats"]


OVERHEAD = 900
"""Bytes counted for a checkpoint beside its JSON text: the objects and the index around it (measured)."""

Key = tuple[str, str]


@dataclass(slots=True)
class MemoryStats:
    """What a memory store holds and has done."""

    checkpoints: int = 0
    bytes: int = 0
    evicted: int = 0
    expired: int = 0
    too_large: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    checkpoint: Checkpoint
    size: int
    saved_at: float


@dataclass(slots=True)
class _Thread:
    """A thread's ids with their stamps, and the same in order, oldest first."""

    stamps: dict[str, str] = field(default_factory=dict)
    order: list[tuple[str, str]] = field(default_factory=list)

    def put(self, checkpoint_id: str, stamp: str) -> None:
        self.drop(checkpoint_id)
        self.stamps[checkpoint_id] = stamp
        bisect.insort(self.order, (stamp, checkpoint_id))

    def drop(self, checkpoint_id: str) -> None:
        stamp = self.stamps.pop(checkpoint_id, None)
        if stamp is not None:
            del self.order[bisect.bisect_left(self.order, (stamp, checkpoint_id))]

    @property
    def head(self) -> str:
        return self.order[-1][1]


class BoundedMemoryCheckpointer(Store):
    """Checkpoints in memory, bounded in bytes.

    Args:
        max_bytes: The budget, in bytes or like ``"256MiB"``.
        ttl: Seconds after which a checkpoint is gone; ``None``: never.
        policy: Which checkpoint goes first when room is needed: a class of ``cachetools`` that takes
            ``maxsize`` and ``getsizeof`` (``LRUCache``, ``LFUCache``, ``FIFOCache``, ``RRCache``).

    Saving a state larger than the whole budget raises :class:`CheckpointTooLarge`; inside tiers it passes
    through and is counted. Every call is atomic: none of them waits for anything.
    """

    _traits = ORDINARY  # as long as nobody knows the time to live

    def __init__(
        self,
        max_bytes: int | str = "256MiB",
        *,
        ttl: float | None = None,
        policy: type[Cache[Key, Any]] = LRUCache,
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(name=name, clock=clock)
        self.max_bytes = parse_bytes(max_bytes, "max_bytes")
        self.ttl = positive_seconds(ttl, "ttl")
        self._traits = Traits(expires_after=self.ttl)
        self.policy = policy
        self.stats = MemoryStats()
        self._lock = RLock()
        # By most recently saved last; what is in it is in the cache, and the other way round.
        self._threads: OrderedDict[str, _Thread] = OrderedDict()
        try:
            self._cache: Cache[Key, _Kept] = _evicting(policy, self._evicted)(
                maxsize=self.max_bytes, getsizeof=lambda kept: kept.size
            )
        except TypeError as error:
            raise StackConfigError(
                f"policy={shorten(policy)} cannot be used", hint="pass a class like cachetools.LRUCache"
            ) from error

    @property
    def expires(self) -> bool:
        return self.ttl is not None

    @property
    def traits(self) -> Traits:
        return self._traits

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever kept, or everything is gone."""
        return not self._threads

    # -- changing ------------------------------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        if op.checkpoint is None:
            op = await self.freeze(op)
        checkpoint = op.checkpoint
        assert checkpoint is not None
        encoded = await checkpoint.body.encode()
        metadata_size = len(json.dumps(dict(checkpoint.metadata))) if checkpoint.metadata else 0
        size = len(encoded) + metadata_size + OVERHEAD
        if size > self.max_bytes:
            with self._lock:
                self.stats.too_large += 1
                self._remove(checkpoint.thread_id, checkpoint.id)
            raise CheckpointTooLarge(
                f"{self.name}: checkpoint {shorten(checkpoint.id)} of thread {shorten(checkpoint.thread_id)} has "
                f"{size} bytes, more than the whole budget of {self.max_bytes}; it was not kept here. Raise max_bytes"
            )
        kept = _Kept(checkpoint.moved(body=Body(encoded)), size, self._clock.wall())
        with self._lock:
            self._remove(checkpoint.thread_id, checkpoint.id)
            self._cache[checkpoint.thread_id, checkpoint.id] = kept
            thread = self._threads.setdefault(checkpoint.thread_id, _Thread())
            thread.put(checkpoint.id, checkpoint.stamp or "")
            self._threads.move_to_end(checkpoint.thread_id)
            self._count()
        return checkpoint.id

    async def on_delete(self, op: Delete) -> bool:
        with self._lock:
            if op.checkpoint_id is not None:
                there = self._fresh(op.thread_id, op.checkpoint_id, touch=False) is not None
                self._remove(op.thread_id, op.checkpoint_id)
            else:
                there = self._head(op.thread_id) is not None
                for checkpoint_id in list(self._ids(op.thread_id)):
                    self._remove(op.thread_id, checkpoint_id)
            self._count()
            return there

    async def on_vacuum(self, op: Vacuum) -> int:
        now = self._clock.wall()
        before, kept = now - op.older_than_days * DAY, now - KEPT_DAYS * DAY  # a tombstone has to last
        with self._lock:
            ages = [(key, self._peek(key).saved_at) for key in self._cache]
            old = [key for key, at in ages if at < (min(before, kept) if key[0].startswith(RESERVED) else before)]
            for thread_id, checkpoint_id in old:
                self._remove(thread_id, checkpoint_id)
            self._count()
        return len(old)

    # -- reading -------------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        with self._lock:
            checkpoint_id = op.checkpoint_id
            if checkpoint_id is None:
                head = self._head(op.thread_id)
                if head is None:
                    return None
                checkpoint_id = head.id
            kept = self._fresh(op.thread_id, checkpoint_id)
        if kept is None or (op.stamp is not None and kept.checkpoint.stamp != op.stamp):
            return None
        return kept.checkpoint

    async def on_head(self, op: Head) -> Entry | None:
        with self._lock:
            return self._head(op.thread_id)

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        with self._lock:
            if self._head(op.thread_id) is None:
                return []
            order = self._threads[op.thread_id].order
            return [Entry(checkpoint_id, stamp or None) for stamp, checkpoint_id in reversed(order[-op.limit :])]

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        with self._lock:
            live = [thread for thread in reversed(list(self._threads)) if self._head(thread) is not None]
        return matching(live, op.pattern, op.limit)

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        return self._rows(op.limit, lambda _: True)

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        def wanted(kept: _Kept) -> bool:
            metadata = kept.checkpoint.metadata
            return op.key in metadata and same_value(metadata[op.key], op.value)

        return self._rows(op.limit, wanted)

    def _rows(self, limit: int, wanted: Callable[[_Kept], bool]) -> list[Row]:
        with self._lock:
            kept = [self._peek(key) for key in self._cache]
            found = [each for each in kept if not self._expired(each) and wanted(each)]
            found = [each for each in found if not each.checkpoint.thread_id.startswith(RESERVED)]
        found.sort(key=lambda each: (each.checkpoint.stamp or "", each.saved_at), reverse=True)
        return [row_of(each.checkpoint, each.saved_at) for each in found[:limit]]

    # -- the index (under the lock) ------------------------------------------------------------------

    def _ids(self, thread_id: str) -> Iterator[str]:
        thread = self._threads.get(thread_id)
        return iter(()) if thread is None else iter(thread.stamps)

    def _head(self, thread_id: str) -> Entry | None:
        """The newest that has not expired; what has expired is dropped on the way."""
        while (thread := self._threads.get(thread_id)) is not None:
            stamp, checkpoint_id = thread.order[-1]
            if self._fresh(thread_id, checkpoint_id, touch=False) is not None:
                self._drop_expired(thread_id, thread)
                return Entry(checkpoint_id, stamp or None)
        return None

    def _drop_expired(self, thread_id: str, thread: _Thread) -> None:
        while self.ttl is not None and self._fresh(thread_id, thread.order[0][1], touch=False) is None:
            pass

    def _expired(self, kept: _Kept) -> bool:
        return self.ttl is not None and self._clock.wall() - kept.saved_at >= self.ttl

    def _peek(self, key: Key) -> _Kept:
        """What is kept, without counting as a use."""
        return Cache.__getitem__(self._cache, key)

    def _fresh(self, thread_id: str, checkpoint_id: str, *, touch: bool = True) -> _Kept | None:
        key = (thread_id, checkpoint_id)
        if key not in self._cache:
            return None
        kept = self._cache[key] if touch else self._peek(key)
        if self._expired(kept):
            self._remove(thread_id, checkpoint_id)
            self.stats.expired += 1
            self._count()
            return None
        return kept

    def _remove(self, thread_id: str, checkpoint_id: str) -> None:
        self._cache.pop((thread_id, checkpoint_id), None)
        self._unlist(thread_id, checkpoint_id)

    def _unlist(self, thread_id: str, checkpoint_id: str) -> None:
        thread = self._threads.get(thread_id)
        if thread is not None:
            thread.drop(checkpoint_id)
            if not thread.stamps:
                del self._threads[thread_id]

    def _evicted(self, key: Key) -> None:
        """The cache let ``key`` go to make room; a thread must not lose its head alone."""
        thread_id, checkpoint_id = key
        thread = self._threads.get(thread_id)
        newest = thread is not None and thread.head == checkpoint_id
        self._unlist(thread_id, checkpoint_id)
        gone = 1
        if newest:
            for older in list(self._ids(thread_id)):
                self._remove(thread_id, older)
                gone += 1
        self.stats.evicted += gone
        emit("cache.evicted", self.name, thread_id, checkpoints=gone)

    def _count(self) -> None:
        self.stats.checkpoints, self.stats.bytes = len(self._cache), int(self._cache.currsize)

    async def close(self) -> None:
        """Nothing belongs to an event loop here; what is kept stays."""

    def __repr__(self) -> str:
        policy = None if self.policy is LRUCache else self.policy
        return construction(self, max_bytes=show_bytes(self.max_bytes), ttl=self.ttl, policy=policy)


def _evicting(policy: type[Cache[Key, Any]], evicted: Callable[[Key], None]) -> type[Cache[Key, Any]]:
    """``policy`` as a class that tells which key it let go to make room."""
    if not (isinstance(policy, type) and issubclass(policy, Cache)):
        raise StackConfigError(
            f"policy={shorten(policy)} is not a cachetools class", hint="pass one like cachetools.LRUCache"
        )

    class Evicting(policy):  # type: ignore[valid-type, misc]
        def popitem(self) -> tuple[Key, Any]:
            key, value = super().popitem()
            evicted(key)
            return key, value

    return Evicting
