"""``ReplicatedCheckpointer``: several equal stores as one; any of them may be lost.

It promises: a save that returned is held by ``write_quorum`` replicas; what the others missed is kept as a hint (in
``journal=``, across restarts) and sent when they are back, in order; what was deleted stays deleted, whoever was away
meanwhile; ``None`` means that so many replicas said no that no acknowledged save can have been missed; a process reads
what it wrote, and never goes back behind what it has read; readers without this library find the right newest
checkpoint in every replica, a moment later.

With two replicas, ``"majority"`` is one vote *plus* a durable hint: either can be lost, but while one is away, the
hints on this machine's disk are the second copy.

It does not promise one order of two processes that save to one thread at the same time: both checkpoints are kept,
the newest stamp wins, and the signal ``replica.conflict`` tells of it. ``read="one"`` may answer without what another
process saved a moment ago. Replicas are not a backup: a delete is a delete everywhere.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from cachetools import LRUCache
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.capabilities import SINGLE_DELETES, Explanation, Verdict
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import QuorumError, StackConfigError, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import Layer, construction
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import CopyThread, Delete, Head, ListCheckpoints, Load, Save, Vacuum
from locus_tiered.core.stamp import StampClock, above, looks_random
from locus_tiered.core.traits import Traits
from locus_tiered.core.units import parse_bytes, show_bytes
from locus_tiered.layers.order import warn_about_order
from locus_tiered.layers.quorum import described
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_options import Read, WriteQuorum, named_replicas, votes_needed
from locus_tiered.layers.replicated_vacuum import vacuum
from locus_tiered.layers.replicated_writes import ReplicatedWrites
from locus_tiered.layers.said import hints_path
from locus_tiered.layers.tombstones import Tombstones
from locus_tiered.stores.journal import check_journal_path

__all__ = ["ReplicatedCheckpointer"]

logger = logger_for(__name__)

T = TypeVar("T")

_SETTLE_SECONDS = 5.0
_ROUNDS = 4
"""How often a delete goes after what is saved above it meanwhile."""


class ReplicatedCheckpointer(ReplicatedWrites):
    """N stores, one answer.

    Args:
        replicas: Two or more checkpointers, each with its own retries and guard; any mix of backends.
        write_quorum: How many replicas must hold a save before it returns: ``"majority"``, ``"all"`` or a number.
        read: ``"one"`` asks the fastest replica that is not known to have missed anything, and the next one when it
            fails or has nothing. ``"hedged"`` also asks the next one when the first takes longer than it usually
            does (at most 5 % more requests). ``"quorum"`` asks so many that one of them holds every acknowledged
            save, answers with the newest, and mends those that lack it before it answers.
        journal: A directory on a local disk for hints. Left out, hints do not survive the process; with two replicas
            and ``"majority"`` it is needed.
        names: What errors, spans and ``explain()`` call the replicas; by default ``s3``, ``pg``...
        hint_window: Bytes of hints kept per replica; beyond, whole threads are marked to be compared instead.

    Raises :class:`QuorumError` when too few replicas took a write: the outcome is unknown, and rolls forward. A
    cancelled save or delete goes on to its end in the background.
    """

    def __init__(
        self,
        *replicas: BaseCheckpointer,
        write_quorum: WriteQuorum = "majority",
        read: Read = "one",
        journal: str | os.PathLike[str] | None = None,
        names: Sequence[str] | None = None,
        hint_window: int | str = "256MiB",
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        if len(replicas) < 2:
            raise StackConfigError("ReplicatedCheckpointer needs two replicas or more", hint="one needs no replication")
        layers = named_replicas(replicas, names)
        self._layers = tuple(layers)
        super().__init__(name=name, clock=clock)
        self.write_quorum: WriteQuorum = write_quorum
        self.journal = None if journal is None else check_journal_path(journal)
        self.hint_window = parse_bytes(hint_window, "hint_window")
        count = len(layers)
        votes = votes_needed(write_quorum, count)
        two = count == 2 and write_quorum == "majority"
        if two and self.journal is None:
            raise StackConfigError(
                'two replicas with write_quorum="majority" need a journal: a save is one vote plus a durable hint',
                hint='add journal="./hints", or write_quorum="all"',
            )
        self._hint_is_needed = two
        self.tombstones = Tombstones(self, clock, tidies=False, heard=self._heard_of)
        members = [
            Replica(
                layer,
                layer.name,
                clock,
                path=None if self.journal is None else hints_path(self.journal, layer.name, layer),
                window=self.hint_window,
                tombstones=self.tombstones,
                compare=self._compare_soon,
                late=self._look_late,
            )
            for layer in layers
        ]
        self._begin(members, votes, read)
        self._lanes = Lanes()
        self._iterations: LRUCache[tuple[str, str], bool] = LRUCache(65_536)
        for layer in layers:
            layer.put_in_order()
            layer.share_stamps(self._stamps)
        warn_about_order(self)

    def _heard_of(self, thread_id: str, checkpoint_id: str | None, stamp: str) -> None:
        self._graves.dig(self._key(thread_id), checkpoint_id, stamp)

    def _compare_soon(self, thread_id: str) -> None:
        self._suspect(thread_id, self._key(thread_id))

    # -- facts ---------------------------------------------------------------------------------------

    def members(self) -> tuple[Layer, ...]:
        return self._layers

    @property
    def replicas(self) -> tuple[Layer, ...]:
        """The replicas."""
        return self._layers

    @property
    def hints_waiting(self) -> list[Callable[[], int]]:
        """For each replica, how many hints wait for it; may be asked from any thread."""
        return [partial(getattr, replica, "waiting") for replica in self._replicas]

    @property
    def traits(self) -> Traits:
        """What is peculiar about any of them."""
        traits = [layer.traits for layer in self._layers]
        normalisers = [each.normalise for each in traits if each.normalise is not None]

        def normalise(state: Any) -> Any:
            for each in normalisers:
                state = each(state)
            return state

        return Traits(
            prunes=any(each.prunes for each in traits),
            normalise=normalise if normalisers else None,
            partition=next((each.partition for each in traits if each.partition is not None), None),
        )

    def share_stamps(self, stamps: StampClock) -> None:
        self._stamps = stamps
        for layer in self._layers:
            layer.share_stamps(stamps)

    @property
    def lays_tombstones(self) -> bool:
        return True

    def explain(self) -> Explanation:
        members = [layer.explain().told_by(layer.name) for layer in self._layers]
        every = {
            flag: Explanation.all_of(members, flag)
            for flag in ("vacuum", "ttl", "persistent_checkpoint_ids", SINGLE_DELETES)
        }
        some = {
            flag: Explanation.any_of(members, flag)
            for flag in ("search", "metadata_query", "list_with_metadata", "list_threads")
        }
        if every["vacuum"] and not (lists := some["list_threads"]):
            every["vacuum"] = Verdict(False, lists.member, f"no replica lists its threads: {lists.reason}")
        branching = Verdict(True, self.name, "loads, stamps anew and saves, oldest first")
        return members[0].but(branching=branching, **every, **some)

    # -- writing -------------------------------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        if op.checkpoint is None:
            op = await self.freeze(op)
        checkpoint = op.checkpoint
        assert checkpoint is not None
        if checkpoint.stamp is None:
            raise QuorumError(
                f"{self.name}: a checkpoint without a stamp cannot be replicated; nothing was saved",
                known={},
                member=self.name,
                operation="save",
            )
        key = self._key(op.thread_id)
        base = self._floors.of(key)
        self._stamps.observe(key, checkpoint.stamp)
        if op.iteration:
            self._iterations[key, checkpoint.id] = True
        await checkpoint.body.encode()
        frozen = op

        async def save() -> str:
            lifted = self._lifted(key, frozen)
            saved = lifted.checkpoint
            assert saved is not None and saved.stamp is not None
            await self._to_all(key, lifted, saved.stamp)
            self._tell(key, [saved.entry])
            self._conflicts.saved(key, base, saved.entry)
            return saved.id

        return await self._lanes.change(key, save)

    async def on_delete(self, op: Delete) -> bool:
        if op.checkpoint_id is not None and not op.thread_id.startswith(RESERVED):
            # A replica that cannot would keep it, and tell of it again.
            self._demand(SINGLE_DELETES, "delete() of one checkpoint", outcome="; nothing was deleted")
        key = self._key(op.thread_id)
        op = self._dated(op)
        assert op.stamp is not None
        asked = op.stamp

        async def delete() -> bool:
            bury = self._needs_tombstone(key, op)
            stamp, minded = asked, True
            if bury:
                await self._ready()
                stamp, minded = await self._above_all(op, key, asked)
            deleted = False
            for _ in range(_ROUNDS):
                if bury:
                    await self._lay(op, stamp)
                    minded = minded or await self._mind_graves(op.thread_id, key, op.checkpoint_id) is not None
                self._graves.dig(key, op.checkpoint_id, stamp)  # before: what mends a replica must not come after
                said = await self._to_all(key, op, stamp)
                deleted = deleted or any(each.vote and each.result for each in said)
                newer = max(each.newer for each in said)
                if not newer or op.late:
                    break
                self._stamps.observe(key, newer)
                stamp = self._raise_delete(key, asked, above(stamp, newer))  # nobody had told of it: again, above it
            self._forget(key, op.checkpoint_id)
            again = op.checkpoint_id is None or not looks_random(op.checkpoint_id)  # somebody may be saving that
            self._look_at_latest(op.thread_id, key, compare=bury and again)
            return deleted

        return await self._lanes.change(key, delete)

    async def _above_all(self, op: Delete, key: str, asked: str) -> tuple[str, bool]:
        """A stamp for a delete above what others have saved, and not below the tombstone before it.

        No higher than that: what this process saves after the call waits behind the delete, and is not to be covered.
        Answers also whether tombstones could be asked for.
        """
        stamp = asked
        if not op.late:
            floor, told = self._floors.of(key), self._told.newest(key)
            known = [each.stamp or "" for each in (floor, told) if each is not None]
            stamp = above(asked, await self._look_around(op.thread_id, key), *known)
        grave = await self._mind_graves(op.thread_id, key, op.checkpoint_id)
        stamp = max(stamp, grave or "")
        if not op.late:
            self._raise_delete(key, asked, stamp)
        return stamp, grave is not None

    async def _lay(self, op: Delete, stamp: str) -> None:
        """Leave the tombstone; where too few replicas take it, the delete is not acknowledged.

        It goes to all of them nevertheless, as hints at least: the tombstone may reach all of them by and by, and would
        take what it buries days later, when some replica is mended.
        """
        try:
            await self.tombstones.lay(op.thread_id, op.checkpoint_id, stamp)
        except QuorumError as error:
            self._graves.dig(self._key(op.thread_id), op.checkpoint_id, stamp)
            with suppress(QuorumError):
                await self._to_all(self._key(op.thread_id), op, stamp)
            raise QuorumError(
                f"{self.name}: delete of thread {shorten(op.thread_id)} was not acknowledged: too few replicas took "
                f"the note of it that keeps it deleted ({described(error.known)}). It may or may not take effect. "
                f"{self._what_to_do()}",
                known=error.known,
                member=self.name,
                operation=op.name,
            ) from error

    def _needs_tombstone(self, key: str, op: Delete) -> bool:
        """An iteration save is older than the turn's end: no repair copies it anyway. Tombstones need none."""
        if op.thread_id.startswith(RESERVED):
            return False
        return op.checkpoint_id is None or (key, op.checkpoint_id) not in self._iterations

    # -- the other changes ---------------------------------------------------------------------------

    async def on_vacuum(self, op: Vacuum) -> int:
        return await vacuum(self, op.older_than_days)

    async def on_copy_thread(self, op: CopyThread) -> bool:
        """Load, stamp anew and save, oldest first; not atomic: when it fails half-way, what was copied stays."""
        entries: list[Entry] = await self.handle(ListCheckpoints(op.source_thread_id, 1_000_000_000, ordered=True))
        key = await self._look(op.dest_thread_id, again=True)
        copied = False
        for entry in reversed(entries):
            found = await self.handle(Load(op.source_thread_id, entry.id, entry.stamp))
            if found is not None:
                checkpoint = self._restamped(found, op.dest_thread_id, key)
                await self.handle(Save(op.dest_thread_id, None, checkpoint.id, None, checkpoint))
                copied = True
        return copied

    async def _look_below(self, thread_id: str) -> Entry | None:
        return await self.handle(Head(thread_id))

    async def deliver(self) -> None:
        """Wait for writes under way, and send every hint now; raises what a replica raises that cannot be reached."""
        await self._ready()
        if under_way := self._under_way():
            await asyncio.wait(under_way, timeout=_SETTLE_SECONDS)
        for replica in self._replicas:
            await replica.deliver_all()

    # -- life ----------------------------------------------------------------------------------------

    async def _settle(self) -> set[asyncio.Task[Any]]:
        """Wait a little for what runs in the background, and for what it begins; answers what does not end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        while tasks := set(self._background.get()):
            for task in list(self._pausing.get()):
                task.cancel()
            if (left := deadline - loop.time()) <= 0:
                return tasks
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return set()

    async def close(self) -> None:
        """Wait a little for writes under way, try once to send hints, close every replica."""
        await self._lanes.settle(_SETTLE_SECONDS)
        self._in_background(self._latest_looks.now())
        late = await self._settle()
        for replica, key, op, stamp in [write for task, write in self._writes.items() if task in late]:
            await replica.hint(key, op, stamp, attempted=True)
        await self._forget_loop()  # nothing is begun any more by what is cancelled now
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_SETTLE_SECONDS)
        self._background.drop()
        self._pausing.drop()
        results = await asyncio.gather(*(replica.leave() for replica in self._replicas), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def __repr__(self) -> str:
        return construction(
            self,
            *self._layers,
            write_quorum=None if self.write_quorum == "majority" else self.write_quorum,
            read=None if self.read == "one" else self.read,
            journal=None if self.journal is None else str(self.journal),
            hint_window=None if show_bytes(self.hint_window) == "256MiB" else show_bytes(self.hint_window),
        )
