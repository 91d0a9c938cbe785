"""What this process was told of each thread, so that a replica that missed some of it does not tell it less.

The newest has its floor (:class:`~locus_tiered.core.floors.Floors`); this is the same for everything below it: the
version of each checkpoint that was saved here, loaded, or listed. It is a memory of answers, not of the replicas; where
it is lost, a process may be told of an older state once more. (Monotonic reads: Terry et al., Session Guarantees for
Weakly Consistent Replicated Data, PDIS 1994.)
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.stamp import is_stamp, looks_random

__all__ = ["Told"]


class Told:
    """The greatest stamp by thread and id. Safe to use from several threads; bounded in checkpoints, of all threads."""

    def __init__(self, remember: int = 65_536) -> None:
        self._most = remember
        self._threads: LRUCache[str, dict[str, str]] = LRUCache(remember, getsizeof=lambda stamps: len(stamps) + 1)
        self._lock = Lock()

    def tell(self, key: str, entries: Iterable[Entry]) -> None:
        """This process was told of these, or has saved them."""
        with self._lock:
            stamps = self._threads.get(key) or {}
            for entry in entries:
                if entry.stamp is not None and entry.stamp > stamps.get(entry.id, ""):
                    stamps[entry.id] = entry.stamp
            self._keep(key, stamps)

    def _keep(self, key: str, stamps: dict[str, str]) -> None:
        if stamps and len(stamps) < self._most // 4:
            self._threads[key] = stamps  # also where it is the same: its size is another
        else:
            self._threads.pop(key, None)

    def of(self, key: str, checkpoint_id: str) -> str:
        """The version of a checkpoint that it was told of; empty if of none."""
        with self._lock:
            return self._threads.get(key, {}).get(checkpoint_id, "")

    def newest(self, key: str) -> Entry | None:
        """The newest of a thread that it was told of."""
        with self._lock:
            stamps = self._threads.get(key) or {}
            return max((Entry(*each) for each in stamps.items()), key=lambda entry: entry.stamp or "", default=None)

    def is_less(self, key: str, entries: Iterable[Entry]) -> bool:
        """Whether a list lacks something that it was told of, or has an older version.

        What may be a step of a turn is left out: its agent deletes it when the turn ends.
        """
        with self._lock:
            stamps = self._threads.get(key)
            if not stamps:
                return False
            found = {entry.id: entry.stamp or "" for entry in entries}
            less = [name for name, stamp in stamps.items() if found.get(name, "") < stamp]
        return any(name in found or is_stamp(name) or not looks_random(name) for name in less)

    def forget(self, key: str, checkpoint_id: str | None = None) -> None:
        """A checkpoint (``None``: all of a thread) was deleted: what it was is told no more."""
        with self._lock:
            if checkpoint_id is None:
                self._threads.pop(key, None)
            elif stamps := self._threads.get(key):
                stamps.pop(checkpoint_id, None)
                self._keep(key, stamps)

    def only(self, key: str, entries: Iterable[Entry]) -> None:
        """So many replicas have listed a thread that there is nothing but this."""
        with self._lock:
            stamps = self._threads.get(key)
            if stamps:
                there = {entry.id: entry.stamp or "" for entry in entries}
                self._keep(key, {name: min(stamp, there[name]) for name, stamp in stamps.items() if there.get(name)})
