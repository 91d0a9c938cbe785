"""The world of a simulation: replicas, the links on which processes reach them, clocks, and processes that die.

Everything runs in one event loop in virtual time, and everything of chance comes from seeds, journals included: their
commits happen inline here, on a real (small) disk, instead of on a thread of their own.

What dies with a process: its tasks, its memory, what it had sent and had not arrived. What stays: its journal
directory, as it was at that moment, and what replicas are still about to do for it (late effects).
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from locus.core.state import AgentState

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import JournalError
from locus_tiered.core.ids import RESERVED, marked_name
from locus_tiered.core.traits import Traits
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.stores import journal as journals
from locus_tiered.stores.journal_file import JournalFile
from locus_tiered.stores.journal_thread import JournalThread, _Job, _resolve
from locus_tiered.testing.damage import damaged
from locus_tiered.testing.fault_script import Answer, Fault, FaultKind, Script
from locus_tiered.testing.faults import FaultyCheckpointer
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.simulation_history import History
from locus_tiered.testing.virtual_time import EPOCH

__all__ = ["Link", "Owners", "ProcessClock", "Site", "Weather", "abandon_journals", "inline_journals", "of_process"]


class Site:
    """One replica: what it holds, and its careless index, which all processes see alike."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store = ReferenceCheckpointer(clock=lambda: EPOCH)
        self.lost: dict[str, set[str]] = {}
        self.times: dict[str, dict[str, int]] = {}
        self.tied: set[str] = set()

    async def held(self, thread: str) -> dict[str, AgentState]:
        """What it really holds of a thread, by id; markers left out."""
        found = {}
        for name in self.store.stored.get(thread, {}):
            state = await self.store.load(thread, name)
            if marked_name(name) is None and state is not None:
                found[name] = state
        return found

    def threads(self) -> list[str]:
        """The threads of users that it holds."""
        return [thread for thread in self.store.stored if not thread.startswith(RESERVED)]

    def wipe(self) -> None:
        """Lose everything."""
        for thread in list(self.store.stored):
            for name in list(self.store.stored[thread]):
                self.store._drop(thread, name)
        self.lost.clear()
        self.times.clear()
        self.tied.clear()

    async def damage(self, random: Random, others: list[Site]) -> str | None:
        """Change one value in one checkpoint of which others hold the same; says which."""
        held = {(thread, name): state for thread in self.threads() for name, state in (await self.held(thread)).items()}
        copies = [key for key, state in held.items() for other in others if await other.store.load(*key) == state]
        if not copies:
            return None
        thread, name = random.choice(copies)
        state = held[thread, name]
        # In its place: damage on a disk is no save.
        text = self.store.stored[thread][name]
        spare = ReferenceCheckpointer()
        await spare.save(damaged(state, random), thread, name)
        changed = spare.stored[thread][name]
        self.store.stored[thread][name] = type(text)(changed.state, text.metadata, text.arrived)
        return f"{thread}/{name}"


_mark: ContextVar[int] = ContextVar("mark of the state that is being saved")


