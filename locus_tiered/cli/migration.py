"""Copying threads from one stack to another: in order, one checkpoint in memory at a time, each verified by digest.

The copy is made below the caches and journals of both sides: what is read is what the source's store holds, and what
was verified was read back from the destination's. Between two stacks, stamps, ids and metadata stay as they are. What
was saved without a stack gets stamps of the time at which its state says that it was updated. A destination without a
stack gets what its own users would have saved, in order, the newest last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from locus.core.state import AgentState

from locus_tiered.cli.migration_state import Copied, StateFile
from locus_tiered.cli.opening import Opened, Place, writes_behind
from locus_tiered.cli.reading import Reader, ask, load_from
from locus_tiered.cli.states import as_kept, digest, size_of, state_of
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, shorten
from locus_tiered.core.layer import Layer
from locus_tiered.core.operations import Delete, Load, Save
from locus_tiered.core.stamp import StampClock, stamp_seconds

__all__ = ["Migration", "far_layer"]


class ThreadProblem(Exception):
    """A thread that could not be copied; the others can."""


def far_layer(layer: Layer) -> Layer:
    """What lies below the caches and journals of a stack: the replicas together, or home's leg."""
    from locus_tiered.layers.cached import CachedCheckpointer

    while True:
        walked = layer.walk()
        above = next((each for each in walked if isinstance(each, CachedCheckpointer) or writes_behind(each)), None)
        if above is None:
            return layer
        layer = above.inner


