"""What this process knows to be deleted, so that no replica tells it of that again.

A replica may acknowledge a delete and carry it out a moment later, or carry out an abandoned save after it; another one
may not have heard of it yet. Who has deleted something, or has found its tombstone, is not told of it any more; others
learn of it when replicas are compared.
"""

from __future__ import annotations

from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.checkpoint import Entry

__all__ = ["Graves"]


class Graves:
    """The stamps of the last deletes that are known. Safe to use from several threads; bounded."""

    def __init__(self, remember: int = 65_536) -> None:
        self._stamps: LRUCache[tuple[str, str | None], str] = LRUCache(remember)
        self._lock = Lock()

    def dig(self, key: str, checkpoint_id: str | None, stamp: str) -> None:
        """Note that a checkpoint of a thread (``None``: all that there were) was deleted at ``stamp``."""
        with self._lock:
            self._stamps[key, checkpoint_id] = max(stamp, self._stamps.get((key, checkpoint_id), ""))

    def stamp_of(self, key: str, checkpoint_id: str) -> str:
        """When a checkpoint was deleted last; empty if it was not."""
        with self._lock:
            return max(self._stamps.get((key, None), ""), self._stamps.get((key, checkpoint_id), ""))

    def hold(self, key: str, entry: Entry) -> bool:
        """Whether this version of a checkpoint was deleted."""
        deleted = self.stamp_of(key, entry.id)
        return bool(deleted) and (entry.stamp or "") <= deleted
