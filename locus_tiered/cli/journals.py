"""Write-behind journals: what lies in them on the disk, read without taking anything over; and what a flush left."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from locus_tiered.cli.answers import Journal
from locus_tiered.cli.opening import Opened, journals
from locus_tiered.cli.text import one_line

__all__ = ["after_flush", "on_disk", "pending_note", "rows_pending"]


def on_disk(opened: Opened) -> list[Journal]:
    """Per write-behind layer, the rows that lie in its directory, of whichever process."""
    return [_sum(layer.name, Path(layer.journal)) for layer in journals(opened.layer)]


def after_flush(opened: Opened) -> list[Journal]:
    """What each write-behind layer of this process still owes, and what lies in journals of processes that live."""
    found = []
    for layer, disk in zip(journals(opened.layer), on_disk(opened), strict=True):
        owed = layer.pending()
        error = owed.last_error or owed.poisoned
        found.append(
            Journal(
                name=layer.name,
                rows=owed.rows,
                bytes=owed.bytes,
                oldest_age=owed.oldest_age,
                dead_letters=owed.dead_letters,
                last_error=None if error is None else one_line(error, 300),
                others=max(0, disk.rows - owed.rows),
            )
        )
    return found


def rows_pending(opened: Opened) -> int:
    """How many rows lie in journals, where the commands that look do not see them."""
    return sum(journal.rows for journal in on_disk(opened))


def pending_note(rows: int) -> str:
    """What to say of them; nothing when there are none."""
    return f"{rows:,} rows lie in journals and are not shown: flush sends them." if rows else ""


def _sum(name: str, path: Path) -> Journal:
    from locus_tiered.stores.journal_folder import FILE

    rows = size = dead = 0
    oldest: float | None = None
    for file in sorted(path.glob(f"*/{FILE}")) if path.is_dir() else []:
        if file.parent.name.startswith("."):
            continue
        for kind, weight, saved_at in _rows(file):
            if kind == "dead":
                dead += 1
                continue
            rows, size = rows + 1, size + weight
            oldest = saved_at if oldest is None else min(oldest, saved_at)
    age = None if oldest is None else max(0.0, time.time() - oldest)
    return Journal(name=name, rows=rows, bytes=size, oldest_age=age, dead_letters=dead)


def _rows(file: Path) -> Iterator[tuple[str, int, float]]:
    """Kind, size and time of every row that can be read; a journal that cannot be is for its owner to judge."""
    from locus_tiered.stores.journal_rows import RowDamaged, decode_head

    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)) as connection:
            for table in ("rows", "dead"):
                query = f"SELECT seq, head, head_check, attempted FROM {table}"
                for seq, head, check, attempted in connection.execute(query):
                    try:
                        row = decode_head(seq, head, check, attempted)
                    except (RowDamaged, ValueError, KeyError, TypeError):
                        continue
                    yield table, row.size, row.saved_at
    except sqlite3.Error:
        return
