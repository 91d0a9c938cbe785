"""``Journal``: what a write-behind layer has acknowledged and the far store has not heard of yet, on a local disk.

It promises: what :meth:`Journal.append` returned from survives the process and a power cut; rows come back in their
order, verified; one process writes to one file, which another one takes over once the first has ended. All layers of
a process that name the same directory share one journal, whatever event loops they run in.

It does not promise to survive the loss of the disk, and it does not send anything: see ``write_behind.py``.
"""

from __future__ import annotations

import asyncio
import operator
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from locus_tiered.core.checkpoint import Checkpoint
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import JournalError, JournalLocked, StackConfigError, shorten
from locus_tiered.core.ordering import scoped_key
from locus_tiered.stores.journal_file import Changes, JournalFile, NewRow
from locus_tiered.stores.journal_index import PendingIndex
from locus_tiered.stores.journal_open import Opened, leave, open_journal
from locus_tiered.stores.journal_rows import PendingRow, RowDamaged
from locus_tiered.stores.journal_schema import Connect, connect
from locus_tiered.stores.journal_thread import JournalThread

__all__ = ["Journal", "Pending", "check_journal_path", "key_of"]

_HANDOVER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Pending:
    """What a write-behind layer still owes the far store, and what troubles it."""

    rows: int = 0
    """Operations that were acknowledged by the journal and are still to be sent."""
    bytes: int = 0
    """What they count for against ``max_pending``."""
    oldest_age: float | None = None
    """Seconds since the oldest of them was acknowledged."""
    dead_letters: int = 0
    """Operations that the far store will never take; still readable."""
    last_error: str | None = None
    """Why sending failed the last time, if it has not worked since: the class of the error."""
    waiting_for_tenant: int = 0
    """Rows of a former process whose tenant nobody has called for yet: not sent by guess."""
    damaged: int = 0
    """Rows that were found damaged when the journal was opened."""
    left: int = 0
    """Journals of former processes that were left alone: of another home, or of a newer version."""
    poisoned: str | None = None
    """Why the journal takes nothing any more."""
    opened: bool = True
    """Whether the journal is open; as long as it was not opened yet, nobody knows what former processes left."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """Who has a journal whose home nobody knows, and for which stores."""

    user: weakref.ref[object]
    stores: tuple[object, ...]


def check_journal_path(path: object) -> Path:
    """``journal=`` as given by a user, or :class:`StackConfigError`."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise StackConfigError(f"journal={shorten(path)} is not a directory", hint="pass the path of a local directory")
    return Path(path)


def key_of(row: PendingRow) -> str:
    """The thread's key in everything that this process keeps."""
    return scoped_key(row.thread, row.tenant)


