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

    distrusted: bool = False
    """The near tier missed a change of this thread: nothing it says is believed until it is mended (law 6)."""

    verified: bool = False
    """All that the near tier holds of this thread was compared with what is below."""

    vouched: set[str] = field(default_factory=set)
    """Ids that this process put into the near tier itself."""

    def move(self) -> None:
        """Note that the thread is changing or has changed."""
        self.generation = next(_generations)

    def know_head(self, head: Entry | None, now: float) -> None:
        """Note the head as of now."""
        self.head, self.head_at = head, now

    def vouch(self, checkpoint_id: str) -> None:
        """Note that the near tier's copy of this id is right."""
        if len(self.vouched) >= _VOUCHED:
            self.vouched.clear()
        self.vouched.add(checkpoint_id)


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