class Weather(Script):
    """The faults of chance on one link: ``chance`` per call, and what a careless or damaged replica does beside."""

    def __init__(self, random: Random, chance: float, evil: str) -> None:
        super().__init__((), 0, None)
        self._chance, self._dice, self._evil = chance, random, evil
        self.by_id = False
        """Whether the call that comes is about one checkpoint."""

    def clear(self) -> None:
        super().clear()
        self._chance, self._evil = 0.0, "none"

    def due(self, operation: str, threads: tuple[str, ...]) -> dict[FaultKind, Fault]:
        due, dice = super().due(operation, threads), self._dice
        kinds = [kind for kind in _ANY if operation in kind.befalls]
        if dice.random() < self._chance and operation != "close":
            kind = dice.choice(kinds)
            if kind is FaultKind.WRONG_THREAD and (self.by_id or operation == "list_checkpoints"):
                kind = FaultKind.FAIL_BEFORE  # whoever puts a thread in order by such answers cannot tell
            if kind is FaultKind.DAMAGED_BODY and operation == "save" and self._evil != "damage":
                kind = FaultKind.FAIL_AFTER
            due[kind] = self._fault(kind)
        if self._evil == "careless" and dice.random() < 0.15 and not (threads and threads[0].startswith(RESERVED)):
            if operation == "save":
                due[FaultKind.LOST_INDEX_ROW] = Fault(kind=FaultKind.LOST_INDEX_ROW)
            if operation in ("save", "delete") and dice.random() < 0.5:
                after = dice.randint(1, 5)
                due[FaultKind.LATE_APPLY] = Fault(kind=FaultKind.LATE_APPLY, answer="return", after=after)
        return due

    def _fault(self, kind: FaultKind) -> Fault:
        dice = self._dice
        answers: tuple[Answer, ...] = ("hang", "raise")
        odd = kind in (FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER) and dice.random() < 0.1
        return Fault(
            kind=kind,
            seconds=dice.uniform(0.1, 3.0),
            after=dice.randint(1, 6),
            answer=dice.choice(answers),
            error=RuntimeError("injected: of a kind that nobody knows") if odd else None,
        )


_ANY = (
    FaultKind.SLOW,
    FaultKind.HANG,
    FaultKind.FAIL_BEFORE,
    FaultKind.FAIL_BEFORE,
    FaultKind.LATE_APPLY,
    FaultKind.WRONG_THREAD,
    FaultKind.STALE_LATEST,
    FaultKind.TIE,
    FaultKind.DAMAGED_BODY,
    FaultKind.FAIL_AFTER,
    FaultKind.FAIL_AFTER,
)


class Link(FaultyCheckpointer):
    """One process's way to one replica: it takes time, and goes wrong when told to."""

    def __init__(self, site: Site, owner: tuple[str, int], random: Random, history: History, weather: Weather) -> None:
        super().__init__(site.store, seed=random.getrandbits(32))
        self.site, self.dead = site, False
        self._detours = 0.05  # the share of ways that are far longer than others
        self._script = self._weather = weather
        self._owner, self._chance, self._history = owner, random, history
        self._lost, self._times, self._tied = site.lost, site.times, site.tied
        self.locus_tiered_traits = Traits(
            none_is_unknown=True, probe=self._probe, loses_index_rows=True, home=f"simulated {site.name}"
        )

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        _mark.set(state.total_tokens_used)
        return await super().save(state, thread_id, checkpoint_id, metadata)

    async def _probe(self) -> bool:
        await self._way()
        return self._partition is None or self._partition.kind is not FaultKind.NONE_ON_OUTAGE

    async def _way(self) -> None:
        """The time that a request, or an answer, is on its way."""
        if self.dead:
            await asyncio.get_running_loop().create_future()  # nothing is ever heard of it again
        far = self._chance.random() < self._detours
        await asyncio.sleep(self._chance.uniform(0.05, 0.6) if far else self._chance.uniform(0.001, 0.03))

    async def _call(
        self, operation: str, threads: tuple[str, ...], checkpoint: str | None, apply: Any, **how: Any
    ) -> Any:
        await self._way()

        async def noted(due: Any, call: Any) -> Any:
            before = dict(self.site.store.stored.get(threads[0], {})) if operation == "delete" else {}
            result = await apply(due, call)
            for name, text in before.items():
                if self.site.store.stored.get(threads[0], {}).get(name) is not text:
                    self._history.took(json.loads(text.state).get("total_tokens_used", 0))
            if operation == "save" and checkpoint is not None:
                late = FaultKind.LATE_APPLY in due and due[FaultKind.LATE_APPLY].answer != "hang"
                owner = ("nobody", 0) if late else self._owner
                self._history.wrote(threads[0], checkpoint, _mark.get(), owner)
            return result

        self._weather.by_id = checkpoint is not None
        answer = await super()._call(operation, threads, checkpoint, noted, **how)
        await self._way()
        return answer

    @property
    def is_cut(self) -> bool:
        """Whether it is partitioned."""
        return self._partition is not None

    async def calm(self) -> None:
        """No more faults, and no way long enough for a timeout; what hung goes on, what is late lands."""
        self._detours = 0.0
        self.clear()
        self.release()
        await self.land()


