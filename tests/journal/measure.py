"""How long a journal of many rows takes to open, and what it costs in memory: ``python -m tests.journal.measure``.

Prints figures and asserts nothing; arguments: rows (10000), bytes of a state (60000).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from locus_tiered.core.clock import SYSTEM
from locus_tiered.stores.journal import Journal
from tests.journal.parts import HOME, Former, append, body, new, row, seats


def rss() -> float:
    return psutil.Process().memory_info().rss / 2**20


async def pending(path: Path, count: int, size: int) -> None:
    """Many rows acknowledged by one process, all of them pending; then closed, and opened again."""
    journal = await Journal.attach(path, HOME, SYSTEM, "warm")
    await append(journal, 1, size)
    before, begin = rss(), time.perf_counter()
    for start in range(2, count + 1, 64):
        numbers = range(start, min(start + 64, count + 1))
        await asyncio.gather(*(journal.append(row(each), {"number": each}, body(each, size)) for each in numbers))
    seconds = time.perf_counter() - begin
    print(f"{count} rows of {size} bytes appended by 64 at a time: {seconds:.2f} s, {count / seconds:.0f} per second")
    print(f"memory: {rss() - before:+.1f} MiB with {journal.pending().rows} rows pending (start: {before:.1f} MiB)")
    await journal.detach("warm")
    begin = time.perf_counter()
    journal = await Journal.attach(path, HOME, SYSTEM, "again")
    print(f"opened again after close(): {time.perf_counter() - begin:.2f} s, {journal.pending().rows} rows")
    await journal.detach("again")


async def killed(path: Path, count: int, size: int) -> None:
    """The same journal as a killed process leaves it, with a full log, and a smaller one beside it."""
    former = Former(path)
    for number in range(count + 1, count + 301):
        former.commit(new(number, size))
    former.die()
    assert len(seats(path)) == 2
    before, begin = rss(), time.perf_counter()
    journal = await Journal.attach(path, HOME, SYSTEM, "third")
    seconds = time.perf_counter() - begin
    print(
        f"opened with another process's 300 rows adopted: {seconds:.2f} s, {journal.pending().rows} rows, "
        f"memory {rss() - before:+.1f} MiB"
    )
    begin = time.perf_counter()
    rows = journal.index.all()
    for start in range(0, len(rows), 256):
        await journal.drop(rows[start : start + 256])
    print(f"all dropped by 256 at a time: {time.perf_counter() - begin:.2f} s")
    await journal.detach("third")


def main() -> None:
    count, size = (int(each) for each in [*sys.argv[1:], "10000", "60000"][:2])
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(pending(Path(temporary), count, size))
        asyncio.run(killed(Path(temporary), count, size))


if __name__ == "__main__":
    main()
