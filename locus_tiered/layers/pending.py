"""What a thread looks like with the operations that the far store has not heard of yet laid over it.

Pure functions: the far store's answer and the pending rows in, the answer for the caller out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from locus_tiered.core.checkpoint import Entry
from locus_tiered.stores.journal_rows import PendingRow

__all__ = ["last_word", "newest_first", "overlay"]


def overlay(far: Iterable[Entry], rows: Iterable[PendingRow]) -> list[Entry]:
    """A thread's checkpoints, newest first, after ``rows``. What another process saved after a delete stays."""
    entries = {entry.id: entry for entry in far}
    for row in rows:
        if row.kind == "save":
            entries.pop(row.entry.id, None)
            entries[row.entry.id] = row.entry
        elif row.kind == "delete" and row.id is None:
            entries = {key: entry for key, entry in entries.items() if outlives(entry, row)}
        elif row.kind == "delete" and row.id in entries and not outlives(entries[row.id], row):
            del entries[row.id]
    return newest_first(entries.values())


def outlives(entry: Entry, delete: PendingRow) -> bool:
    """Whether a checkpoint was saved after this delete was acknowledged."""
    return entry.stamp is not None and entry.stamp > delete.stamp


def newest_first(entries: Iterable[Entry]) -> list[Entry]:
    """By stamps; those without one come last, in the order in which they are given."""
    listed = list(entries)
    stamped = [entry for entry in listed if entry.stamp is not None]
    stamped.sort(key=lambda entry: entry.stamp or "", reverse=True)
    return stamped + [entry for entry in listed if entry.stamp is None]


def last_word(rows: Sequence[PendingRow], checkpoint_id: str) -> PendingRow | None:
    """The last of ``rows`` that decides about this id; ``None``: the far store does."""
    for row in reversed(rows):
        if row.id == checkpoint_id or (row.id is None and row.kind == "delete"):
            return row
    return None
