"""How long write-behind keeps everything else in the event loop waiting, with large states.

As in ``event_loop.py``. A save is acknowledged by the journal; *from the journal* is a load of what is pending, and
*sent* is all that the background does to bring one save to the far store. Home is a directory: what a foreign home
does in the loop itself is in the rows above.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from locus.memory.backends.file import FileCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.rows.event_loop import MESSAGES, Stall, Ticker
from locus_tiered.bench.states import conversation, encoded_size
from locus_tiered.bench.timing import percentile
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.directory import DirectoryCheckpointer

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]

_STEPS = ("save", "from the journal", "sent")


def _p99(stalls: Sequence[Stall]) -> float:
    return percentile([stall.process for stall in stalls], 0.99)


async def _round(directory: Path, rounds: int) -> dict[str, list[Stall]]:
    """The stalls of every step, and of the SDK's save and load."""
    state = conversation(MESSAGES)
    alone = FileCheckpointer(directory / "file")
    behind = WriteBehindCheckpointer(
        DirectoryCheckpointer(directory / "home"), journal=directory / "journal", ack="journal", exclusive=True
    )
    found: dict[str, list[Stall]] = {step: [] for step in (*_STEPS, "alone save", "alone load")}
    await behind.exists("thread")  # opens the journal
    async with Ticker() as ticker:
        for _ in range(rounds):
            gc.collect()
            found["alone save"].append(await ticker.during(lambda: alone.save(state, "thread")))
            found["alone load"].append(await ticker.during(lambda: alone.load("thread")))
            found["save"].append(await ticker.during(lambda: behind.save(state, "thread")))
            found["from the journal"].append(await ticker.during(lambda: behind.load("thread")))
            found["sent"].append(await ticker.during(behind.flush))
            await alone.delete("thread")
            await behind.delete("thread")
            await behind.flush()
    await behind.close()
    return found


async def measure(settings: Settings) -> list[Figure]:
    """Each step, beside what ``FileCheckpointer`` does for the same."""
    gc.disable()
    try:
        found = await _round(settings.directory, settings.pick(100, 3))
    finally:
        gc.enable()
    size = encoded_size(conversation(MESSAGES))
    figures = []
    for step, alone in zip(_STEPS, ("alone save", "alone load", "alone save"), strict=True):
        ours, theirs = found[step], found[alone]
        figures.append(
            Figure(
                what=f"{step} : File",
                unit="ms",
                against="FileCheckpointer",
                sdk=_p99(theirs),
                stack=_p99(ours),
                ratio=_p99(ours) / _p99(theirs),
                budget=Budget("value", 5),
                details={
                    "bytes": size,
                    "calls": len(ours),
                    "p50": percentile([stall.process for stall in ours], 0.5),
                    "p99_wall": percentile([stall.wall for stall in ours], 0.99),
                    "sdk_p99_wall": percentile([stall.wall for stall in theirs], 0.99),
                },
            )
        )
    return figures