class ProcessClock:
    """The clock of one machine: it may jump, forwards and backwards on the wall, forwards only otherwise."""

    def __init__(self, random: Random) -> None:
        self.wall = self.monotonic = 0.0
        self._random = random

    def clock(self) -> Clock:
        def now() -> float:
            return asyncio.get_running_loop().time()

        return Clock(
            wall=lambda: EPOCH + now() + self.wall,
            monotonic=lambda: now() + self.monotonic,
            sleep=asyncio.sleep,
            random_bits=self._random.getrandbits,
        )


# -- processes --------------------------------------------------------------------------------------------------------

_owner: ContextVar[object | None] = ContextVar("simulated process", default=None)


@contextmanager
def of_process(owner: object) -> Iterator[None]:
    """Within, new tasks belong to this process."""
    token = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(token)


_SPINS = 20_000  # tasks at one moment


class Owners:
    """Which task of an event loop belongs to which simulated process: that of the task that made it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        self._moment, self._made = 0.0, 0
        self.spins = False
        """Whether the loop had to be stopped: tasks were made without end, and no time passed."""
        loop.set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        self._made = self._made + 1 if loop.time() == self._moment else 0
        self._moment = loop.time()
        if self._made > _SPINS:
            self.spins = True
            loop.stop()
        here = asyncio.current_task(loop)
        owner = _owner.get() or (self._owners.get(here) if here is not None else None)
        if owner is not None:
            self._owners[task] = owner
        return task

    async def kill(self, owner: object) -> None:
        """End all tasks of a process, which can reach nothing any more."""
        for _ in range(50):
            left = [task for task, whose in self._owners.items() if whose is owner and not task.done()]
            left = [task for task in left if task is not asyncio.current_task()]
            if not left:
                return
            for task in sorted(left, key=lambda each: each.get_name()):
                task.cancel()
            await asyncio.wait(left, timeout=1.0)
        raise AssertionError(f"tasks of a dead process go on: {left}")


# -- journals ---------------------------------------------------------------------------------------------------------


class _InlineThread(JournalThread):
    """A journal's work, done at once by whoever asks for it: the order of everything then comes from the seed."""

    def __init__(self, opening: Callable[[], JournalFile]) -> None:
        super().__init__(opening)
        self.file: JournalFile | None = None
        self.cut = False
        self._failure: JournalError | None = None

    def _enqueue(self, job: _Job) -> None:
        if self.cut:
            return  # nothing is ever heard of it again
        if self._ended:
            raise JournalError("the journal was closed; nothing was saved there")
        if self.file is None and self._failure is None:
            try:
                self.file = self._opening()
            except JournalError as error:
                self._failure = error
        self._ended = job.last
        if self.file is None:
            _resolve([(job, None, None if job.last else self._failure)])
        else:
            _resolve(self._work(self.file, [job]))


@contextmanager
def inline_journals() -> Iterator[None]:
    """Within, journals do their work inline; those that are left open are abandoned at the end."""
    before = set(journals._registry.values())
    with patch.object(journals, "JournalThread", _InlineThread):
        try:
            yield
        finally:
            for journal in set(journals._registry.values()) - before:
                _abandon(journal)


def abandon_journals(stack: ReplicatedCheckpointer, path: Path | None, copy: Path | None) -> None:
    """The process of ``stack`` is dead: its journals reach the disk no more; what is there is copied to ``copy``."""
    if path is not None and copy is not None and path.exists():
        shutil.copytree(path, copy)
    for replica in stack._replicas:
        journal = replica.hints
        if journal is not None:
            _abandon(journal)


def _abandon(journal: journals.Journal) -> None:
    thread = journal._thread
    assert isinstance(thread, _InlineThread)
    thread.cut = True
    opened = journal._opened
    if opened is not None:
        with suppress(Exception):
            opened.file.close()
        opened.seat.release()
    for place, other in list(journals._registry.items()):
        if other is journal:
            del journals._registry[place]
