"""How fast the journal takes saves, beside the least that could be done: append to a file and sync it.

:class:`BareLog` works on the journal's own kind of thread, with its group commit and its way of handing answers over
to asyncio; it keeps bytes, and could neither find nor drop a row, nor notice damage. Both have their files in the same
directory. What stamping, encoding and the layer's bookkeeping cost on top is in the lines of a whole save.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import encoded_size, text_state
from locus_tiered.bench.timing import interleave
from locus_tiered.core.clock import SYSTEM
from locus_tiered.core.stamp import StampClock
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.journal import Journal
from locus_tiered.stores.journal_file import Changes, JournalFile, NewRow
from locus_tiered.stores.journal_rows import HEAD_OVERHEAD, PendingRow
from locus_tiered.stores.journal_thread import JournalThread

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["BareLog", "measure"]

_STATE_BYTES = 6000
_ALLOWED = {1: 1 / 0.6, 64: 1 / 0.35}  # of the bare log's time, by writers


class _LogFile(JournalFile):
    """Records behind each other, each with its length."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def commit(self, batch: Iterable[Changes]) -> None:
        records = [new.body or b"" for changes in batch for new in changes.add]
        os.writev(self._file, [part for record in records for part in (len(record).to_bytes(8, "little"), record)])
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class BareLog:
    """Append and ``fdatasync``, all who wait in one go, on a thread as the journal's. No checks, no reads."""

    def __init__(self, path: Path) -> None:
        self._thread = JournalThread(lambda: _LogFile(path))
        self._row = PendingRow(0, "save", "", "", "")

    async def append(self, record: bytes) -> None:
        """Return when the record is on the disk."""
        await self._thread.commit(Changes(add=[NewRow(self._row, body=record)]))

    async def close(self) -> None:
        """End the thread."""
        await self._thread.stop(lambda file: file.close())


def _by(writers: int, saves: int, save: Callable[[str], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """So many saves by so many writers side by side, each in a thread of its own."""

    async def writer(thread: str) -> None:
        for _ in range(saves // writers):
            await save(thread)

    async def all_of_them() -> None:
        await asyncio.gather(*(writer(f"thread-{number}") for number in range(writers)))

    return all_of_them


async def measure(settings: Settings) -> list[Figure]:
    """A save's share of the time, by one writer and by 64; then the whole layer, for comparison."""
    log = BareLog(settings.directory / "log")
    journal = await Journal.attach(settings.directory / "journal", None, SYSTEM, settings)
    layer = WriteBehindCheckpointer(
        MemoryCheckpointer(), journal=settings.directory / "layer", ack="journal", exclusive=True
    )
    state = text_state(_STATE_BYTES, 1)
    body = state.model_dump_json().encode()
    stamp = StampClock(SYSTEM).issue("thread")

    async def append(thread: str) -> None:
        row = PendingRow(0, "save", thread, stamp, stamp, saved_at=SYSTEM.wall(), size=len(body) + HEAD_OVERHEAD)
        await journal.append(row, {}, body)

    async def emptied() -> None:
        await journal.drop(journal.index.all())
        await layer.flush()

    figures = []
    for writers, most in _ALLOWED.items():
        saves = settings.pick(128, 64) if writers > 1 else settings.pick(40, 10)
        rounds = await interleave(
            {
                "log": _by(writers, saves, lambda _: log.append(body)),
                "journal": _by(writers, saves, append),
                "layer": _by(writers, saves, lambda thread: layer.save(state, thread)),
            },
            rounds=settings.pick(31, 2),
            calls=1,
            between=emptied,
        )
        for name, what, budget in (
            ("journal", "journal", Budget("ratio", round(most, 2))),
            ("layer", "save", None),
        ):
            figures.append(
                Figure(
                    what=f"{writers} writer{'s' * (writers > 1)}, {what} : bare log",
                    unit="us",
                    against="append and fdatasync in groups",
                    sdk=rounds.median("log") / saves * 1e6,
                    stack=rounds.median(name) / saves * 1e6,
                    ratio=rounds.ratio(name, "log"),
                    difference=rounds.difference(name, "log") / saves * 1e6,
                    budget=budget,
                    details={
                        "writers": writers,
                        "bytes": encoded_size(state),
                        "saves_per_second": saves / rounds.median(name),
                        "sdk_saves_per_second": saves / rounds.median("log"),
                    },
                )
            )
    await layer.close()
    await journal.drop(journal.index.all())
    await journal.detach(settings)
    await log.close()
    return figures
