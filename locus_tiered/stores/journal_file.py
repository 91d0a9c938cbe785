"""The journal's SQLite file, as plain calls that block; all of one file come from one thread.

SQLite in WAL mode with ``synchronous=FULL``: a transaction that was committed has been fsynced and survives a
power cut (sqlite.org/pragma.html#pragma_synchronous). Pages of 32 KiB keep a usual state in one of them. Columns that
are read when a journal is opened stand before the state, whose overflow pages are then left alone.

Version 1 of the file::

    meta(key, value)                                                    version, home
    rows(seq, attempted, head, head_check, origin, metadata, body, body_check)   what is pending, in order
    dead(like rows, and error, failed_at)                               what can never be applied

``origin`` names the journal and the row that a row was adopted from, so that an adoption that was cut short is
taken up again without doubling anything.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locus_tiered.core.errors import JournalError, shorten
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged, check_of, decode_head, encode_head

__all__ = ["VERSION", "Changes", "JournalFile", "NewRow", "Recovered", "connect"]

VERSION = 1
_ATTEMPTED = 0x5A5A5A
_LOG_PAGES = 512  # 16 MiB of log, then its pages go back into the file
_COLUMNS = "seq, attempted, head, head_check, origin, metadata, body, body_check"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows(seq INTEGER PRIMARY KEY, attempted INTEGER NOT NULL, head BLOB NOT NULL,
    head_check BLOB NOT NULL, origin TEXT UNIQUE, metadata BLOB, body BLOB, body_check BLOB);
CREATE TABLE IF NOT EXISTS dead(seq INTEGER PRIMARY KEY, attempted INTEGER NOT NULL, head BLOB NOT NULL,
    head_check BLOB NOT NULL, origin TEXT UNIQUE, metadata BLOB, body BLOB, body_check BLOB,
    error TEXT NOT NULL, failed_at REAL NOT NULL);
INSERT OR IGNORE INTO meta VALUES('version', '{VERSION}');
"""

Connect = Callable[[Path], sqlite3.Connection]


def connect(path: Path) -> sqlite3.Connection:
    """The one connection to a journal's file."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    for pragma in ("page_size=32768", "journal_mode=WAL", "synchronous=FULL", f"wal_autocheckpoint={_LOG_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be written, with the state of a save."""

    row: PendingRow
    metadata: Mapping[str, Any] | None = None
    body: bytes | None = None
    origin: str | None = None


@dataclass(slots=True)
class Changes:
    """What one commit does."""

    add: list[NewRow] = field(default_factory=list)
    remove: list[int] = field(default_factory=list)
    attempt: list[int] = field(default_factory=list)
    bury: list[tuple[int, str, float]] = field(default_factory=list)
    """Rows that can never be applied: their place, the class of the error, the wall-clock time."""
    revive: list[int] = field(default_factory=list)
    """Dead letters that are to be tried again."""


@dataclass(slots=True)
class Recovered:
    """What was in a file: rows in order, dead letters, and how many rows were damaged."""

    rows: list[PendingRow] = field(default_factory=list)
    dead: list[PendingRow] = field(default_factory=list)
    damaged: int = 0

    @property
    def last(self) -> int:
        """The greatest place that was ever taken here."""
        return max((row.seq for row in (*self.rows, *self.dead)), default=0)


