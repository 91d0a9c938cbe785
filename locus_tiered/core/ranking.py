"""The order of a thread's checkpoints in a backend whose own order is only a hint (law 2).

A backend lists ids. Where an id is a stamp, it is its own place in the order; the others' places are in their
envelopes. Generated ids are hardly ever saved twice, so what was read of one is remembered; when one *is* saved
again, a marker beside it says so, and its envelope is read every time, as is that of every name that a person
chose. So a thread of an agent is put in order from one list, without loading anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from cachetools import LRUCache, TTLCache

from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.clock import Clock
from locus_tiered.core.ids import IdRule, marked_name
from locus_tiered.core.stamp import is_stamp, looks_random

__all__ = ["Ranking", "ReadEntry"]

T = TypeVar("T")

ReadEntry = Callable[[str], Coroutine[Any, Any, Entry | None]]
"""Reads the envelope of the checkpoint kept under a name; ``None`` when there is no such checkpoint."""

_AT_ONCE = 8  # envelopes read side by side
_GHOST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    id: str | None
    again: bool
    place: int


class Ranking:
    """What one leaf has learned of the order of ids. Safe to use from several threads."""

    def __init__(self, clock: Clock, *, arrival_hint: bool, remember: int = 100_000) -> None:
        self._arrival_hint = arrival_hint
        self._known: LRUCache[tuple[Hashable, str], str | None] = LRUCache(remember)
        self._ghosts: TTLCache[tuple[Hashable, str], bool] = TTLCache(4096, _GHOST_SECONDS, clock.monotonic)
        self._again: LRUCache[tuple[Hashable, str], bool] = LRUCache(4096)
        self._torn: LRUCache[tuple[Hashable, str], bool] = LRUCache(4096)
        self._missed: LRUCache[tuple[Hashable, str], bool] = LRUCache(4096)
        self._lock = Lock()

    def learn(self, thread: Hashable, entry: Entry) -> None:
        """Note where a checkpoint stands: this process saved it or read its envelope."""
        with self._lock:
            self._ghosts.pop((thread, entry.id), None)
            self._missed.pop((thread, entry.id), None)
            if looks_random(entry.id) and not is_stamp(entry.id):
                self._known[thread, entry.id] = entry.stamp

    def knows(self, thread: Hashable, checkpoint_id: str) -> bool:
        """Whether this process has saved or read this generated id before."""
        with self._lock:
            return (thread, checkpoint_id) in self._known

    def stands(self, thread: Hashable, entry: Entry) -> bool:
        """Whether this generated id is known with exactly this stamp: saving it so once more changes no order."""
        with self._lock:
            return entry.stamp is not None and self._known.get((thread, entry.id)) == entry.stamp

    def forget(self, thread: Hashable, checkpoint_id: str) -> None:
        """Note that a checkpoint was deleted."""
        with self._lock:
            self._known.pop((thread, checkpoint_id), None)
            self._again.pop((thread, checkpoint_id), None)
            self._torn.pop((thread, checkpoint_id), None)
            self._missed.pop((thread, checkpoint_id), None)

    def note_torn(self, thread: Hashable, checkpoint_id: str) -> None:
        """Note that the metadata of a checkpoint may tell of another save than its state: a crash in between."""
        with self._lock:
            self._torn[thread, checkpoint_id] = True

    def only_state_tells(self, thread: Hashable, checkpoint_id: str) -> bool:
        """Whether not the metadata but only the state of this checkpoint is to be asked for its place."""
        with self._lock:
            return any((thread, checkpoint_id) in each for each in (self._torn, self._missed, self._ghosts))

    def miss(self, thread: Hashable, checkpoint_id: str) -> None:
        """Note that an id does not load: where it is listed, its state is asked for before that is believed.

        Perhaps it is just not saved here yet: whoever asks may know it from elsewhere.
        """
        with self._lock:
            self._missed[thread, checkpoint_id] = True

    def absent(self, thread: Hashable, checkpoint_id: str) -> None:
        """Note that an id was listed, and then was not there: its index outlives it.

        A generated one is left out for a while. A name may be saved again at any time, or is being saved and was listed
        a moment too early: it is asked for every time, until it is there.
        """
        with self._lock:
            if looks_random(checkpoint_id):
                self._ghosts[thread, checkpoint_id] = True
            else:
                self._missed[thread, checkpoint_id] = True

    def saved_again(self, thread: Hashable, checkpoint_id: str) -> bool:
        """Whether a marker for this id was seen or written."""
        with self._lock:
            return bool(self._again.get((thread, checkpoint_id), False))

    def note_again(self, thread: Hashable, checkpoint_id: str) -> None:
        """Note that a marker for this id was written."""
        with self._lock:
            self._again[thread, checkpoint_id] = True
            self._known.pop((thread, checkpoint_id), None)

    async def order(self, thread: Hashable, names: Iterable[str], read: ReadEntry) -> list[Entry]:
        """The entries behind ``names`` (as the backend lists them), newest first.

        Checkpoints without a stamp come below all others, in the backend's order.
        """
        found = self._named(thread, names)
        newest = max((n.id for n in found if n.id is not None and is_stamp(n.id)), default=None)
        newest_place = next((n.place for n in found if n.id == newest), -1)
        placed: list[tuple[_Named, Entry]] = []
        unread: list[_Named] = []
        for named in found:
            entry = self._placed(thread, named, newest_place)
            if entry is None:
                unread.append(named)
            else:
                placed.append((named, entry))
        for start in range(0, len(unread), _AT_ONCE):
            batch = unread[start : start + _AT_ONCE]
            for named, read_entry in zip(batch, await _all_of([read(n.name) for n in batch]), strict=True):
                if read_entry is not None:
                    placed.append((named, read_entry))
                    if not named.again:
                        self.learn(thread, read_entry)
                elif named.id is not None:
                    self.absent(thread, named.id)
        stamped = [(entry.stamp, entry) for _, entry in placed if entry.stamp is not None]
        stamped.sort(key=lambda pair: pair[0], reverse=True)
        plain = sorted((named.place, entry) for named, entry in placed if entry.stamp is None)
        return _once([entry for _, entry in stamped] + [entry for _, entry in plain])

    def _named(self, thread: Hashable, names: Iterable[str]) -> list[_Named]:
        listed = list(names)
        again = {marked for name in listed if (marked := marked_name(name)) is not None}
        found = []
        with self._lock:
            for place, name in enumerate(listed):
                if marked_name(name) is not None:
                    continue
                checkpoint_id = IdRule.decode(name)
                if checkpoint_id is not None:
                    if (thread, checkpoint_id) in self._ghosts:
                        continue
                    if name in again:
                        self._again[thread, checkpoint_id] = True
                found.append(_Named(name, checkpoint_id, name in again, place))
        return found

    def _placed(self, thread: Hashable, named: _Named, newest_place: int) -> Entry | None:
        """Its entry where that is known without reading."""
        if named.id is None or named.again:
            return None
        if self._arrival_hint and named.place < newest_place:
            # A backend that prunes keeps no markers, but its own order is that of arrival: what it lists above
            # the greatest stamp may have been saved again.
            return None
        with self._lock:
            if (thread, named.id) in self._missed:
                return None
            if is_stamp(named.id):
                return Entry(named.id, named.id)
            if looks_random(named.id) and (thread, named.id) in self._known:
                return Entry(named.id, self._known[thread, named.id])
        return None


async def _all_of(reads: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of ``reads``, made side by side; when one fails, none goes on behind our back."""
    tasks = [asyncio.ensure_future(read) for read in reads]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _once(entries: list[Entry]) -> list[Entry]:
    """Each id once, at its newest place."""
    seen: set[str] = set()
    result = []
    for entry in entries:
        if entry.id not in seen:
            seen.add(entry.id)
            result.append(entry)
    return result
