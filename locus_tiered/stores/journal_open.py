"""Opening a journal: take a sub-directory that nobody holds, and everything that former processes left.

The largest orphan is taken as it is; the rows of the others are copied, committed, and only then removed there. Cut
short at any point, it is taken up again and nothing is doubled (``origin``). What cannot be read to the end is
salvaged row by row, put aside for a human, and counted.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locus_tiered.core.errors import JournalError, shorten
from locus_tiered.core.logs import logger_for
from locus_tiered.stores.journal_file import Changes, Connect, JournalFile, NewRow, Recovered, connect
from locus_tiered.stores.journal_folder import FILE, Folder, Seat
from locus_tiered.stores.journal_log import frames_passed_over
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged, check_of, decode_head

__all__ = ["Opened", "leave", "open_journal"]

logger = logger_for(__name__)

_AT_ONCE = 64  # rows copied in one commit


@dataclass(slots=True)
class Opened:
    """A journal that is open, and what was found."""

    seat: Seat
    file: JournalFile
    found: Recovered = field(default_factory=Recovered)
    left: int = 0
    """Sub-directories of former processes that were left alone: of another home, or of a newer version."""
    passed_over: int = 0
    """Frames of a log that SQLite did not read: never acknowledged, unless the disk is damaged."""


def open_journal(path: Path, home: str | None, connecting: Connect = connect) -> Opened:
    """Open the journal in directory ``path`` for the far store called ``home`` (``None``: nobody can tell)."""
    folder = Folder(path)
    folder.prepare()
    with folder.alone():
        opened: Opened | None = None
        left = passed_over = damaged = 0
        others: list[tuple[Seat, JournalFile]] = []
        broken: list[Seat] = []
        for seat in folder.orphans():
            passed_over += _passed_over(seat)
            try:
                file = JournalFile.open(seat.file, connecting)
                theirs = file.note("home")
            except JournalError as error:
                logger.warning("%s", error)
                theirs, file = "", None
            except sqlite3.DatabaseError:
                broken.append(seat)
                continue
            if file is None or (home is not None and theirs is not None and theirs != home):
                if file is not None:
                    logger.warning("journal %s belongs to another home (%s); left alone", seat.path.name, theirs)
                    file.close()
                seat.release()
                left += 1
            elif opened is None:
                opened = Opened(seat, file)
            else:
                others.append((seat, file))
        if opened is None:
            seat = folder.new()
            opened = Opened(seat, JournalFile.open(seat.file, connecting))
        if home is not None:
            opened.file.note("home", home)
        try:
            opened.found = opened.file.recover()
        except sqlite3.DatabaseError:
            opened, lost = _replace(folder, opened, home, connecting)
            damaged += lost
        for seat, file in others:
            damaged += _merge(opened, seat, file)
        for seat in broken:
            damaged += _salvage(opened, seat)
        opened.found.damaged += damaged
        opened.left, opened.passed_over = left, passed_over
    return opened


def leave(folder: Path, opened: Opened) -> None:
    """Close the journal: an empty one goes, one with rows waits for whoever comes next."""
    with Folder(folder).alone():
        with suppress(sqlite3.Error):
            opened.file.tidy()
        empty = False
        with suppress(sqlite3.Error):
            empty = opened.file.is_empty
        with suppress(sqlite3.Error):
            opened.file.close()
        if empty:
            opened.seat.remove()
        else:
            opened.seat.release()


def _passed_over(seat: Seat) -> int:
    frames = frames_passed_over(seat.path / f"{FILE}-wal")
    if frames:
        logger.warning(
            "journal %s: its log ends before %d frames that do not add up. After a power cut they were never "
            "acknowledged; if the machine did not stop, look at the disk",
            seat.path.name,
            frames,
        )
    return frames


def _origin(seat: Seat, seq: int) -> str:
    return f"{seat.path.name}:{seq}"


def _merge(opened: Opened, seat: Seat, file: JournalFile) -> int:
    """Take over the rows of another orphan; answers how many were damaged."""
    try:
        found = file.recover()
        for table, rows in (("rows", found.rows), ("dead", found.dead)):
            for start in range(0, len(rows), _AT_ONCE):
                batch = rows[start : start + _AT_ONCE]
                _copy(opened, seat, [(row, *file.raw(table, row.seq)) for row in batch])
    except sqlite3.DatabaseError:
        file.close()
        return _salvage(opened, seat)
    file.close()
    if found.damaged:
        logger.error("journal %s: %d damaged rows are kept in .damaged/", seat.path.name, found.damaged)
        seat.put_aside()
    else:
        seat.remove()
    return found.damaged


def _copy(opened: Opened, seat: Seat, rows: list[tuple[PendingRow, Any, Any]]) -> None:
    """Write rows of another journal into ours, in their order."""
    changes = Changes()
    copies: list[PendingRow] = []
    for row, metadata, body in rows:
        origin = _origin(seat, row.seq)
        if opened.file.has_origin(origin):
            continue
        row.seq = opened.found.last + 1 + len(copies)
        changes.add.append(NewRow(row, json.loads(metadata) if metadata else None, body, origin))
        if row.error is not None:
            changes.bury.append((row.seq, row.error, row.saved_at))
        copies.append(row)
    if copies:
        opened.file.commit([changes])
    for row in copies:
        (opened.found.dead if row.error is not None else opened.found.rows).append(row)


def _replace(folder: Folder, opened: Opened, home: str | None, connecting: Connect) -> tuple[Opened, int]:
    """The journal that was to be ours cannot be read: begin a new one with what can be saved of it."""
    with suppress(sqlite3.Error):
        opened.file.close()
    seat = folder.new()
    fresh = Opened(seat, JournalFile.open(seat.file, connecting))
    if home is not None:
        fresh.file.note("home", home)
    return fresh, _salvage(fresh, opened.seat)


def _salvage(opened: Opened, seat: Seat) -> int:
    """Copy what can be read of a broken file, from both ends; answers 1, for what surely was lost or may have been."""
    saved: dict[int, tuple[PendingRow, Any, Any]] = {}
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(f"file:{seat.file}?mode=ro", uri=True)
        try:
            for order in ("ASC", "DESC"):
                with suppress(sqlite3.Error):
                    _read_rows(connection, order, saved)
        finally:
            connection.close()
    ordered = [saved[seq] for seq in sorted(saved)]
    for start in range(0, len(ordered), _AT_ONCE):
        _copy(opened, seat, ordered[start : start + _AT_ONCE])
    where = seat.put_aside()
    logger.error(
        "journal %s is damaged: %d rows could be saved, the file is kept as %s", seat.path.name, len(saved), where.name
    )
    return 1


def _read_rows(connection: sqlite3.Connection, order: str, saved: dict[int, tuple[PendingRow, Any, Any]]) -> None:
    query = f"SELECT seq, attempted, head, head_check, metadata, body, body_check FROM rows ORDER BY seq {order}"
    for seq, attempted, head, check, metadata, body, body_check in connection.execute(query):
        if seq in saved:
            return
        try:
            row = decode_head(seq, head, check, attempted)
            if row.kind == "save" and body_check != check_of(metadata or b"", body):
                raise RowDamaged(shorten(seq))
        except (RowDamaged, ValueError, KeyError, TypeError):
            continue
        saved[seq] = (row, metadata, body)