@dataclass
class Migration:
    """One run. The numbers grow as it goes."""

    source: Reader
    destination: Reader
    opened: Opened
    state: StateFile | None
    mirror: bool = False
    threads: int = 0
    already: int = 0
    copied: int = 0
    bytes: int = 0
    removed: int = 0
    verified: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stamped = self.opened.layer.ordering() is not None
        far = far_layer(self.opened.layer)
        self._writer = Place(self.opened.name, far, "home", False)

    async def thread(self, thread: str) -> None:
        """Bring one thread of the destination in step with the source."""
        self.threads += 1
        try:
            await self._thread(thread)
        except ThreadProblem as problem:
            self.problems[thread] = str(problem)
        except CorruptCheckpoint as error:
            self.problems[thread] = f"{error}: see verify and repair"
        except BackendError as error:
            if error.temporary is not False:
                raise
            self.problems[thread] = str(error)

    async def _thread(self, thread: str) -> None:
        entries = await self.source.entries(thread)
        there = await self.destination.entries(thread)
        wanted = {entry.id for entry in entries}
        extra = [entry.id for entry in there if entry.id not in wanted]
        ours = set() if self.state is None else self.state.ours(thread)
        foreign = [each for each in extra if each not in ours]
        if foreign:
            raise ThreadProblem(
                f"the destination has {len(foreign)} checkpoints of this thread that the source does not have "
                f"({shorten(foreign[0])}): somebody else saved them, and nothing was changed"
            )
        if not entries:
            await self._vanished(thread, extra)
            return
        if not extra and self.state is not None and await self._is_done(thread, entries, there):
            self.already += 1
            return
        if self.state is None:  # a dry run
            self.copied += len(self._to_copy(entries, there))
            return
        await self._copy(thread, entries, there)
        for each in extra:
            self.removed += await ask(self._writer, Delete(thread, each), self.destination.timeout)
        self.state.forget(thread, extra)
        newest = await self._checked(thread, entries[0])
        self.state.done(thread, Copied(entries[0].id, entries[0].stamp, len(entries), newest))

    async def _is_done(self, thread: str, entries: Sequence[Entry], there: Sequence[Entry]) -> bool:
        """Whether an earlier run copied the thread as it is now. The newest is compared anew."""
        assert self.state is not None
        done = self.state.copied(thread)
        if done is None or (done.newest, done.stamp, done.checkpoints) != (
            entries[0].id,
            entries[0].stamp,
            len(entries),
        ):
            return False
        if len(there) < len(entries):
            return False
        found = await self.source.load(thread, entries[0])
        return found is not None and self._mark(await state_of(found)) == done.digest

    async def _vanished(self, thread: str, extra: Sequence[str]) -> None:
        """A thread of an earlier run that the source does not have any more."""
        if not extra:
            if self.state is not None:
                self.state.drop(thread)
            return
        if not self.mirror:
            raise ThreadProblem("the source has deleted it since; the copy is kept (--mirror-deletes deletes it)")
        if self.state is None:
            self.removed += len(extra)
            return
        for each in extra:
            self.removed += await ask(self._writer, Delete(thread, each), self.destination.timeout)
        self.state.drop(thread)

    def _mark(self, state: AgentState) -> str:
        """The digest that the destination's copy of a state of the source must have."""
        return digest(as_kept(state, self.destination.traits))

    # -- copying -------------------------------------------------------------------------------------

    def _to_copy(self, entries: Sequence[Entry], there: Sequence[Entry]) -> list[Entry]:
        """What the destination lacks, oldest first."""
        oldest_first = list(reversed(entries))
        if self._stamped and all(entry.stamp is not None for entry in entries):
            held = {entry.id: entry.stamp for entry in there}
            return [entry for entry in oldest_first if held.get(entry.id) != entry.stamp]
        # There the order is that of arrival: whatever comes after the first gap has to arrive again.
        names = [entry.id for entry in reversed(there)]
        same = 0
        while same < min(len(names), len(oldest_first)) and names[same] == oldest_first[same].id:
            same += 1
        return oldest_first[same:]

    async def _copy(self, thread: str, entries: Sequence[Entry], there: Sequence[Entry]) -> None:
        assert self.state is not None
        self.state.intend(thread, [entry.id for entry in entries])
        missing = {entry.id for entry in self._to_copy(entries, there)}
        stamps = _Stamps(thread, entries, there)
        again = False  # once something had to be written anew, whatever comes after it is
        for entry in reversed(entries):
            checkpoint = await self.source.load(thread, entry)
            if checkpoint is None:  # deleted this moment: a turn has ended
                continue
            size = await size_of(checkpoint)
            state = await state_of(checkpoint)
            mark = self._mark(state)
            if entry.id not in missing and not again and await self._holds(thread, entry, mark):
                self.verified += 1
                stamps.passed(next(each for each in there if each.id == entry.id))
                continue
            again = again or not self._stamped
            await self._write(self._as_kept(checkpoint, state, stamps))
            self.copied += 1
            self.bytes += size
            if not await self._holds(thread, entry, mark):
                raise ThreadProblem(
                    f"checkpoint {shorten(entry.id)} was copied, and what was read back is not the same (digest)"
                )
            self.verified += 1

    def _as_kept(self, checkpoint: Checkpoint, state: AgentState, stamps: _Stamps) -> Checkpoint:
        if not self._stamped:
            return checkpoint.moved(stamp=None)
        return checkpoint if checkpoint.stamp is not None else checkpoint.moved(stamp=stamps.issue(state))

    async def _write(self, checkpoint: Checkpoint) -> None:
        await checkpoint.body.encode()
        operation = Save(checkpoint.thread_id, None, checkpoint.id, None, checkpoint)
        answer = await ask(self._writer, operation, self.destination.timeout)
        if answer != checkpoint.id:
            raise ThreadProblem(f"the destination does not keep the ids that it is given: {shorten(answer)}")

    async def _holds(self, thread: str, entry: Entry, mark: str) -> bool:
        """Whether whoever holds the truth at the destination gives back the very state, and nobody another one."""
        held = 0
        for place in self.destination.truth:
            try:
                found = await load_from(place, thread, entry, self.destination.timeout)
            except CorruptCheckpoint:
                return False
            if found is None and len(self.destination.truth) > 1:
                continue  # a replica that is behind gets it from a hint
            if found is None or digest(await state_of(found)) != mark:
                return False
            held += 1
        return held > 0

    async def _checked(self, thread: str, newest: Entry) -> str:
        """The newest state at both ends, by ``load``; its digest when they agree."""
        marks = []
        for reader in (self.source, self.destination):
            found = await reader.load(thread, (await reader.entries(thread))[0])
            if found is None or found.id != newest.id:
                raise ThreadProblem("the newest is another one now: it changed while it was copied; run it again")
            state = await state_of(found)
            marks.append(self._mark(state) if reader is self.source else digest(state))
        if not self._stamped:  # its readers ask the backend itself
            found = await ask(self.destination.truth[0], Load(thread, None), self.destination.timeout)
            marks.append("" if found is None else digest(await state_of(found)))
        if len(set(marks)) > 1:
            raise ThreadProblem("the newest state is not the same at both ends; run it again")
        return marks[0]


class _Stamps:
    """Stamps for what was saved without a stack: of the state's own time, in order, below every real stamp."""

    def __init__(self, thread: str, entries: Sequence[Entry], there: Sequence[Entry]) -> None:
        self._thread = thread
        self._now = 0.0
        self._clock = StampClock(replace(SYSTEM, wall=lambda: self._now))
        lowest = min((entry.stamp for entry in entries if entry.stamp is not None), default=None)
        self._below = SYSTEM.wall() if lowest is None else stamp_seconds(lowest) - 1.0

    def passed(self, entry: Entry) -> None:
        """One that the destination has already: the next one comes after it."""
        self._clock.observe(self._thread, entry.stamp)

    def issue(self, state: AgentState) -> str:
        """The next stamp."""
        self._now = min(state.updated_at.timestamp(), self._below)
        return self._clock.issue(self._thread)
