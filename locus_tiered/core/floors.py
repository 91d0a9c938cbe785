"""What this process has seen acknowledged, per thread: no answer below it is believed unchecked.

A floor is a checkpoint that this process saved, or was told of as the head. It falls when that checkpoint is
deleted. It gives read-your-writes and monotonic reads over backends whose lists lag behind.
"""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.checkpoint import Entry

__all__ = ["Floors"]


class Floors:
    """The greatest stamped entry per thread. Safe to use from several threads; bounded."""

    def __init__(self, remember: int = 65_536) -> None:
        self._floors: LRUCache[Hashable, Entry] = LRUCache(remember)
        self._lock = Lock()

    def raise_to(self, thread: Hashable, entry: Entry) -> None:
        """Note an acknowledged checkpoint; only a greater stamp than the floor's counts."""
        if entry.stamp is None:
            return
        with self._lock:
            floor = self._floors.get(thread)
            if floor is None or floor.stamp is None or floor.stamp <= entry.stamp:
                self._floors[thread] = entry

    def above(self, thread: Hashable, found: Entry | None) -> Entry | None:
        """The floor, when ``found`` is less than it."""
        with self._lock:
            floor = self._floors.get(thread)
        if floor is None or floor.stamp is None:
            return None
        if found is not None and found.stamp is not None and found.stamp >= floor.stamp:
            return None
        return floor

    def of(self, thread: Hashable) -> Entry | None:
        """The floor of a thread."""
        with self._lock:
            return self._floors.get(thread)

    def lower(self, thread: Hashable, expected: Entry) -> None:
        """Drop the floor if it still is ``expected``: that checkpoint is gone."""
        with self._lock:
            if self._floors.get(thread) == expected:
                del self._floors[thread]

    def drop(self, thread: Hashable, checkpoint_id: str | None = None) -> None:
        """Drop the floor if it is this checkpoint (``None``: any), which was deleted."""
        with self._lock:
            floor = self._floors.get(thread)
            if floor is not None and checkpoint_id in (None, floor.id):
                del self._floors[thread]
