"""Small parts for the tests of the journal: rows, what a journal holds, journals of former processes."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from locus_tiered.core.clock import SYSTEM
from locus_tiered.stores.journal import Journal
from locus_tiered.stores.journal_file import Changes, JournalFile, NewRow
from locus_tiered.stores.journal_folder import FILE, Folder, Seat
from locus_tiered.stores.journal_open import Opened, leave, open_journal
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged
from locus_tiered.stores.journal_schema import connect, prepared
from locus_tiered.testing.disk import Disk

HOME = "s3://agents"


def stamp(number: int) -> str:
    return f"{number:032x}"


def row(number: int, *, kind: str = "save", thread: str = "t", **more) -> PendingRow:
    """A row told from others by ``number``: its stamp, its id, and its place where nobody gives it another."""
    return PendingRow(number, kind, thread, more.pop("id", f"id-{number}"), more.pop("stamp", stamp(number)), **more)


def body(number: int, size: int = 200) -> bytes:
    return (b'{"n":%d,"fill":"' % number).ljust(size - 2, b"x") + b'"}'


def new(number: int, size: int = 200, **more) -> NewRow:
    """A save with a body of its own."""
    return NewRow.of(row(number, **more), {"number": number}, body(number, size))


def deletion(number: int, **more) -> NewRow:
    return NewRow.of(row(number, kind="delete", **more), None, None)


def on(disk: Disk, log_pages: int = 512):
    """``connecting=`` for a journal on a disk; its log goes back into the file after so many pages."""

    def connecting(path: Path) -> sqlite3.Connection:
        connection = prepared(disk.connect(path, isolation_level=None))
        connection.execute(f"PRAGMA wal_autocheckpoint={log_pages}")
        return connection

    return connecting


def quick(path: Path) -> sqlite3.Connection:
    """``connecting=`` without the fsyncs, where a test is about something else."""
    connection = connect(path)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


@dataclass
class Held:
    """What a journal holds: per row its number, whether it was attempted, and its body."""

    rows: list[tuple] = field(default_factory=list)
    dead: list[tuple] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and (self.rows, self.dead) == (other.rows, other.dead)


def held(opened: Opened) -> Held:
    """Every row with its body, which is verified; a damaged one raises."""

    def one(each: PendingRow) -> tuple:
        state = opened.file.state(each.seq) if each.kind == "save" else None
        return (int(each.stamp, 16), each.kind, each.id, each.attempted, each.error, state)

    return Held([one(each) for each in opened.found.rows], [one(each) for each in opened.found.dead])


def told(number: int, *, size: int = 200, attempted: bool = False, error: str | None = None) -> tuple:
    """What :func:`held` says of :func:`new`."""
    return (number, "save", f"id-{number}", attempted, error, ({"number": number}, body(number, size)))


def numbers(opened: Opened) -> list[int]:
    return [int(each.stamp, 16) for each in opened.found.rows]


def readable(opened: Opened) -> list[int]:
    """The numbers of the rows whose state is what was written; anything else but damage is an error."""
    found = []
    for each in (*opened.found.rows, *opened.found.dead):
        number = int(each.stamp, 16)
        try:
            state = opened.file.state(each.seq)
        except RowDamaged:
            continue
        assert state is not None, "a row that was found cannot be read"
        assert state[0] == {"number": number}
        assert state[1][:-2].rstrip(b"x") == body(number)[:-2].rstrip(b"x")
        assert each.id == f"id-{number}"
        found.append(number)
    return found


class Former:
    """A former process's journal: a sub-directory with rows that nobody holds any more."""

    def __init__(self, path: Path, home: str | None = HOME, connecting=connect) -> None:
        Folder(path).prepare()
        self.seat: Seat = Folder(path).new()
        self.file = JournalFile.open(self.seat.file, home, connecting)

    def commit(self, *rows: NewRow, **changes) -> Former:
        self.file.commit([Changes(add=list(rows), **changes)])
        return self

    def die(self) -> Path:
        """End, as a process that was killed does: with the log as it is."""
        keeper = sqlite3.connect(f"{self.seat.file.as_uri()}?mode=ro", uri=True)
        keeper.execute("SELECT count(*) FROM meta").fetchone()
        self.file.close()  # not the last connection: nothing is folded in
        keeper.close()
        self.seat.release()
        return self.seat.path


def reopen(path: Path, home: str | None = HOME, connecting=connect) -> Opened:
    return open_journal(path, home, connecting)


def shut(path: Path, opened: Opened) -> None:
    leave(path, opened)


def seats(path: Path) -> list[str]:
    """The sub-directories that are journals."""
    return sorted(each.parent.name for each in path.glob(f"*/{FILE}") if not each.parent.name.startswith("."))


def aside(path: Path) -> list[Path]:
    return sorted(path.glob(".damaged/*"))


@asynccontextmanager
async def journal_in(path: Path, *, home: str | None = HOME, connecting=connect, user: object = None):
    """The journal of this process in ``path`` while the block runs."""
    user = user or asyncio.current_task()
    journal = await Journal.attach(path, home, SYSTEM, user, connecting=connecting)
    try:
        yield journal
    finally:
        await journal.detach(user)


async def append(journal: Journal, number: int, size: int = 200, **more) -> PendingRow:
    """Keep a save; answers its row."""
    it = row(number, **more)
    await journal.append(it, {"number": number}, body(number, size))
    return it


def indexed(journal: Journal) -> list[int]:
    return [int(each.stamp, 16) for each in journal.index.all()]
