"""Crash points: everything that a process leaves behind, at every moment at which that changes.

A :class:`Recorder` numbers the effects of a run (commits of the journal, calls that change the far store, the end of
a journal's sub-directory) and takes a :class:`Snapshot` before and after each: the journal's files as they are on the
disk, the far store, and what callers had been promised by then. A process that is killed leaves exactly that, so one
run yields every crash of it. A snapshot equal to an earlier one in all three is taken once.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
from locus.core.state import AgentState

from locus_tiered.stores import journal as journal_module
from locus_tiered.stores import journal_schema
from locus_tiered.stores.journal_file import Changes, JournalFile
from locus_tiered.stores.journal_open import Opened, leave
from locus_tiered.stores.journal_thread import JournalThread
from locus_tiered.testing.reference import ReferenceCheckpointer, StoredText
from locus_tiered.testing.virtual_time import VirtualTimeLoop
from tests.crash.ledger import Event, Ledger

Rows = tuple[tuple[Any, ...], ...]
Stored = dict[str, dict[str, StoredText]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process that ends now leaves."""

    number: int
    label: str
    files: dict[str, bytes]
    rows: dict[str, Rows]
    stored: Stored
    events: tuple[Event, ...]
    time: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two moments that no recovery can tell apart, and that promise the same."""
        stored = [(t, c, s.state, s.metadata) for t, kept in sorted(self.stored.items()) for c, s in kept.items()]
        events = [(e.kind, e.thread, e.id, e.mark, e.status) for e in self.events]
        rows = sorted(rows for rows in self.rows.values() if rows)
        return hashlib.blake2b(repr((rows, stored, events)).encode("utf-8", "surrogatepass")).digest(), len(events)

    def restore(self, base: Path) -> None:
        """Put the journal's directory on the disk again."""
        for name, content in self.files.items():
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class Recorder:
    """Takes the snapshots of one run."""

    def __init__(
        self, base: Path, ledger: Ledger, before: Snapshot | None = None, seen: set[Any] | None = None
    ) -> None:
        self.base, self.ledger = base, ledger
        self.lock = RLock()
        self.snapshots: list[Snapshot] = []
        self.effects = 0
        self.far: RecordedFar | None = None
        self._seen = set() if seen is None else seen
        self._rows: dict[str, Rows] = {} if before is None else dict(before.rows)
        self._time = 0.0

    def tick(self) -> None:
        """Note the time of the running loop, for effects on other threads."""
        self._time = asyncio.get_running_loop().time()

    def saw(self, file: JournalFile) -> None:
        """Note what a journal holds now."""
        query = "SELECT seq, attempted, head_check, body_check FROM rows ORDER BY seq"
        dead = "SELECT -seq, error, head_check, body_check FROM dead ORDER BY seq"
        connection = file._connection
        self._rows[self._name(file.path)] = (*connection.execute(query), *connection.execute(dead))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.base))

    def point(self, label: str) -> None:
        """The process could end here."""
        with self.lock:
            assert self.far is not None
            stored = {thread: dict(kept) for thread, kept in self.far.stored.items()}
            events = tuple(event.copy() for event in self.ledger.events)
            rows = {name: rows for name, rows in self._rows.items() if (self.base / name).exists()}
            snapshot = Snapshot(self.effects, label, {}, rows, stored, events, self._time)
            if snapshot.key in self._seen:
                return
            self._seen.add(snapshot.key)
            snapshot.files.update(
                (self._name(path), path.read_bytes())
                for path in sorted(self.base.rglob("*"))
                if path.is_file() and not path.name.endswith("-shm")
            )
            self.snapshots.append(snapshot)

    @contextmanager
    def effect(self, label: str) -> Iterator[None]:
        """One effect: a point before it, and one after it."""
        with self.lock:
            self.effects += 1
            self.point(f"before {label}")
            yield
            self.point(f"after {label}")


class RecordedFar(ReferenceCheckpointer):
    """A far store whose every change is an effect."""

    def __init__(self, stored: Stored | None = None, recorder: Recorder | None = None) -> None:
        super().__init__(clock=lambda: 0.0)
        for thread, kept in (stored or {}).items():
            for name, text in kept.items():
                self._keep(thread, name, text)
        self.recorder = recorder
        self.saves = self.deletes = 0
        if recorder is not None:
            recorder.far = self

    @contextmanager
    def _effect(self, label: str) -> Iterator[None]:
        if self.recorder is None:
            yield
            return
        self.recorder.tick()
        with self.recorder.effect(label):
            yield

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        self.saves += 1
        with self._effect(f"far save {thread_id}/{checkpoint_id}"):
            return await super().save(state, thread_id, checkpoint_id, metadata)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self.deletes += 1
        with self._effect(f"far delete {thread_id}/{checkpoint_id}"):
            return await super().delete(thread_id, checkpoint_id)


def _describe(batch: Iterable[Changes]) -> str:
    words = []
    for changes in batch:
        words += [f"+{new.row.kind} {new.row.thread}/{new.row.id}" for new in changes.add]
        words += [f"-{changes.remove}"] * bool(changes.remove) + [f"mark {changes.attempt}"] * bool(changes.attempt)
        words += [f"bury {changes.bury}"] * bool(changes.bury) + [f"revive {changes.revive}"] * bool(changes.revive)
    return f"commit {', '.join(words)}"


_recorders: list[Recorder] = []


def _recorder_of(path: Path) -> Recorder | None:
    return next((each for each in _recorders if each.base in path.parents), None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Take snapshots of everything that happens in the recorder's directory while the block runs."""
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)


def _quick(prepared: Callable[[sqlite3.Connection], sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    """The end of a process is simulated, not of a machine: nothing here has to wait for a disk."""

    def quick(connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.execute("PRAGMA synchronous=OFF")  # also while the file is made
        prepared(connection).execute("PRAGMA synchronous=OFF")
        return connection

    return quick


def _held(put: Callable[..., asyncio.Future[Any]]) -> Callable[..., asyncio.Future[Any]]:
    """Virtual time stands still while the journal's thread works."""

    @functools.wraps(put)
    def held(self: JournalThread, job: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = put(self, job)
        if isinstance(loop, VirtualTimeLoop):
            hold = loop.hold()
            hold.__enter__()
            future.add_done_callback(lambda _: hold.__exit__(None, None, None))
            recorder = _recorders[-1] if _recorders else None
            if recorder is not None:
                recorder.tick()
        return future

    return held


def virtual_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals in virtual time, without waiting for the disk, and seen by recorders."""
    commit = JournalFile.commit

    def seen_commit(self: JournalFile, batch: Iterable[Changes]) -> None:
        changes, recorder = list(batch), _recorder_of(self.path)
        if recorder is None:
            commit(self, changes)
            return
        with recorder.effect(_describe(changes)):
            commit(self, changes)
            recorder.saw(self)

    def seen_leave(folder: Path, opened: Opened) -> None:
        recorder = _recorder_of(opened.file.path)
        if recorder is None:
            leave(folder, opened)
            return
        with recorder.effect("leave"):
            leave(folder, opened)

    monkeypatch.setattr(JournalFile, "commit", seen_commit)
    monkeypatch.setattr(JournalThread, "_put", _held(JournalThread._put))
    monkeypatch.setattr(journal_module, "leave", seen_leave)
    monkeypatch.setattr(journal_schema, "prepared", _quick(journal_schema.prepared))