class Journal:
    """The journal of this process in one directory. Get it with :meth:`attach`."""

    def __init__(
        self,
        path: Path,
        home: str | None,
        clock: Clock,
        predecessor: Event | None = None,
        connecting: Connect = connect,
        former: Path | None = None,
    ) -> None:
        self.path = path
        self.pid = os.getpid()
        self.index = PendingIndex()
        self.damaged = self.left = self.passed_over = 0
        self._home, self._clock, self._predecessor = home, clock, predecessor
        self._connecting, self._former, self._ending = connecting, former, False
        self._thread = JournalThread(self._open)
        self._opened: Opened | None = None
        self._closed = Event()
        self._next = 1
        self._owed = 0  # how often something was put off that is not on the disk yet
        self._lock = Lock()
        self._users: dict[tuple[int, int], weakref.ref[asyncio.AbstractEventLoop]] = {}
        self._owners: dict[tuple[int, int], _Owner] = {}

    # -- one per process and directory ---------------------------------------------------------------

    @classmethod
    async def attach(
        cls,
        path: Path,
        home: str | None,
        clock: Clock,
        user: object,
        *,
        connecting: Connect = connect,
        stores: Sequence[object] = (),
        former: Path | None = None,
    ) -> Journal:
        """The open journal of this process in ``path``; ``user`` has it in this event loop until :meth:`detach`.

        ``connecting`` makes the connection when it is this call that opens the journal. With ``stores``, the objects
        that its rows are for, nobody gets it while somebody has it for others, where no ``home`` tells them apart.
        ``former`` is another directory whose rows belong here, unless they are known to be of another home. Raises
        :class:`JournalError`; then ``user`` has nothing, nor has a caller that was cancelled.
        """
        loop, ticket = asyncio.get_running_loop(), object()
        place = (str(path.resolve()), home)
        with _registry_lock:
            journal = _registry.get(place)
            if journal is None or journal.pid != os.getpid() or journal._closed.is_set() or not journal._users:
                before = None if journal is None or journal.pid != os.getpid() else journal._closed
                journal = _registry[place] = cls(path, home, clock, before, connecting, former)
            if stores and home is None:
                journal._refuse_others(user, stores)
                journal._owners[id(ticket), id(loop)] = _Owner(weakref.ref(user), tuple(stores))
            journal._users[id(ticket), id(loop)] = weakref.ref(loop)
        try:
            await journal._thread.read(lambda file: None)
        except BaseException as error:
            with _registry_lock:
                if isinstance(error, JournalError) and _registry.get(place) is journal:
                    del _registry[place]  # the next one tries again
                if journal._let_go((id(ticket), id(loop))):
                    journal._thread.end(journal._close)
            raise
        with _registry_lock:
            del journal._users[id(ticket), id(loop)]
            journal._users[id(user), id(loop)] = weakref.ref(loop)
            if (owner := journal._owners.pop((id(ticket), id(loop)), None)) is not None:
                journal._owners[id(user), id(loop)] = owner
        return journal

    def _refuse_others(self, user: object, stores: Sequence[object]) -> None:
        for key, owner in self._owners.items():
            loop, other = self._users[key](), owner.user()
            if loop is None or loop.is_closed() or other is None or other is user:
                continue
            if len(owner.stores) == len(stores) and all(map(operator.is_, owner.stores, stores)):
                continue
            raise JournalLocked(
                f"journal {shorten(str(self.path))} is in use in this process for another store, and no home= among "
                "the traits of either says which rows are whose: nothing was saved here, what it holds is untouched. "
                "Give each stack a journal= of its own"
            )

    def _let_go(self, user: tuple[int, int]) -> bool:
        """Answers whether nobody has the journal any more and who asks is the one to close it."""
        self._users.pop(user, None)
        for key, loop in list(self._users.items()):
            alive = loop()
            if alive is None or alive.is_closed():
                del self._users[key]
        self._owners = {key: owner for key, owner in self._owners.items() if key in self._users}
        last = not self._users and not self._ending and self.pid == os.getpid()
        self._ending = self._ending or last
        return last

    async def detach(self, user: object) -> None:
        """Let go of the journal in this event loop; whoever is the last closes it."""
        with _registry_lock:
            last = self._let_go((id(user), id(asyncio.get_running_loop())))
        if last:
            await self._thread.stop(self._close)

    def _open(self) -> JournalFile:
        if self._predecessor is not None:
            self._predecessor.wait(_HANDOVER_SECONDS)
        try:
            opened = open_journal(self.path, self._home, self._connecting, self._former)
        except BaseException:
            self._closed.set()
            raise
        now, wall = self._clock.monotonic(), self._clock.wall()
        found = opened.found
        for row in sorted((*found.rows, *found.dead), key=lambda row: (row.stamp, row.seq)):
            row.adopted = True
            row.since = now - max(0.0, wall - row.saved_at)
            self.index.add(key_of(row), row)
        self._next = found.last + 1
        self.damaged, self.left, self.passed_over = found.damaged, opened.left, opened.passed_over
        self._opened = opened
        return opened.file

    def _close(self, _: JournalFile) -> None:
        try:
            if self._opened is not None:
                done = not (self.poisoned or self.damaged or self.index.all())
                self._opened.spent = done and self._owed > 0
                leave(self.path, self._opened)
        finally:
            self._closed.set()

    @property
    def is_open(self) -> bool:
        """Whether it can be used in this process: not closed, and not the parent's of a fork."""
        return not self._closed.is_set() and self.pid == os.getpid()

    @property
    def poisoned(self) -> str | None:
        """Why nothing is committed any more, or ``None``."""
        return self._thread.poisoned

    # -- writing -------------------------------------------------------------------------------------

    def _place(self) -> int:
        with self._lock:
            place, self._next = self._next, self._next + 1
            return place

    async def append(
        self,
        row: PendingRow,
        metadata: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        *,
        instead_of: Iterable[PendingRow] = (),
    ) -> None:
        """Keep a row, and drop others for it, in one commit."""
        gone = list(instead_of)
        row.seq = self._place()
        changes = Changes(add=[NewRow.of(row, metadata, body)], remove=[each.seq for each in gone])

        def done() -> None:
            with self.index.lock:  # nobody sees the one without the other
                for each in gone:
                    self.index.remove(key_of(each), each)
                self.index.add(key_of(row), row)

        await self._thread.commit(changes, done)

    async def drop(self, rows: Iterable[PendingRow], *, superseding: Iterable[PendingRow] = ()) -> None:
        """Forget rows: sent, or cancelled. In the same commit, note that others are ``superseded``."""
        gone, served = list(rows), list(superseding)

        def done() -> None:
            for row in gone:
                self.index.remove(key_of(row), row)
            for row in served:
                row.superseded = not row.attempted

        if gone or served:
            changes = Changes(remove=[row.seq for row in gone], supersede=[row.seq for row in served])
            await self._thread.commit(changes, done)

    def forget(self, rows: Iterable[PendingRow], done: Callable[[], None] | None = None) -> None:
        """:meth:`drop` without waiting for the disk: for rows that whoever finds them again drops by himself.

        It is committed before whatever is asked for later; ``done`` is called afterwards.
        """
        gone = list(rows)
        for row in gone:
            self.index.remove(key_of(row), row)
        self._thread.submit(Changes(remove=[row.seq for row in gone]), done)

    def put_off(self, rows: Sequence[PendingRow]) -> None:
        """Forget rows that the disk did not let be dropped: they leave it with the next commit that it takes.

        Until then a crash brings them back: see :meth:`catch_up`.
        """

        def done() -> None:
            with self._lock:
                self._owed -= 1

        if rows:
            with self._lock:
                self._owed += 1
            self.forget(rows, done)

    async def catch_up(self) -> None:
        """Have rows leave the disk that were put off; raises :class:`JournalError` when it does not let them."""
        if self._owed:
            await self._thread.commit(Changes())

    async def mark_attempted(self, rows: Iterable[PendingRow]) -> None:
        """Note, before they are sent, that the far store may have heard of them."""
        new = [row for row in rows if not row.attempted]

        def done() -> None:
            for row in new:
                row.attempted, row.superseded = True, False

        if new:
            await self._thread.commit(Changes(attempt=[row.seq for row in new]), done)

    async def bury(self, row: PendingRow, error: str) -> None:
        """Put a row that can never be applied among the dead letters."""
        changes = Changes(bury=[(row.seq, error, self._clock.wall())])
        await self._thread.commit(changes, lambda: self.index.bury(row, error))

    async def revive(self, rows: Iterable[PendingRow]) -> None:
        """Have dead letters tried again."""
        again = [row for row in rows if row.error is not None]

        def done() -> None:
            for row in again:
                self.index.revive(row)

        if again:
            await self._thread.commit(Changes(revive=[row.seq for row in again]), done)

    # -- reading -------------------------------------------------------------------------------------

    async def checkpoint(self, row: PendingRow) -> Checkpoint | None:
        """The checkpoint of a save row; ``None``: the row is gone. Raises ``RowDamaged``."""

        def state(file: JournalFile) -> tuple[dict[str, Any], bytes] | RowDamaged | None:
            try:
                return file.state(row.seq)
            except RowDamaged as damage:
                return damage

        found = await self._thread.read(state)
        if isinstance(found, RowDamaged):
            raise found
        return None if found is None else row.checkpoint(*found)

    def pending(self, *, waiting: int = 0, last_error: str | None = None) -> Pending:
        """What is pending now."""
        index, oldest = self.index, self.index.oldest()
        return Pending(
            rows=index.rows,
            bytes=index.bytes,
            oldest_age=None if oldest is None else max(0.0, self._clock.monotonic() - oldest),
            dead_letters=index.dead,
            last_error=last_error,
            waiting_for_tenant=waiting,
            damaged=self.damaged,
            left=self.left,
            poisoned=self.poisoned,
            opened=self.is_open,
        )


_registry: dict[tuple[str, str | None], Journal] = {}
_registry_lock = Lock()
_leaked: list[Journal] = []


def _after_fork() -> None:
    """The parent's journals are not the child's, and SQLite forbids it even to close them."""
    global _registry_lock
    _registry_lock = Lock()
    _leaked.extend(_registry.values())
    _registry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
