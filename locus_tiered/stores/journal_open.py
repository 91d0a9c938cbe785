"""Opening a journal: take a sub-directory that nobody holds, and everything that former processes left.

The largest sound orphan is taken as it is; the rows of the others are copied, committed, and only then removed there.
Cut short at any point, it is taken up again and nothing is doubled (``origin``). What is not in order is never
written to: what can be read of it is copied, the rest is put aside for a human, and counted.

An error of the disk or of the file system is not damage: then nothing is opened and nothing changed.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from locus_tiered.core.errors import JournalError, JournalFull, shorten
from locus_tiered.core.logs import logger_for
from locus_tiered.stores.journal_file import Changes, JournalFile, NewRow, Recovered
from locus_tiered.stores.journal_folder import FILE, Folder, Seat
from locus_tiered.stores.journal_log import passed_over
from locus_tiered.stores.journal_pages import Misplaced, check_header, check_pages
from locus_tiered.stores.journal_rows import PendingRow
from locus_tiered.stores.journal_salvage import readable_rows
from locus_tiered.stores.journal_schema import Connect, FileDamaged, connect, is_damage

__all__ = ["Opened", "leave", "open_journal"]

logger = logger_for(__name__)

_AT_ONCE, _BYTES_AT_ONCE = 64, 16 << 20  # copied in one commit


@dataclass(slots=True)
class Opened:
    """A journal that is open, and what was found."""

    seat: Seat
    file: JournalFile
    found: Recovered = field(default_factory=Recovered)
    left: int = 0
    """Sub-directories of former processes that were left alone: of another home, of a newer version, or of a user
    whose files this process may not open."""
    passed_over: int = 0
    """Frames of a log that SQLite did not read: never acknowledged, unless the disk is damaged."""
    spent: bool = False
    """Whether everything in it was sent or deleted, even if the disk took no note of that."""


def open_journal(path: Path, home: str | None, connecting: Connect = connect, former: Path | None = None) -> Opened:
    """Open the journal in directory ``path`` for the far store called ``home`` (``None``: nobody can tell).

    What lies in directory ``former`` is taken over as well, but for what is known to be of another home. Raises
    :class:`JournalError`; then nothing is held, and what former processes left is where it was.
    """
    folder = Folder(path)
    folder.prepare()
    try:
        with folder.alone(), ExitStack() as undo:
            opening = _Opening(folder, home, connecting, undo)
            opened = opening.run()
            if former is not None and former.is_dir():
                with Folder(former).alone():
                    opening.move(opened, Folder(former))
            undo.pop_all()
        return opened
    except (OSError, sqlite3.Error) as error:
        raise _failed(path, error) from error


def leave(folder: Path, opened: Opened) -> None:
    """Close the journal: an empty one goes, one with rows waits for whoever comes next."""
    try:
        with Folder(folder).alone():
            with suppress(sqlite3.Error):
                opened.file.tidy()
            empty = opened.spent
            with suppress(sqlite3.Error):
                empty = empty or opened.file.is_empty
            with suppress(sqlite3.Error):
                opened.file.close()
            if empty:
                with suppress(OSError):
                    opened.seat.remove()
    except (JournalError, OSError) as error:
        logger.warning("journal %s was left as it is: %s", opened.seat.path.name, error)
        with suppress(sqlite3.Error):
            opened.file.close()
    finally:
        opened.seat.release()


def _failed(path: Path, error: Exception) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return JournalFull(
            f"journal {shorten(str(path))} could not be opened: its disk is full. Nothing was saved there, what it "
            "holds is untouched. Make room"
        )
    why = getattr(error, "sqlite_errorname", None) or f"{type(error).__name__}, errno {getattr(error, 'errno', None)}"
    return JournalError(
        f"journal {shorten(str(path))} could not be opened ({why}); nothing was saved there, what it holds is "
        "untouched. Look at the disk, and at who may write there"
    )


class _Opening:
    """One opening; what it holds when it fails is let go of by ``undo``."""

    def __init__(self, folder: Folder, home: str | None, connecting: Connect, undo: ExitStack) -> None:
        self._folder, self._home, self._connecting, self._undo = folder, home, connecting, undo
        self._damaged = self._left = self._passed_over = 0

    def run(self) -> Opened:
        """Take the largest sound orphan, or a new one, and take over the others."""
        sound, broken = self._look(self._folder)
        opened = self._first(sound)
        opened.found = opened.file.recover()
        self._damaged += opened.found.damaged
        self._known = opened.file.origins() | {_name(opened.seat, row.seq) for row in _rows(opened.found)}
        self._take(opened, sound[1:], broken)
        return opened

    def move(self, opened: Opened, former: Folder) -> None:
        """Take over what lies in another directory."""
        sound, broken = self._look(former, strict=True)
        self._take(opened, sound, broken)

    def _look(
        self, folder: Folder, *, strict: bool = False
    ) -> tuple[list[tuple[Seat, JournalFile]], list[tuple[Seat, str]]]:
        """The orphans of a directory that are ours to take, the largest first, and the broken ones.

        ``strict``: where our own home is not known, none is ours that has one.
        """
        sound: list[tuple[Seat, JournalFile]] = []
        broken: list[tuple[Seat, str]] = []
        orphans, left = folder.orphans()
        self._left += left
        for seat in orphans:
            self._undo.callback(seat.release)
        for seat in orphans:
            try:
                file = self._open(seat)
            except JournalError as error:
                logger.warning("%s", error)
                self._leave_alone(seat)
            except (FileDamaged, Misplaced) as error:
                broken.append((seat, str(error)))
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                broken.append((seat, type(error).__name__))
            else:
                theirs = file.note("home") if strict and self._home is None else file.others_home
                if theirs is not None:
                    logger.warning("journal %s belongs to another home (%s); left alone", seat.path.name, theirs)
                    file.close()
                    self._leave_alone(seat)
                else:
                    sound.append((seat, file))
        sound.sort(key=lambda each: -each[0].bytes)
        return sound, broken

    def _take(self, opened: Opened, sound: list[tuple[Seat, JournalFile]], broken: list[tuple[Seat, str]]) -> None:
        for seat, file in sound:
            self._merge(opened, seat, file)
        for seat, why in broken:
            self._salvage(opened, seat, why)
        opened.found.damaged = self._damaged
        opened.left, opened.passed_over = self._left, self._passed_over

    # -- one orphan ----------------------------------------------------------------------------------

    def _look_at_log(self, seat: Seat, read: int) -> None:
        rest = passed_over(seat.path / f"{FILE}-wal", read)
        self._passed_over += rest.frames
        if rest.is_damage:
            self._damaged += 1
            logger.error(
                "journal %s: the disk has damaged its log: %d commits that were acknowledged cannot be read. The files "
                "are copied to .damaged/%s",
                seat.path.name,
                rest.commits - 1,
                seat.copy_aside().name,
            )
        elif rest.frames:
            logger.warning(
                "journal %s: its log ends before %d frames that do not add up. After a power cut they were never "
                "acknowledged; if the machine did not stop, look at the disk",
                seat.path.name,
                rest.frames,
            )

    def _open(self, seat: Seat) -> JournalFile:
        """Open the file of an orphan once all of it was found to be in its place."""
        version = _second_version(seat.file)
        if version == 1:
            check_header(seat.file)
        file = self._connect(seat, lambda read: self._look_at_log(seat, read))
        if version is not None and version <= 1:
            folded, roots = file.tidy(), file.roots()
            file.close()
            # While somebody else reads the file (the command line), some of it may have to stay in the log.
            if folded:
                check_pages(seat.file, roots)
            file = self._connect(seat)
        return file

    def _connect(self, seat: Seat, looking: Callable[[int], None] = lambda read: None) -> JournalFile:
        file = JournalFile.open(seat.file, self._home, self._connecting, looking)
        self._undo.callback(_close, file)
        return file

    def _leave_alone(self, seat: Seat) -> None:
        seat.release()
        self._left += 1

    def _first(self, sound: list[tuple[Seat, JournalFile]]) -> Opened:
        """The journal that is to be ours: the largest one, or a new one."""
        if sound:
            opened = Opened(*sound[0])
        else:
            seat = self._folder.new()
            self._undo.callback(seat.release)
            opened = Opened(seat, self._connect(seat))
        opened.file.claim()
        return opened

    # -- taking over ---------------------------------------------------------------------------------

    def _merge(self, opened: Opened, seat: Seat, file: JournalFile) -> None:
        """Take over the rows of another orphan."""
        found = file.recover()
        self._copy(opened, seat, _adopted(file, found))
        file.close()
        if found.damaged:
            self._damaged += found.damaged
            logger.error(
                "journal %s: %d damaged rows are kept as .damaged/%s",
                seat.path.name,
                found.damaged,
                seat.put_aside().name,
            )
        else:
            seat.remove()

    def _salvage(self, opened: Opened, seat: Seat, why: str) -> None:
        """Copy what can be read of a broken file; at least one row counts as damaged: nobody knows what is lost."""
        with readable_rows(seat, self._home) as readable:
            saved = self._copy(opened, seat, iter(readable))
        self._damaged += max(1, readable.damaged)
        where = seat.put_aside()
        logger.error(
            "journal %s is damaged (%s): %d rows could be saved, the file is kept as .damaged/%s",
            seat.path.name,
            why,
            saved,
            where.name,
        )

    def _copy(self, opened: Opened, seat: Seat, rows: Iterator[NewRow]) -> int:
        """Write rows of another journal into ours, in their order; those that are there already are passed over."""
        count = size = 0
        changes = Changes()
        for new in rows:
            count += 1
            origin = new.origin or _name(seat, new.row.seq)
            if origin in self._known:
                continue
            self._known.add(origin)
            opened.found.last += 1
            new.row.seq = opened.found.last
            changes.add.append(NewRow(new.row, new.metadata, new.body, new.check, origin))
            if new.row.error is not None:
                changes.bury.append((new.row.seq, new.row.error, new.row.saved_at))
            size += new.row.size
            if len(changes.add) >= _AT_ONCE or size >= _BYTES_AT_ONCE:
                self._keep(opened, changes)
                changes, size = Changes(), 0
        self._keep(opened, changes)
        return count

    @staticmethod
    def _keep(opened: Opened, changes: Changes) -> None:
        if changes.add:
            opened.file.commit([changes])
        for new in changes.add:
            (opened.found.rows if new.row.error is None else opened.found.dead).append(new.row)


def _rows(found: Recovered) -> list[PendingRow]:
    return sorted((*found.rows, *found.dead), key=lambda row: row.seq)


def _adopted(file: JournalFile, found: Recovered) -> Iterator[NewRow]:
    for row in _rows(found):
        try:
            origin, metadata, body, check = file.raw("rows" if row.error is None else "dead", row.seq)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            found.damaged += 1
            continue
        yield NewRow(row, metadata, body, check, None if origin is None else str(origin))


def _name(seat: Seat, seq: int) -> str:
    """What a row is known by, whichever journal it is copied to."""
    return f"{seat.path.name}:{seq}"


def _second_version(file: Path) -> int | None:
    """The version that the file's header tells; ``None``: it has none yet."""
    with suppress(FileNotFoundError), closing(file.open("rb")) as opened:
        head = opened.read(100)
        if len(head) == 100:
            return int.from_bytes(head[60:64], "big")
    return None


def _close(file: JournalFile) -> None:
    with suppress(sqlite3.Error):
        file.close()
