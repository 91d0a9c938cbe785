"""Noticing that two processes saved to one thread without having seen each other.

Both checkpoints are kept and the newest stamp wins; nobody is asked. What is noticed: a checkpoint of somebody else
whose stamp lies between what this process had last seen of a thread and what it then saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.signals import emit

__all__ = ["Conflicts"]


class Conflicts:
    """The last saves of this process, per thread. ``member`` tells who speaks."""

    def __init__(self, member: Callable[[], str], remember: int = 16_384) -> None:
        self._member = member
        self._saves: LRUCache[str, tuple[str, str]] = LRUCache(remember)
        self._told: LRUCache[tuple[str, str], bool] = LRUCache(remember)
        self._own: LRUCache[tuple[str, str], bool] = LRUCache(4 * remember)
        self._lock = Lock()

    def saved(self, key: str, base: Entry | None, entry: Entry) -> None:
        """This process saved ``entry`` when ``base`` was the newest that it had seen."""
        with self._lock:
            self._own[key, entry.id] = True
            self._saves[key] = ("" if base is None else base.stamp or "", entry.stamp or "")

    def seen(self, key: str, entries: Iterable[Entry]) -> None:
        """These checkpoints of the thread exist."""
        with self._lock:
            base, mine = self._saves.get(key, ("", ""))
            found = [
                entry
                for entry in entries
                if entry.stamp is not None
                and base < entry.stamp
                and mine
                and (key, entry.id) not in self._own
                and (key, entry.id) not in self._told
            ]
            for entry in found:
                self._told[key, entry.id] = True
            found = [entry for entry in found if (entry.stamp or "") < mine]
        for _ in found:
            emit("replica.conflict", self._member(), None)
