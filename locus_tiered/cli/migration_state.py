"""What a migration has done, on the disk: a small SQLite file that survives ``kill -9``.

A thread is written down when it was copied *and* verified. The ids of a thread are written down *before* the first
of them is copied: whatever this migration may have put into the destination is known to it, and nothing else is its
own to remove.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locus_tiered.cli.exits import Exit, Failure

__all__ = ["Copied", "StateFile", "default_path"]

_VERSION = 1


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _mark(source: str, destination: str) -> str:
    """Names the pair of stacks without naming them: what they are called may hold a password."""
    parts = (str(Path(each).resolve()) if Path(each).exists() else each for each in (source, destination))
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def default_path(source: str, destination: str) -> Path:
    """A file in the working directory, the same one for the same pair of stacks."""
    return Path(f"locus-tiered-migrate-{_mark(source, destination)}.state")


@dataclass(frozen=True, slots=True)
class Copied:
    """A thread as it was when it was copied: its newest checkpoint, how many it had, the newest one's digest."""

    newest: str
    stamp: str | None
    checkpoints: int
    digest: str


class StateFile:
    """An open state file; nobody else can open it meanwhile."""

    def __init__(self, path: Path, source: str, destination: str) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS threads (thread BLOB PRIMARY KEY, newest BLOB NOT NULL, stamp TEXT,"
                " checkpoints INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS copies (thread BLOB NOT NULL, id BLOB NOT NULL, PRIMARY KEY (thread, id))"
                " WITHOUT ROWID"
            )
            facts = dict(self._db.execute("SELECT name, value FROM facts"))
            wanted = {"version": str(_VERSION), "pair": _mark(source, destination)}
            self._db.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", wanted.items())
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._give_up(error, "another migration is using it, or the disk cannot be written")
        except sqlite3.DatabaseError as error:
            self._give_up(error, "it is not a migration's state file; name another one with --state")
        if facts and facts != wanted:
            self._db.close()
            raise Failure(
                f"{path} belongs to a migration between other stacks", Exit.USAGE, hint="name another file with --state"
            )

    def _give_up(self, error: Exception, hint: str) -> None:
        with contextlib.suppress(AttributeError):
            self._db.close()
        raise Failure(f"the state file {self.path} cannot be used", Exit.USAGE, hint=hint) from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextlib.contextmanager
    def _durably(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def copied(self, thread: str) -> Copied | None:
        """How the thread was when it was copied and verified; ``None``: it was not."""
        row: Any = self._db.execute(
            "SELECT newest, stamp, checkpoints, digest FROM threads WHERE thread = ?", (_raw(thread),)
        ).fetchone()
        return None if row is None else Copied(row[0].decode("utf-8", "surrogatepass"), *row[1:])

    def ours(self, thread: str) -> set[str]:
        """The ids that this migration may have put into the destination."""
        rows = self._db.execute("SELECT id FROM copies WHERE thread = ?", (_raw(thread),))
        return {row[0].decode("utf-8", "surrogatepass") for row in rows}

    def intend(self, thread: str, ids: Iterable[str]) -> None:
        """Write down what is about to be copied."""
        with self._durably() as db:
            rows = ((_raw(thread), _raw(each)) for each in ids)
            db.executemany("INSERT OR IGNORE INTO copies VALUES (?, ?)", rows)

    def forget(self, thread: str, ids: Iterable[str]) -> None:
        """Write down what was removed from the destination again."""
        with self._durably() as db:
            db.executemany("DELETE FROM copies WHERE thread = ? AND id = ?", ((_raw(thread), _raw(i)) for i in ids))

    def done(self, thread: str, how: Copied) -> None:
        """Write down that the thread was copied and verified."""
        row = (_raw(thread), _raw(how.newest), how.stamp, how.checkpoints, how.digest)
        with self._durably() as db:
            db.execute("INSERT OR REPLACE INTO threads VALUES (?, ?, ?, ?, ?)", row)

    def drop(self, thread: str) -> None:
        """Forget a thread that neither side has any more."""
        with self._durably() as db:
            db.execute("DELETE FROM threads WHERE thread = ?", (_raw(thread),))
            db.execute("DELETE FROM copies WHERE thread = ?", (_raw(thread),))

    def threads(self) -> Iterator[str]:
        """All threads that were begun, one at a time."""
        last = b""
        first = True
        while True:
            sign = ">=" if first else ">"
            row = self._db.execute(
                f"SELECT thread FROM copies WHERE thread {sign} ? ORDER BY thread LIMIT 1",
                (last,),
            ).fetchone()
            if row is None:
                return
            last, first = row[0], False
            yield last.decode("utf-8", "surrogatepass")
