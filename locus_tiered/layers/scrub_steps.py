"""How a comparison of one thread goes on beside those who change the thread, and what it remembers meanwhile.

Only the listing is done while nobody in this process changes the thread. What is saved or deleted while it is mended
is neither undone nor missed: a replica's own lane puts a copy before or after it, what this process has deleted is
known to it, and the thread is listed again until there is nothing left to copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.tombstones import Names

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["MOST_ROUNDS", "Rounds", "is_under_way", "paced", "side_by_side"]

T = TypeVar("T")

MOST_ROUNDS = 4
"""After so many rounds it ends: somebody saves faster than we copy."""
_UNDER_WAY = 3600.0
"""Seconds that nothing is on its way to a replica for longer than."""


@dataclass(slots=True)
class Rounds:
    """What is remembered of a thread from one round of its comparison to the next."""

    names: Names = frozenset()
    """Of all tombstones, where somebody has listed them."""
    number: int = 0
    is_last: bool = False
    newest: str | None = None
    """The greatest stamp in the first round. What is above that is still on its way to some, or a hint."""
    silent: set[Replica] = field(default_factory=set)
    """Replicas that could not tell what they hold; they are not asked again."""
    changed: set[Replica] = field(default_factory=set)
    tried: set[Entry] = field(default_factory=set)
    """What was copied or deleted, or could not be."""
    lasting: set[Entry] = field(default_factory=set)
    """What was read and is no step of a turn."""
    unfound: set[Entry] = field(default_factory=set)
    """What was listed, and then nobody had an intact copy of it."""

    def is_news(self, entry: Entry) -> bool:
        """Whether it was saved since the comparison began: who saves it sees to it that all have it."""
        return self.newest is not None and (entry.stamp or "") > self.newest


def is_under_way(owner: ReplicatedCheckpointer, entry: Entry) -> bool:
    """Whether somebody may just be saving it, so that others will have it in a moment who had not when they were asked.

    A replica is fenced when it was away for days: what is an hour old was not saved before that.
    """
    return entry.stamp is not None and owner._clock.wall() - stamp_seconds(entry.stamp) < _UNDER_WAY


async def paced(owner: ReplicatedCheckpointer, work: Awaitable[T]) -> T:
    """Do a piece of work; while anything is changed anywhere, all of them take half of the time."""
    began = owner._clock.monotonic()
    result = await work
    await owner._give_way(owner._clock.monotonic() - began)
    return result


async def side_by_side(
    count: int, work: Callable[[int], Coroutine[Any, Any, None]], *, at_once: int, done: Callable[[int], None]
) -> None:
    """Do pieces of work, so many at once. ``done`` hears of each, in order: when all before it are done as well.

    What fails, or is cancelled, ends those that are under way too.
    """
    under_way: dict[asyncio.Task[None], int] = {}
    finished: set[int] = set()
    begun = told = 0
    try:
        while told < count:
            while begun < count and len(under_way) < at_once:
                under_way[asyncio.ensure_future(work(begun))] = begun
                begun += 1
            ended, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
                finished.add(under_way.pop(task))
            while told in finished:
                done(told)
                told += 1
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
