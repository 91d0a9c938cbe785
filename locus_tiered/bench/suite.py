"""The rows of the benchmark, in the order of the table, and how they are run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from locus_tiered.bench.figures import Figure
from locus_tiered.bench.rows import (
    directory_load,
    event_loop,
    far_away,
    journal,
    layer_cost,
    memory_growth,
    recovery,
    replication,
    stalls_behind,
    tracing,
    turns,
    warm_load,
)

__all__ = ["ROWS", "Row", "Settings", "measure"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How thoroughly to measure, and where files may be put (removed afterwards)."""

    quick: bool
    directory: Path

    def pick(self, full: int, quick: int) -> int:
        """One of two amounts of work."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """A topic of the table: ``key`` for ``--only`` and the JSON, ``title`` for readers."""

    key: str
    title: str
    measure: Callable[[Settings], Awaitable[list[Figure]]]


ROWS: tuple[Row, ...] = (
    Row("turn", "One turn, 10 tool calls, S3", turns.measure),
    Row("late", "Same turn, answers 20 ms late", far_away.measure),
    Row("journal", "Journal, saves of 6 KB", journal.measure),
    Row("recovery", "10,000 pending saves of 60 KB", recovery.measure),
    Row("warm", "Load, 100 messages, in memory", warm_load.measure),
    Row("directory", "Load the latest, long thread", directory_load.measure),
    Row("layer", "One pass-through layer", layer_cost.measure),
    Row("traced", "One traced layer", tracing.measure),
    Row("loop", "Loop stalls, 1 MB states, p99", event_loop.measure),
    Row("behind", "Same, written behind", stalls_behind.measure),
    Row("replication", "Three replicas", replication.measure),
    Row("memory", "Process growth, 10 KB saves", memory_growth.measure),
)


def measure(row: Row, *, quick: bool) -> list[Figure]:
    """Measure one row, in an event loop and a directory of its own."""

    async def run(settings: Settings) -> list[Figure]:
        return await row.measure(settings)

    with tempfile.TemporaryDirectory(prefix="locus-bench-") as directory:
        return asyncio.run(run(Settings(quick, Path(directory))))
