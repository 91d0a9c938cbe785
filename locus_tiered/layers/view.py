"""What a cache knows of one thread, and for how long that holds.

A :class:`View` is never a source of truth: losing one costs a question to the layer below, nothing else.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.checkpoint import Entry

__all__ = ["UNKNOWN", "Unknown", "View", "Views"]

_generations = itertools.count(1)
_VOUCHED = 4096


class Unknown:
    """The head is not known (as against ``None``: known to be no checkpoint)."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


@dataclass(slots=True, eq=False)
class View:
    """One thread, as a cache sees it."""

    generation: int = field(default_factory=lambda: next(_generations))
    """Moves with every change of the thread; a fill begun under another one is dropped (law 4)."""

    head: Entry | Unknown | None = UNKNOWN
    """The thread's newest checkpoint, as this process last knew it."""

    head_at: float = 0.0
    """When that was, in monotonic seconds."""

    seen: Entry | None = None
    """The newest checkpoint that was ever acknowledged or told of: nothing older is served for it, even stale."""

    _vouched: dict[str, str | None] = field(default_factory=dict)
    """The versions, as id and stamp, that the near tier may be believed to hold rightly."""

    def move(self) -> None:
        """Note that the thread is changing or has changed."""
        self.generation = next(_generations)

    def know_head(self, head: Entry | None, now: float) -> None:
        """Note the head as of now."""
        self.head, self.head_at, self.seen = head, now, head

    def forget_head(self, checkpoint_id: str) -> None:
        """Note that this checkpoint was deleted."""
        if isinstance(self.head, Entry) and self.head.id == checkpoint_id:
            self.head = UNKNOWN
        if self.seen is not None and self.seen.id == checkpoint_id:
            self.seen = None

    def see(self, entry: Entry) -> None:
        """Note a checkpoint that was acknowledged."""
        if self.seen is None or (self.seen.stamp or "") <= (entry.stamp or ""):
            self.seen = entry

    def vouch(self, entry: Entry) -> None:
        """Note that this version of the id is the right one."""
        if len(self._vouched) >= _VOUCHED:
            self._vouched.clear()
        self._vouched[entry.id] = entry.stamp

    def vouches_for(self, entry: Entry) -> bool:
        """Whether this version of the id is known to be the right one."""
        return entry.id in self._vouched and self._vouched[entry.id] == entry.stamp

    def unvouch(self, checkpoint_id: str | None = None) -> None:
        """Know nothing of this id any more (``None``: of any)."""
        if checkpoint_id is None:
            self._vouched.clear()
        else:
            self._vouched.pop(checkpoint_id, None)


class Views:
    """The views of a cache, bounded; the least recently used are forgotten."""

    def __init__(self, remember: int = 16_384) -> None:
        self._views: LRUCache[str, View] = LRUCache(remember)
        self._lock = Lock()

    def of(self, thread: str) -> View:
        """The thread's view; a new one knows nothing."""
        with self._lock:
            view = self._views.get(thread)
            if view is None:
                view = self._views[thread] = View()
            return view

    def current(self, thread: str, view: View, generation: int) -> bool:
        """Whether nothing has changed in the thread since ``view`` had that generation."""
        with self._lock:
            return view.generation == generation and self._views.get(thread) is view

    def forget(self) -> None:
        """Know nothing of any thread any more."""
        with self._lock:
            self._views.clear()
