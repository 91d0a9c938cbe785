"""The one thread of a journal: commits in groups, reads in between, in the order in which both were asked for.

All who wait while a commit is being fsynced share the next one (group commit). What was asked for is done whether or
not its caller still waits: a cancelled save has been, or will be, committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from locus_tiered.core.errors import JournalError, JournalFull, JournalLocked, JournalPoisoned
from locus_tiered.stores.journal_file import Changes, JournalFile
from locus_tiered.stores.journal_schema import FileMoved

__all__ = ["JournalThread"]

T = TypeVar("T")

_MOST_AT_ONCE = 256
_LATE_SECONDS = 0.05
"""How long changes that nobody waits for may wait for another commit, to be part of it."""
_ROW = {sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}


@dataclass(slots=True)
class _Job:
    future: asyncio.Future[Any] | None
    changes: Changes | None = None
    done: Callable[[], None] | None = None
    call: Callable[[JournalFile], Any] | None = None
    last: bool = False


class JournalThread:
    """Runs every call on one file. ``opening`` makes the file, on the thread, before anything else."""

    def __init__(self, opening: Callable[[], JournalFile]) -> None:
        self.poisoned: str | None = None
        """Why nothing is committed any more: the class of the error of a commit that failed."""
        self._opening = opening
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()
        self._ended = False
        self._left_over: list[_Job] = []  # of those who do not wait: for the next commit
        self._is_late = False

    async def commit(self, changes: Changes, done: Callable[[], None] | None = None) -> None:
        """Commit, and then call ``done`` on the thread, before anybody who waited goes on.

        Raises :class:`JournalFull` and :class:`JournalLocked` when nothing of ``changes`` was kept, and
        :class:`JournalPoisoned`: then it was not acknowledged, but the next process may find it all the same.
        """
        await self._put(_Job(self._future(), changes=changes, done=done))

    def submit(self, changes: Changes, done: Callable[[], None] | None = None) -> None:
        """Commit without anybody waiting for it, with or before whatever is asked for later, or after
        :data:`_LATE_SECONDS`; a full disk puts it off. ``done`` is called on the thread afterwards.

        Once the thread was told to end, it is left undone.
        """
        with suppress(JournalError):
            self._enqueue(_Job(None, changes=changes, done=done))

    async def read(self, call: Callable[[JournalFile], T]) -> T:
        """Run ``call`` after everything that was asked for before; it must not write."""
        result: T = await self._put(_Job(self._future(), call=call))
        return result

    async def stop(self, call: Callable[[JournalFile], None]) -> None:
        """Run ``call`` as the last thing, and end the thread; what is asked for later raises :class:`JournalError`."""
        await self._put(_Job(self._future(), call=call, last=True))

    def end(self, call: Callable[[JournalFile], None]) -> None:
        """:meth:`stop` without waiting for it."""
        self._enqueue(_Job(None, call=call, last=True))

    @staticmethod
    def _future() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def _put(self, job: _Job) -> asyncio.Future[Any]:
        self._enqueue(job)
        assert job.future is not None
        return job.future

    def _enqueue(self, job: _Job) -> None:
        with self._lock:
            if self._ended:
                raise JournalError(
                    "the journal was closed; nothing was saved there. Use the stack, which opens it again"
                )
            if self._thread is None:
                self._thread = Thread(target=self._run, name="locus-tiered-journal", daemon=True)
                self._thread.start()
            self._ended = job.last
            self._jobs.put(job)

    # -- on the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            file = self._opening()
        except Exception as error:  # noqa: BLE001 - told to everybody who asks
            self._refuse(error)
            return
        while True:
            jobs = self._next()
            if jobs and all(job.future is None and job.changes is not None for job in jobs):
                self._left_over += jobs
                self._is_late = True
                continue
            _tell(self._work(file, jobs or [_Job(None, changes=Changes())]))
            if any(job.last for job in jobs):
                return

    def _next(self) -> list[_Job]:
        """What was asked for meanwhile; nothing, when what nobody waits for has waited long enough for company."""
        jobs: list[_Job] = []
        with suppress(Empty):
            jobs.append(self._jobs.get(timeout=_LATE_SECONDS if self._is_late else None))
            while len(jobs) < _MOST_AT_ONCE:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _work(self, file: JournalFile, jobs: list[_Job]) -> list[tuple[_Job, Any, Exception | None]]:
        answers: list[tuple[_Job, Any, Exception | None]] = []
        group: list[_Job] = []
        for job in jobs:
            if job.changes is not None:
                group.append(job)
                continue
            if self._is_late or (job.last and self._left_over):
                group.append(_Job(None, changes=Changes()))  # a reader comes behind what was put off
            answers += self._commit(file, group)
            group = []
            assert job.call is not None
            try:
                answers.append((job, job.call(file), None))
            except sqlite3.Error as error:
                answers.append((job, None, _unreadable(error)))
            except JournalError as error:
                answers.append((job, None, error))
            except Exception as error:  # noqa: BLE001 - told to who asked
                answers.append((job, None, _unreadable(error)))
        return answers + self._commit(file, group)

    def _commit(self, file: JournalFile, group: list[_Job]) -> list[tuple[_Job, Any, Exception | None]]:
        if not group:
            return []
        self._is_late = False
        failure: Exception | None = None
        done = [*self._left_over, *group]
        if self.poisoned is not None:
            failure = _poisoned(self.poisoned)
        else:
            try:
                file.commit(job.changes for job in done if job.changes is not None)
                self._left_over.clear()
            except Exception as error:  # noqa: BLE001 - judged, and told to who asked
                failure = self._judge(error)
                if len(group) > 1 and type(failure) is JournalError:
                    # One of them cannot be written as it is: that is not the others' fault.
                    return [answer for job in group for answer in self._commit(file, [job])]
        if failure is not None:
            self._left_over += [job for job in group if job.future is None]
        for job in done:
            if failure is None and job.done is not None:
                job.done()
        return [(job, None, failure) for job in group]

    def _judge(self, error: Exception) -> JournalError:
        """What a commit that failed means. A full disk undid it; after anything else nobody knows what the disk holds.

        An fsync is never retried: the pages that it failed to write may be marked clean (fsyncgate, Rebello et al.,
        USENIX ATC 2020).
        """
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, FileMoved):
            self.poisoned = "its files were removed or moved"
            failure: JournalError = _poisoned(self.poisoned)
        elif not isinstance(error, sqlite3.Error) or code in _ROW:
            failure = JournalError(
                f"the journal could not write a row ({type(error).__name__}); nothing of it was kept. See the cause"
            )
        elif error.__cause__ is None and code == sqlite3.SQLITE_FULL:
            failure = JournalFull(
                "the journal's disk is full: this save was not kept there, what was acknowledged before is. Make room"
            )
        elif error.__cause__ is None and code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            failure = JournalLocked(
                "another program holds the journal's file for writing: this save was not kept there. Close that program"
            )
        else:
            self.poisoned = getattr(error, "sqlite_errorname", None) or type(error).__name__
            failure = _poisoned(self.poisoned)
        failure.__cause__ = error
        return failure

    def _refuse(self, error: Exception) -> None:
        """The journal could not be opened: so everybody is told, until the last one has gone."""
        if isinstance(error, JournalError):
            failure: Exception = error
        else:
            failure = JournalError(
                f"the journal could not be opened ({type(error).__name__}); nothing was saved there, what it holds is "
                "untouched. See the cause"
            )
            failure.__cause__ = error
        while True:
            job = self._jobs.get()
            _tell([(job, None, None if job.last else failure)])
            if job.last:
                return


def _poisoned(why: str) -> JournalPoisoned:
    return JournalPoisoned(
        f"the journal's disk failed a commit ({why}): what was acknowledged before is kept, nothing more is taken. "
        "Look at the disk, then start the process anew"
    )


def _unreadable(error: Exception) -> JournalError:
    failure = JournalError(
        f"the journal could not be read ({type(error).__name__}): the disk or the file is damaged. Nothing was changed"
    )
    failure.__cause__ = error
    return failure


def _tell(answers: list[tuple[_Job, Any, Exception | None]]) -> None:
    """Hand the answers over, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Any, Exception | None]]] = {}
    for answer in answers:
        if answer[0].future is not None:
            by_loop.setdefault(answer[0].future.get_loop(), []).append(answer)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:
            pass  # the loop is closed: nobody waits there any more


def _resolve(answers: list[tuple[_Job, Any, Exception | None]]) -> None:
    for job, result, failure in answers:
        if job.future is None or job.future.done():
            continue
        if failure is None:
            job.future.set_result(result)
        else:
            mine = type(failure)(*failure.args)  # one each: whoever raises it adds to its traceback
            mine.__cause__ = failure.__cause__
            job.future.set_exception(mine)
