"""What is pending in a journal, by thread, as this process knows it: heads only, states stay on the disk.

Safe to use from several threads. A *claim* keeps two event loops, or two layers, from sending one thread's rows
at a time; the claim of a loop that was closed is void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import RLock
from typing import Protocol

from locus_tiered.stores.journal_rows import PendingRow

__all__ = ["Claimant", "PendingIndex"]


class Claimant(Protocol):
    """Who sends the rows of a thread: one layer in one event loop, which may have been closed."""

    def is_closed(self) -> bool: ...


class PendingIndex:
    """The rows of one journal in the order in which they are to be sent, per thread."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.bytes = 0
        self.rows = 0
        self._threads: dict[str, list[PendingRow]] = {}
        self._ages: dict[PendingRow, None] = {}  # unsent ones, the oldest first
        self._dead: set[PendingRow] = set()
        self._claims: dict[str, Claimant] = {}

    @property
    def dead(self) -> int:
        """How many rows can never be applied."""
        return len(self._dead)

    def add(self, key: str, row: PendingRow) -> None:
        """Note a row that is on the disk, behind those that are there."""
        with self.lock:
            self._threads.setdefault(key, []).append(row)
            self._count(row, 1)

    def remove(self, key: str, row: PendingRow) -> bool:
        """Note that a row is done with; answers whether it was still there."""
        with self.lock:
            rows = self._threads.get(key)
            if rows is None or row not in rows:
                return False
            rows.remove(row)
            if not rows:
                del self._threads[key]
            self._count(row, -1)
            return True

    def bury(self, row: PendingRow, error: str) -> None:
        """Note that a row can never be applied."""
        with self.lock:
            if row in self._ages:
                self._count(row, -1)
                row.error = error
                self._count(row, 1)

    def revive(self, row: PendingRow) -> None:
        """Note that a dead letter is to be tried again."""
        with self.lock:
            if row in self._dead:
                self._count(row, -1)
                row.error = None
                self._count(row, 1)

    def _count(self, row: PendingRow, sign: int) -> None:
        if row.error is None:
            self.rows += sign
            self.bytes += sign * row.size
            if sign > 0:
                self._ages[row] = None
            else:
                self._ages.pop(row, None)
        elif sign > 0:
            self._dead.add(row)
        else:
            self._dead.discard(row)

    # -- looking -------------------------------------------------------------------------------------

    def of(self, key: str) -> tuple[PendingRow, ...]:
        """A thread's rows in order, dead letters too, and those whose cancelling is not committed yet."""
        with self.lock:
            return tuple(self._threads.get(key, ()))

    def unsent(self, key: str) -> list[PendingRow]:
        """A thread's rows that are still to be sent, in order."""
        return [row for row in self.of(key) if row.error is None and not row.doomed]

    def threads(self) -> list[str]:
        """The threads that have rows."""
        with self.lock:
            return list(self._threads)

    def all(self) -> list[PendingRow]:
        """Every row, in the order in which they were acknowledged."""
        with self.lock:
            return sorted((row for rows in self._threads.values() for row in rows), key=lambda row: row.seq)

    def oldest(self, sendable: Callable[[PendingRow], bool] = lambda row: True) -> float | None:
        """When the oldest row that is still to be sent, and can be, was acknowledged, in monotonic seconds."""
        with self.lock:
            return next((row.since for row in self._ages if sendable(row)), None)

    def hasten(self, due: float, key: str | None = None) -> None:
        """Have the rows of a thread (``None``: all) be due at ``due`` at the latest."""
        with self.lock:
            for row in self._ages if key is None else self._threads.get(key, ()):
                row.due = min(row.due, due)

    def next_due(self, key: str) -> float | None:
        """When the first of a thread's unsent rows is due, in monotonic seconds."""
        with self.lock:
            return min((row.due for row in self._threads.get(key, ()) if row.error is None), default=None)

    # -- cancelling and sending ----------------------------------------------------------------------

    def doom(self, rows: Iterable[PendingRow]) -> list[PendingRow]:
        """Keep those of ``rows`` from being sent that are not on their way already; answers which."""
        with self.lock:
            caught = [row for row in rows if not row.in_flight]
            for row in caught:
                row.doomed = True
            return caught

    def spare(self, rows: Iterable[PendingRow]) -> None:
        """They were not cancelled after all."""
        with self.lock:
            for row in rows:
                row.doomed = False

    def start(self, row: PendingRow) -> bool:
        """Take a row to send it; ``False`` when it is being cancelled or gone."""
        with self.lock:
            if row.doomed or row.error is not None:
                return False
            row.in_flight = True
            return True

    def claim(self, key: str, who: Claimant) -> bool:
        """Have ``who`` be the one that sends the thread's rows."""
        with self.lock:
            holder = self._claims.get(key)
            if holder is not None and holder is not who and not holder.is_closed():
                return False
            if holder is not who:
                for row in self._threads.get(key, ()):
                    row.in_flight = False  # what a closed loop was sending, nobody sends any more
            self._claims[key] = who
            return True

    def let_go(self, key: str) -> None:
        """End a claim."""
        with self.lock:
            self._claims.pop(key, None)
