"""What can still be read of a journal's file that is not in order.

Rows are looked for from both ends of each table, as far as their places only rise (or fall): what is out of order may
have been dropped long ago. Every row that is found proves itself by its checks. A first page that is not what every
journal begins with is written anew; the old one is kept beside the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from locus_tiered.stores.journal_file import NewRow
from locus_tiered.stores.journal_folder import Seat
from locus_tiered.stores.journal_pages import Misplaced, check_header
from locus_tiered.stores.journal_rows import RowDamaged, check_of, decode_head
from locus_tiered.stores.journal_schema import PAGE, FileDamaged, first_page, reading

__all__ = ["Readable", "readable_rows"]

_WRONG = (RowDamaged, FileDamaged, ValueError, KeyError, TypeError, OverflowError, sqlite3.Error)


class Readable:
    """The rows of a broken file, in order; ``damaged`` counts those that are not what was written, as they are read."""

    def __init__(self, connection: sqlite3.Connection | None, home: str | None) -> None:
        self.damaged = 0
        self._connection, self._home = connection, home

    def __iter__(self) -> Iterator[NewRow]:
        for seq, table in sorted((seq, each) for each in ("rows", "dead") for seq in self._places(each)):
            try:
                yield self._row(table, seq)
            except _WRONG:
                self.damaged += 1

    def _places(self, table: str) -> list[int]:
        first = self._rising(f"SELECT seq FROM {table} ORDER BY seq ASC", 1)
        last = self._rising(f"SELECT -seq FROM {table} ORDER BY seq DESC", -(1 << 63))
        return sorted({*first, *(-seq for seq in last if -seq > 0)})

    def _rising(self, query: str, least: int) -> list[int]:
        found: list[int] = []
        if self._connection is not None:
            with suppress(sqlite3.Error):
                for (seq,) in self._connection.execute(query):
                    if seq < least:
                        self.damaged += 1
                        break
                    found.append(seq)
                    least = seq + 1
        return found

    def _row(self, table: str, seq: int) -> NewRow:
        assert self._connection is not None
        error = "NULL" if table == "rows" else "error"
        columns = f"attempted, head, head_check, origin, metadata, body, body_check, {error}"
        found = self._connection.execute(f"SELECT {columns} FROM {table} WHERE seq = ?", (seq,)).fetchone()
        if found is None:
            raise RowDamaged("it cannot be found")
        attempted, head, head_check, origin, metadata, body, check, why = found
        row = decode_head(seq, head, head_check, attempted, self._home)
        if row.kind == "save" and check != check_of(metadata or b"", body):
            raise RowDamaged("its state is not what was written (checksum)")
        row.error = None if table == "rows" else str(why)
        return NewRow(row, metadata, body, check, None if origin is None else str(origin))


@contextmanager
def readable_rows(seat: Seat, home: str | None) -> Iterator[Readable]:
    """The rows of a broken file that belong to the far store called ``home`` (``None``: whosever they are)."""
    connection = _connection(seat.file)
    try:
        yield Readable(connection, home)
    finally:
        if connection is not None:
            connection.close()


def _connection(file: Path) -> sqlite3.Connection | None:
    with suppress(Misplaced, *_WRONG):
        check_header(file)
        return reading(file)
    _renew_first_page(file)
    with suppress(*_WRONG):
        return reading(file)
    return None


def _renew_first_page(file: Path) -> None:
    with file.open("r+b") as opened:
        old = opened.read(PAGE)
        (file.parent / "first-page").write_bytes(old)
        opened.seek(0)
        opened.write(first_page(max(1, file.stat().st_size // PAGE)))
