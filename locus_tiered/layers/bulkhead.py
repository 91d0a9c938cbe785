"""The bulkhead: so many calls of a member at once, so many waiting, the others are turned away at once.

A call waits for a place, or in line for the calls of its thread before it; a free place counts as one more that may
wait in line.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Bulkhead", "Full"]


class Full(Exception):
    """Too many calls wait already."""


class Bulkhead:
    """The places of one event loop, first come, first served."""

    def __init__(self, places: int, waiting: int) -> None:
        self._places, self._most_waiting = places, waiting
        self.running = 0
        self._lined_up = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a place, or for the calls of their thread before them."""
        return len(self._queue) + self._lined_up

    @property
    def full(self) -> bool:
        """Whether the next call would be turned away."""
        return self.running + self.waiting >= self._places + self._most_waiting

    def line_up(self) -> None:
        """Wait for the calls of one's thread first; raises :class:`Full` at once when too many wait."""
        if self.full:
            raise Full
        self._lined_up += 1

    def leave_line(self) -> None:
        """One's turn has come, or one goes away."""
        self._lined_up -= 1

    async def enter(self) -> None:
        """Take a place, or wait for one; raises :class:`Full` at once when too many wait."""
        if self.running < self._places and not self._queue:
            self.running += 1
            return
        if self.full:
            raise Full
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave()  # the place was given already: pass it on
            elif future in self._queue:  # leave() may have passed it over
                self._queue.remove(future)
            raise

    def leave(self) -> None:
        """Give the place to the next in the queue, or free it."""
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.running -= 1