class JournalFile:
    """One open journal file. Raises ``sqlite3.Error`` as it comes; who calls decides what that means."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, connecting: Connect = connect) -> JournalFile:
        """Open, or make, the file; raises :class:`JournalError` for one of a newer version of this library."""
        connection = connecting(path)
        try:
            connection.executescript(_SCHEMA)
            file = cls(path, connection)
            version = file.note("version")
            if version != str(VERSION):
                raise JournalError(
                    f"journal {shorten(str(path))} has the format {shorten(version)}; this version reads up to "
                    f"{VERSION}. Nothing was changed: use the version of locus-tiered that wrote it, or a newer one"
                )
        except BaseException:
            connection.close()
            raise
        return file

    def note(self, key: str, value: str | None = None) -> str | None:
        """What is noted under ``key`` about this journal; with ``value``, note that first."""
        if value is not None:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))
        found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    # -- writing -------------------------------------------------------------------------------------

    def commit(self, batch: Iterable[Changes]) -> None:
        """Do all of it in one transaction: on the disk when this returns, undone when it raises."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            for changes in batch:
                self._apply(changes)
            run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                run("ROLLBACK")
            raise

    def _apply(self, changes: Changes) -> None:
        many = self._connection.executemany
        if changes.remove:
            gone = [(seq,) for seq in changes.remove]
            many("DELETE FROM rows WHERE seq = ?", gone)
            many("DELETE FROM dead WHERE seq = ?", gone)
        if changes.attempt:
            many("UPDATE rows SET attempted = ? WHERE seq = ?", [(_ATTEMPTED, seq) for seq in changes.attempt])
        for seq, error, failed_at in changes.bury:
            self._move("rows", "dead", seq, ", ?, ?", (error, failed_at))
        for seq in changes.revive:
            self._move("dead", "rows", seq)
        for new in changes.add:
            self._add(new)

    def _move(self, source: str, target: str, seq: int, extra: str = "", values: Sequence[Any] = ()) -> None:
        run = self._connection.execute
        run(f"INSERT OR REPLACE INTO {target} SELECT {_COLUMNS}{extra} FROM {source} WHERE seq = ?", (*values, seq))
        run(f"DELETE FROM {source} WHERE seq = ?", (seq,))

    def _add(self, new: NewRow) -> None:
        row, head = new.row, encode_head(new.row)
        metadata = None if new.metadata is None else json.dumps(dict(new.metadata)).encode()
        body_check = None if new.body is None else check_of(metadata or b"", new.body)
        self._connection.execute(
            f"INSERT OR IGNORE INTO rows({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.seq,
                _ATTEMPTED if row.attempted else 0,
                head,
                check_of(head),
                new.origin,
                metadata,
                new.body,
                body_check,
            ),
        )

    def tidy(self) -> None:
        """Give the log's pages back to the file, while nobody waits."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- reading -------------------------------------------------------------------------------------

    def state(self, seq: int) -> tuple[dict[str, Any], bytes] | None:
        """The caller's metadata and the state of a save, or ``None`` when the row is gone.

        Raises :class:`RowDamaged` for a state that is not what was written.
        """
        for table in ("rows", "dead"):
            found = self._connection.execute(
                f"SELECT metadata, body, body_check FROM {table} WHERE seq = ?", (seq,)
            ).fetchone()
            if found is not None:
                metadata, body, check = found
                if not isinstance(body, bytes) or check != check_of(metadata or b"", body):
                    raise RowDamaged("its state is not what was written (checksum)")
                return (json.loads(metadata) if metadata else {}), body
        return None

    def recover(self) -> Recovered:
        """Every row in order. What is damaged is left where it is and counted."""
        found = Recovered()
        query = "SELECT seq, attempted, head, head_check FROM rows ORDER BY seq"
        for seq, attempted, head, check in self._connection.execute(query):
            try:
                found.rows.append(decode_head(seq, head, check, attempted))
            except (RowDamaged, ValueError, KeyError, TypeError):
                found.damaged += 1
        query = "SELECT seq, attempted, head, head_check, error FROM dead ORDER BY seq"
        for seq, attempted, head, check, error in self._connection.execute(query):
            try:
                row = decode_head(seq, head, check, attempted)
            except (RowDamaged, ValueError, KeyError, TypeError):
                found.damaged += 1
                continue
            row.error = str(error)
            found.dead.append(row)
        return found

    def raw(self, table: str, seq: int) -> tuple[Any, ...]:
        """One row's state as it stands, for who adopts it: metadata, body."""
        found = self._connection.execute(f"SELECT metadata, body FROM {table} WHERE seq = ?", (seq,)).fetchone()
        return tuple(found) if found is not None else (None, None)

    def has_origin(self, origin: str) -> bool:
        """Whether the row of this origin was adopted already."""
        query = "SELECT EXISTS(SELECT 1 FROM rows WHERE origin = ?) OR EXISTS(SELECT 1 FROM dead WHERE origin = ?)"
        return bool(self._connection.execute(query, (origin, origin)).fetchone()[0])

    @property
    def is_empty(self) -> bool:
        """Whether no row of any kind is left, damaged ones included."""
        query = "SELECT EXISTS(SELECT 1 FROM rows) OR EXISTS(SELECT 1 FROM dead)"
        return not self._connection.execute(query).fetchone()[0]

    def close(self) -> None:
        """Close the connection; the last one to a file folds the log into it."""
        self._connection.close()
