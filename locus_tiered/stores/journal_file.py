"""The journal's SQLite file, as plain calls that block; all of one file come from one thread.

SQLite in WAL mode with ``synchronous=FULL``: a transaction that was committed has been fsynced and survives a
power cut (sqlite.org/pragma.html#pragma_synchronous). Pages of 32 KiB keep a usual state in one of them. Columns that
are read when a journal is opened stand before the state, whose overflow pages are then left alone.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locus_tiered.core.errors import JournalError, shorten
from locus_tiered.stores.journal_rows import (
    ATTEMPTED,
    SUPERSEDED,
    PendingRow,
    RowDamaged,
    check_of,
    decode_head,
    encode_head,
    home_mark,
)
from locus_tiered.stores.journal_schema import (
    PAGE,
    SCHEMA,
    VERSION,
    Connect,
    FileDamaged,
    FileMoved,
    connect,
    create_tables,
    is_damage,
)

__all__ = ["Changes", "JournalFile", "NewRow", "Recovered"]

_TIDY_MILLISECONDS = 200  # of waiting for a program that reads the file
_COLUMNS = "seq, attempted, head, head_check, origin, metadata, body, body_check"
_NOTES = {"version", "home", "home_check"}


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be written, with the state of a save."""

    row: PendingRow
    metadata: bytes | None = None
    body: bytes | None = None
    check: bytes | None = None
    """The check over both, of a row that is adopted; else it is made when the row is written."""
    origin: str | None = None

    @classmethod
    def of(cls, row: PendingRow, metadata: Mapping[str, Any] | None, body: bytes | None) -> NewRow:
        """A row with the caller's metadata, which have a JSON form."""
        return cls(row, None if metadata is None else json.dumps(dict(metadata)).encode(), body)


@dataclass(slots=True)
class Changes:
    """What one commit does."""

    add: list[NewRow] = field(default_factory=list)
    remove: list[int] = field(default_factory=list)
    attempt: list[int] = field(default_factory=list)
    supersede: list[int] = field(default_factory=list)
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
    last: int = 0
    """The greatest place that is taken here, by damaged rows too."""


