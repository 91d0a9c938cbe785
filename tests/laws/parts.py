"""Small parts for the tests of the laws: states, skewed clocks, stacks over a faulty home."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, TieredCheckpointer
from locus_tiered.core.clock import Clock

ITERATIONS = "_locus_iteration_checkpoints"


def state(number: int, **metadata: Any) -> AgentState:
    """A state that is told from others by its ``iteration``."""
    return AgentState(messages=(Message.user(f"message {number}"),), iteration=number, metadata=metadata)


class ManualClock:
    """Time that stands still until it is moved."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self.now = wall
        self._random = itertools.count(1)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def clock(self, skew: float = 0.0) -> Clock:
        return Clock(
            wall=lambda: self.now + skew,
            monotonic=lambda: self.now,
            sleep=self.sleep,
            random_bits=lambda bits: next(self._random) % (1 << bits),
        )


def stack(home: BaseCheckpointer, path: Path | None = None, **options: Any) -> TieredCheckpointer:
    """memory -> home, or memory -> directory -> home."""
    near = [] if path is None else [DirectoryCheckpointer(path, durability="process")]
    return TieredCheckpointer(BoundedMemoryCheckpointer("8MiB"), *near, home, **options)


async def latest(checkpointer: BaseCheckpointer, thread: str = "t") -> int | None:
    """The ``iteration`` of the newest state."""
    found = await checkpointer.load(thread)
    return None if found is None else found.iteration
