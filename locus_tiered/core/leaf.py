"""The only place of a stack that speaks to a foreign checkpointer.

A :class:`Leaf` gives the backend what it can keep (ids in its alphabet, the envelope inside the state), takes
it out again and checks it, puts a thread in order by stamps, keeps one call in flight per thread, and turns
whatever the backend raises into :class:`BackendError`. Without an ordering layer above it passes states through
untouched: the stored bytes are what the backend would have stored.

It does not retry, cache or time out: those are layers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.calls import Calls
from locus_tiered.core.capabilities import Explanation
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.envelope import KEY, VERSION, Envelope, corrupt, seal, unseal
from locus_tiered.core.errors import BackendError, shorten
from locus_tiered.core.floors import Floors
from locus_tiered.core.ids import again_marker, marked_name
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import unusable
from locus_tiered.core.leaf_rows import ALL, LeafRows
from locus_tiered.core.leaf_vacuum import vacuum
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    CopyThread,
    Delete,
    Exists,
    Head,
    ListCheckpoints,
    Load,
    Save,
    Vacuum,
)
from locus_tiered.core.ranking import Ranking
from locus_tiered.core.sdk_traits import traits_of
from locus_tiered.core.stamp import is_stamp, looks_random
from locus_tiered.core.traits import Traits

__all__ = ["Leaf"]

T = TypeVar("T")

logger = logger_for(__name__)


class Leaf(LeafRows):
    """A foreign checkpointer as a layer.

    Args:
        backend: Any ``BaseCheckpointer`` that is not one of ours.
        traits: Its peculiarities; by default what it declares or what is known of its class.
        name: What errors and ``explain()`` call it; the class's name by default.
        settle_timeout: Seconds that ``close()`` waits for calls whose callers have left.
    """

    def __init__(
        self,
        backend: object,
        *,
        traits: Traits | None = None,
        name: str | None = None,
        where: str = "Leaf",
        clock: Clock = SYSTEM,
        settle_timeout: float = 5.0,
    ) -> None:
        if not isinstance(backend, BaseCheckpointer):
            raise unusable(backend, where)
        super().__init__(name=name or type(backend).__name__)
        self.backend = backend
        self._traits = traits if traits is not None else traits_of(backend)
        self._settle_timeout, self._clock = settle_timeout, clock
        self._lanes = Lanes()
        self._keeps_lanes = self._traits.one_at_a_time
        self._calls = Calls(lambda: self.name, self._traits)
        self._ranking = Ranking(clock, arrival_hint=self._traits.prunes)
        self._floors = Floors()

    @property
    def traits(self) -> Traits:
        return self._traits

    def explain(self) -> Explanation:
        return Explanation.of_backend(self.backend, self.name, self._traits.masks)

    # -- names ---------------------------------------------------------------------------------------

    def put_in_order(self) -> None:
        self._keeps_lanes = True

    async def _read(self, thread_id: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call in the thread's lane; without an ordering layer above there are no lanes to keep."""
        if self._keeps_lanes:
            return await self._lanes.read(self._lane(thread_id), call)
        return await call()

    def _lane(self, thread_id: str) -> str:
        return "" if self._traits.one_at_a_time else thread_id

    def _key(self, thread_id: str) -> tuple[str | None, str]:
        partition = self._traits.partition
        return (None if partition is None else partition(thread_id), thread_id)

    def _names(self, thread_id: str, checkpoint_id: str) -> tuple[str, str]:
        return self._traits.thread_ids.encode(thread_id), self._traits.checkpoint_ids.encode(checkpoint_id)

    # -- save ----------------------------------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        checkpoint = op.checkpoint
        if checkpoint is None or checkpoint.stamp is None:
            return await self._save_as_is(op)
        thread, name = self._names(checkpoint.thread_id, checkpoint.id)
        state, metadata = await seal(checkpoint, self._traits)
        key = self._key(checkpoint.thread_id)

        async def save() -> str:
            again = not op.iteration or self._ranking.knows(key, checkpoint.id)
            if again and not self._ranking.stands(key, checkpoint.entry):
                await self._mark_saved_again(checkpoint, thread, name)
            answer = await self._calls.make(
                "save", checkpoint.thread_id, self.backend.save, state, thread, name, metadata
            )
            if answer != name:
                raise BackendError(
                    f"{self.name} kept checkpoint {shorten(name)} of thread {shorten(op.thread_id)} as "
                    f"{shorten(answer)}: a stack needs a backend that keeps the ids it is given",
                    member=self.name,
                    operation="save",
                    temporary=False,
                )
            self._ranking.learn(key, checkpoint.entry)
            self._floors.raise_to(key, checkpoint.entry)
            return checkpoint.id

        return await self._lanes.change(self._lane(op.thread_id), save)

    async def _save_as_is(self, op: Save) -> str:
        assert op.checkpoint_id is not None
        state, metadata = op.state, op.metadata
        if op.checkpoint is not None:  # a copy of a checkpoint from before there were stamps
            state, metadata = await op.checkpoint.body.take(), op.checkpoint.metadata
        thread, name = self._names(op.thread_id, op.checkpoint_id)
        plain = None if metadata is None else dict(metadata)

        async def save() -> str:
            answer = await self._calls.make("save", op.thread_id, self.backend.save, state, thread, name, plain)
            return op.checkpoint_id if answer == name and op.checkpoint_id is not None else answer

        return await self._read(op.thread_id, save)

    async def _mark_saved_again(self, checkpoint: Checkpoint, thread: str, name: str) -> None:
        """Leave the marker that a generated id was saved again, before its state is (see ``ranking``)."""
        key, checkpoint_id = self._key(checkpoint.thread_id), checkpoint.id
        if checkpoint_id == checkpoint.stamp or not looks_random(checkpoint_id) or self._traits.prunes:
            return
        # Whether a marker is there already is not asked: another process may have deleted it with the thread.
        if not is_stamp(checkpoint_id) and not await self._calls.make(
            "save", checkpoint.thread_id, self.backend.exists, thread, name, empty=False
        ):
            return
        note = AgentState(metadata={KEY: {"v": VERSION, "again": checkpoint_id}})
        marker = again_marker(name)
        await self._calls.make("save", checkpoint.thread_id, self.backend.save, note, thread, marker, None)
        self._ranking.note_again(key, checkpoint_id)

    # -- load ----------------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        if self._keeps_lanes:
            return await self._lanes.read(self._lane(op.thread_id), lambda: self._load(op))
        return await self._load(op)

    async def _load(self, op: Load) -> Checkpoint | None:
        thread = self._traits.thread_ids.encode(op.thread_id)
        if op.checkpoint_id is None:
            state = await self._calls.make("load", op.thread_id, self.backend.load, thread)
        else:
            name = self._traits.checkpoint_ids.encode(op.checkpoint_id)
            state = await self._calls.make("load", op.thread_id, self.backend.load, thread, name)
        if state is None:
            await self._calls.sure("load", op.thread_id, empty=True)
            if op.checkpoint_id is not None:
                self._ranking.miss(self._key(op.thread_id), op.checkpoint_id)
            return None
        if not isinstance(state, AgentState):
            raise self._calls.senseless("load", op.thread_id, state)
        checkpoint = await unseal(state, op.thread_id, op.checkpoint_id, self.name, self._traits)
        if op.checkpoint_id is not None:
            self._ranking.learn(self._key(op.thread_id), checkpoint.entry)
        if op.stamp is not None and checkpoint.stamp != op.stamp:
            # Saved again meanwhile; or a crash tore a save in two, and its metadata still tells of the one before.
            self._ranking.note_torn(self._key(op.thread_id), checkpoint.id)
            return None
        return checkpoint

    async def on_exists(self, op: Exists) -> bool:
        async def exists() -> bool:
            thread = self._traits.thread_ids.encode(op.thread_id)
            name = None if op.checkpoint_id is None else self._traits.checkpoint_ids.encode(op.checkpoint_id)
            there = bool(await self._calls.make("exists", op.thread_id, self.backend.exists, thread, name, empty=False))
            await self._calls.sure("exists", op.thread_id, empty=not there)
            return there

        return await self._read(op.thread_id, exists)

    # -- order ---------------------------------------------------------------------------------------

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        async def entries() -> list[Entry]:
            if op.ordered:
                return (await self._entries(op.thread_id))[: op.limit]
            names = await self._list(op.thread_id, op.limit)
            plain = (name for name in names if marked_name(name) is None)
            return [Entry(self._traits.checkpoint_ids.decode(name) or name) for name in plain]

        return await self._read(op.thread_id, entries)

    async def on_head(self, op: Head) -> Entry | None:
        async def head() -> Entry | None:
            entries = await self._entries(op.thread_id)
            found = entries[0] if entries else None
            key = self._key(op.thread_id)
            floor = self._floors.above(key, found)
            if floor is not None:
                # Less than this process knows of: a stale answer, unless that checkpoint was deleted or saved again.
                _, name = self._names(op.thread_id, floor.id)
                now = await self._read_entry(op.thread_id, name)
                if now == floor:
                    return floor
                self._floors.lower(key, floor)
                if now is not None:
                    self._ranking.learn(key, now)
                    found = max(now, found or now, key=lambda entry: entry.stamp or "")
            if found is not None:
                self._floors.raise_to(key, found)
            return found

        return await self._read(op.thread_id, head)

    async def _list(self, thread_id: str, limit: int) -> list[str]:
        thread = self._traits.thread_ids.encode(thread_id)
        names = await self._calls.make(
            "list_checkpoints", thread_id, self.backend.list_checkpoints, thread, limit, empty=[]
        )
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise self._calls.senseless("list_checkpoints", thread_id, names)
        await self._calls.sure("list_checkpoints", thread_id, empty=not names)
        return list(names)

    async def _entries(self, thread_id: str) -> list[Entry]:
        """The whole thread in the order of its stamps."""
        key = self._key(thread_id)
        names = await self._list(thread_id, ALL)
        entries = await self._ranking.order(key, names, lambda name: self._read_entry(thread_id, name))
        cut_off = self._traits.lists_at_most is not None and len(names) >= self._traits.lists_at_most
        if self._traits.loses_index_rows or cut_off:
            entries = await self._beside_own_latest(thread_id, entries)
        own_latest = self._traits.own_latest
        if len(entries) > 1 and entries[0].stamp is None and own_latest is not None:
            latest = await self._calls.make("head", thread_id, own_latest, self._traits.thread_ids.encode(thread_id))
            entries.sort(key=lambda entry: self._traits.checkpoint_ids.encode(entry.id) != latest)
        return entries

    async def _read_entry(self, thread_id: str, name: str) -> Entry | None:
        """What the envelope of one listed checkpoint says: from its metadata where that can be read."""
        thread, key = self._traits.thread_ids.encode(thread_id), self._key(thread_id)
        known = self._traits.checkpoint_ids.decode(name)
        metadata: Any = None
        if self._traits.reads_metadata and (known is None or not self._ranking.only_state_tells(key, known)):
            row = await self._calls.make("head", thread_id, self.backend.get_metadata, thread, name)
            if isinstance(row, dict):
                metadata = row if self._traits.bare_metadata else row.get("metadata")
        envelope = Envelope.read(metadata)
        if known is None and envelope is not None and self._ranking.only_state_tells(key, envelope.id):
            envelope = None  # its name is a hash: whose it is was not known before
        if envelope is None:
            state = await self._calls.make("head", thread_id, self.backend.load, thread, name)
            if state is None:
                await self._calls.sure("head", thread_id, empty=True)
                return None
            envelope = Envelope.read(state.metadata)
            if envelope is None and KEY in state.metadata:
                raise corrupt(self.name, thread_id, known, "its envelope is not one that was written")
        if envelope is not None and envelope.names(thread_id, known):
            return Entry(envelope.id, envelope.stamp)
        return Entry(known if known is not None else name)

    async def _beside_own_latest(self, thread_id: str, entries: list[Entry]) -> list[Entry]:
        """A list put right by the backend's own latest: that is a hint, but where the two differ, one of them is wrong.

        It may lack what was saved last; and it may be kept longer than what it lists, each of which expires by itself.
        """
        state = await self._calls.make("head", thread_id, self.backend.load, self._traits.thread_ids.encode(thread_id))
        envelope = None if state is None else Envelope.read(state.metadata)
        own = None
        if envelope is not None and envelope.names(thread_id, None):
            own = Entry(envelope.id, envelope.stamp)
            unlisted = all(entry.id != own.id for entry in entries)
            if unlisted and await self._is_there(thread_id, own.id):
                entries = sorted([own, *entries], key=lambda entry: entry.stamp or "", reverse=True)
        if not self._traits.loses_index_rows:
            return entries  # its list is no index that is kept apart
        for place, entry in enumerate(entries):
            # Where there are no stamps, the newest is what the backend's own latest says, whichever that is.
            told = entry == own or (state is not None and own is None and entry.stamp is None)
            if told or await self._is_there(thread_id, entry.id):
                return entries[place:]
            self._ranking.absent(self._key(thread_id), entry.id)
        return []

    async def _is_there(self, thread_id: str, checkpoint_id: str) -> bool:
        there = await self._calls.make("head", thread_id, self.backend.exists, *self._names(thread_id, checkpoint_id))
        await self._calls.sure("head", thread_id, empty=not there)
        return bool(there)

    # -- delete --------------------------------------------------------------------------------------

    async def on_delete(self, op: Delete) -> bool:
        async def delete() -> bool:
            if op.checkpoint_id is None:
                return await self._delete_thread(op.thread_id)
            return await self._delete_one(op.thread_id, op.checkpoint_id)

        return await self._lanes.change(self._lane(op.thread_id), delete)

    async def _delete_one(self, thread_id: str, checkpoint_id: str) -> bool:
        thread, name = self._names(thread_id, checkpoint_id)
        key = self._key(thread_id)
        deleted = await self._calls.make("delete", thread_id, self.backend.delete, thread, name, empty=False)
        await self._calls.sure("delete", thread_id, empty=not deleted)
        if self._ranking.saved_again(key, checkpoint_id):
            await self._calls.make("delete", thread_id, self.backend.delete, thread, again_marker(name))
        self._ranking.forget(key, checkpoint_id)
        self._floors.drop(key, checkpoint_id)
        return bool(deleted)

    async def _delete_thread(self, thread_id: str) -> bool:
        thread = self._traits.thread_ids.encode(thread_id)
        key = self._key(thread_id)
        # Listed first where the backend's own answer would count a marker, or an emptied thread, as something.
        most, careful = self._traits.deletes_at_most, self._keeps_lanes or self._traits.keeps_empty_threads
        names = await self._list(thread_id, ALL) if most is not None or careful else []
        for name in [] if most is None else names[most:]:
            await self._calls.make("delete", thread_id, self.backend.delete, thread, name)
        deleted = await self._calls.make("delete", thread_id, self.backend.delete, thread, empty=False)
        await self._calls.sure("delete", thread_id, empty=not deleted)
        self._floors.drop(key)
        return bool(deleted) and (not careful or any(marked_name(name) is None for name in names))

    async def on_vacuum(self, op: Vacuum) -> int:
        return await vacuum(self, op)

    async def on_copy_thread(self, op: CopyThread) -> bool:
        """The backend's own copy, for a stack that stamps nothing (one that stamps copies by itself)."""
        source, dest = (self._traits.thread_ids.encode(thread) for thread in op.threads)
        return bool(await self._calls.make("copy_thread", op.source_thread_id, self.backend.copy_thread, source, dest))

    # -- life ----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait a little for calls whose callers have left, then close the backend."""
        left = await self._lanes.settle(self._settle_timeout)
        if left:
            logger.warning("%s: closed with %d calls still running", self.name, left)
        self._calls.forget_loop()
        await self._calls.close(self.backend, self._settle_timeout)

    def __repr__(self) -> str:
        kind = type(self.backend)
        if self._traits.row_ids == "joined":
            return f"{kind.__name__}({type(getattr(self.backend, '_backend', None)).__name__}(...))"
        shown = ", ".join(f"{name}={str(getattr(self.backend, name))!r}" for name in self._traits.shown)
        # What a foreign repr would show is not ours to know: it may be a connection string.
        return f"{kind.__name__}({shown or ('' if kind.__init__ is object.__init__ else '...')})"