class JournalFile:
    """One open journal file. Raises ``sqlite3.Error`` as it comes; who calls decides what that means."""

    def __init__(self, path: Path, connection: sqlite3.Connection, home: str | None) -> None:
        self.path = path
        self._connection, self._home = connection, home
        self._places: list[tuple[str, tuple[int, int]]] = []

    @classmethod
    def open(
        cls,
        path: Path,
        home: str | None,
        connecting: Connect = connect,
        looking: Callable[[int], None] = lambda frames: None,
    ) -> JournalFile:
        """Open, or make, the file, for the far store called ``home`` (``None``: nobody can tell).

        ``looking`` is told how many frames of the log SQLite reads, before anything is written. Raises
        :class:`JournalError` for one of a newer version of this library, and :class:`FileDamaged`. Whose it is, see
        :attr:`others_home`.
        """
        if home is not None:
            home = home.encode("utf-8", "backslashreplace").decode()
        connection = connecting(path)
        try:
            file = cls(path, connection, home)
            looking(max(0, connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]))
            tables = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
            if not tables and path.stat().st_size <= PAGE:
                create_tables(connection, home)
            else:
                file._check(tables)
            file._note_places()
        except BaseException:
            connection.close()
            raise
        return file

    def _note_places(self) -> None:
        whole = str(self.path.absolute())
        found = [(name, _identity(name)) for name in (whole, f"{whole}-wal")]
        self._places = [(name, identity) for name, identity in found if identity is not None]

    def _check(self, tables: dict[str, str]) -> None:
        version = self.note("version") if "meta" in tables else None
        second = str(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version == second and version.isdecimal() and int(version) > VERSION:
            raise JournalError(
                f"journal {shorten(str(self.path))} has the format {shorten(version)}; this version reads up to "
                f"{VERSION}. Nothing was changed: use the version of locus-tiered that wrote it, or a newer one"
            )
        if tables != SCHEMA:
            raise FileDamaged("its tables are not those of a journal")
        notes = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        home = notes.get("home")
        if not version == second == str(VERSION) or not notes.keys() <= _NOTES:
            raise FileDamaged("nobody can tell its version")
        if notes.get("home_check") != (None if home is None else home_mark(home)):
            raise FileDamaged("nobody can tell whose it is")

    def roots(self) -> list[int]:
        """The pages at which the tables begin."""
        return [root for (root,) in self._connection.execute("SELECT rootpage FROM sqlite_master")]

    @property
    def others_home(self) -> str | None:
        """The far store that this journal belongs to, when that is surely another one than ours."""
        theirs = self.note("home")
        return theirs if theirs is not None and self._home is not None and theirs != self._home else None

    def claim(self) -> None:
        """Note whose journal this is, where nobody noted it before."""
        if self._home is not None and self.note("home") is None:
            self._connection.execute("BEGIN IMMEDIATE")
            notes = [("home", self._home), ("home_check", home_mark(self._home))]
            self._connection.executemany("INSERT INTO meta VALUES(?, ?)", notes)
            self._connection.execute("COMMIT")

    def note(self, key: str) -> str | None:
        """What is noted under ``key`` about this journal."""
        found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    # -- writing -------------------------------------------------------------------------------------

    def commit(self, batch: Iterable[Changes]) -> None:
        """Do all of it in one transaction: on the disk when this returns, undone when it raises.

        Raises :class:`FileMoved` when somebody has removed or moved the file meanwhile: then nobody finds it again.
        """
        run = self._connection.execute
        self._check_places()
        run("BEGIN IMMEDIATE")
        try:
            for changes in batch:
                self._apply(changes)
            run("COMMIT")
        except BaseException as error:
            try:
                if self._connection.in_transaction:
                    run("ROLLBACK")
            except sqlite3.Error as worse:
                raise worse from error
            raise
        self._check_places()

    def _check_places(self) -> None:
        if any(_identity(name) != identity for name, identity in self._places):
            raise FileMoved(str(self.path))

    def _apply(self, changes: Changes) -> None:
        many = self._connection.executemany
        if changes.remove:
            gone = [(seq,) for seq in changes.remove]
            many("DELETE FROM rows WHERE seq = ?", gone)
            many("DELETE FROM dead WHERE seq = ?", gone)
        if changes.attempt:
            many("UPDATE rows SET attempted = ? WHERE seq = ?", [(ATTEMPTED, seq) for seq in changes.attempt])
        if changes.supersede:
            marks = [(SUPERSEDED, seq) for seq in changes.supersede]
            many("UPDATE rows SET attempted = ? WHERE seq = ? AND attempted = 0", marks)
        for new in changes.add:
            self._add(new)
        for seq, error, failed_at in changes.bury:
            self._move("rows", "dead", seq, ", ?, ?", (error, failed_at))
        for seq in changes.revive:
            self._move("dead", "rows", seq)

    def _move(self, source: str, target: str, seq: int, extra: str = "", values: Sequence[Any] = ()) -> None:
        run = self._connection.execute
        run(f"INSERT OR REPLACE INTO {target} SELECT {_COLUMNS}{extra} FROM {source} WHERE seq = ?", (*values, seq))
        run(f"DELETE FROM {source} WHERE seq = ?", (seq,))

    def _add(self, new: NewRow) -> None:
        row, head = new.row, encode_head(new.row, self._home)
        body_check = new.check
        if body_check is None and new.body is not None:
            body_check = check_of(new.metadata or b"", new.body)
        self._connection.execute(
            f"INSERT INTO rows({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.seq,
                ATTEMPTED if row.attempted else SUPERSEDED if row.superseded else 0,
                head,
                check_of(head),
                new.origin,
                new.metadata,
                new.body,
                body_check,
            ),
        )

    def tidy(self) -> bool:
        """Give the log's pages back to the file; answers whether all of them could be."""
        run = self._connection.execute
        patience = run("PRAGMA busy_timeout").fetchone()[0]
        run(f"PRAGMA busy_timeout={min(patience, _TIDY_MILLISECONDS)}")
        busy = run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        run(f"PRAGMA busy_timeout={patience}")
        return not busy

    # -- reading -------------------------------------------------------------------------------------

    def state(self, seq: int) -> tuple[dict[str, Any], bytes] | None:
        """The caller's metadata and the state of a save, or ``None`` when the row is gone.

        Raises :class:`RowDamaged` for a state that is not what was written.
        """
        for table in ("rows", "dead"):
            try:
                query = f"SELECT metadata, body, body_check FROM {table} WHERE seq = ?"
                found = self._connection.execute(query, (seq,)).fetchone()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                raise RowDamaged("it cannot be read") from error
            if found is not None:
                metadata, body, check = found
                if not isinstance(body, bytes) or check != check_of(metadata or b"", body):
                    raise RowDamaged("its state is not what was written (checksum)")
                return (json.loads(metadata) if metadata else {}), body
        return None

    def recover(self) -> Recovered:
        """Every row in order. What is damaged is left where it is and counted."""
        found = Recovered()
        for table, rows, error in (("rows", found.rows, "NULL"), ("dead", found.dead, "error")):
            query = f"SELECT seq, attempted, head, head_check, {error} FROM {table}"
            before = 0
            for seq, *parts in self._each(table, query):
                try:
                    if seq <= before or not parts:
                        raise RowDamaged("it is there twice, or cannot be read")
                    *head, why = parts
                    row = decode_head(seq, head[1], head[2], head[0], self._home)
                except (RowDamaged, ValueError, KeyError, TypeError):
                    found.damaged += 1
                    continue
                finally:
                    before = max(before, seq)
                    found.last = max(found.last, seq)
                row.error = None if table == "rows" else str(why)
                rows.append(row)
        return found

    def _each(self, table: str, query: str) -> Iterator[tuple[Any, ...]]:
        """Every row of a table in order; only its place, where SQLite cannot make a row of it."""
        after = -(1 << 63)
        try:
            for row in self._connection.execute(f"{query} ORDER BY seq"):
                yield row
                after = row[0]
            return
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        places = self._connection.execute(f"SELECT seq FROM {table} WHERE seq > ? ORDER BY seq", (after,)).fetchall()
        for place in places:
            try:
                found = self._connection.execute(f"{query} WHERE seq = ?", place).fetchone()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                found = None
            yield place if found is None else found

    def raw(self, table: str, seq: int) -> tuple[Any, Any, Any, Any]:
        """One row's state as it stands, for who adopts it: origin, metadata, body, and the check over these two.

        Whether it is what was written is found out when it is read there.
        """
        query = f"SELECT origin, metadata, body, body_check FROM {table} WHERE seq = ?"
        found = self._connection.execute(query, (seq,)).fetchone()
        return tuple(found) if found is not None else (None, None, None, None)

    def origins(self) -> set[str]:
        """Where the rows that were adopted came from."""
        query = (
            "SELECT origin FROM rows WHERE origin IS NOT NULL UNION SELECT origin FROM dead WHERE origin IS NOT NULL"
        )
        return {str(origin) for (origin,) in self._connection.execute(query)}

    @property
    def is_empty(self) -> bool:
        """Whether no row of any kind is left, damaged ones included."""
        query = "SELECT EXISTS(SELECT 1 FROM rows) OR EXISTS(SELECT 1 FROM dead)"
        return not self._connection.execute(query).fetchone()[0]

    def close(self) -> None:
        """Close the connection; the last one to a file folds the log into it."""
        self._connection.close()


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino
