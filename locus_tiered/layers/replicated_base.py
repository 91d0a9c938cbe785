"""What the halves of replication share: who is believed, who is asked, and what is mended when replicas differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import (
    BackendError,
    CorruptCheckpoint,
    JournalError,
    LocusTieredError,
    QuorumError,
    StackConfigError,
)
from locus_tiered.core.flights import Flights
from locus_tiered.core.floors import Floors
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import Head, Operation
from locus_tiered.core.signals import emit
from locus_tiered.layers.conflicts import Conflicts
from locus_tiered.layers.graves import Graves
from locus_tiered.layers.heartbeat import Heartbeats
from locus_tiered.layers.latency import HedgeBudget
from locus_tiered.layers.names import loses_index_rows
from locus_tiered.layers.quorum import Answers, ask_until, described, doubt_of, thread_of
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_options import check_read
from locus_tiered.layers.replicated_rows import ReplicatedRows
from locus_tiered.layers.told import Told
from locus_tiered.layers.tombstones import Tombstones, buries, graves_of

__all__ = ["ReplicatedBase"]

logger = logger_for(__name__)

T = TypeVar("T")


class _Ready:
    """Whether this event loop has opened the hints of former processes."""

    done = False


class ReplicatedBase(ReplicatedRows, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`."""

    tombstones: Tombstones

    def _begin(self, replicas: Sequence[Replica], votes: int, read: object) -> None:
        self.read = check_read(read)
        self._replicas, self._votes = tuple(replicas), votes
        self._noes = len(replicas) - votes + 1
        self._floors = Floors()
        self._told = Told()
        self._graves = Graves()
        self._conflicts = Conflicts(lambda: self.name)
        self._hedge = HedgeBudget()
        tenants = self._partition is not None
        self._heartbeats = Heartbeats(self._replicas, self._clock, self._stamps, votes, self._noes, tenants)
        self._is_ready: PerLoop[_Ready] = PerLoop(_Ready)
        self._openings: Flights[None] = Flights()

    def _key(self, thread_id: str) -> str:
        key = self._scoped(thread_id)
        if self._partition is not None:
            self._mind_tenant(thread_id)
        return key

    def _mind_tenant(self, thread_id: str) -> None:
        """The thread is the same tenant's in every replica; what former processes have left for him can be sent."""
        first, *others = self._replicas
        tenant = first.far.tenant(thread_id)
        for other in others:
            if other.far.tenant(thread_id) != tenant:
                apart = [each for each in (first, other) if each.layer.traits.partition is None]
                why = (
                    f"replica {apart[0].name} does not keep tenants apart, others do"
                    if apart
                    else f"replicas {first.name} and {other.name} are in the scopes of different tenants"
                )
                raise StackConfigError(
                    f"{self.name}: {why}; nothing was done",
                    hint="enter the same tenant's scope of every replica, or give each tenant a stack of its own",
                )
        for replica in self._replicas:
            if replica.far.has_news() and replica.hints is not None:
                replica.flusher.wake(replica.hints)

    async def _ready(self) -> None:
        """Before the first operation in an event loop: hints of former processes, and who was away for too long."""
        if not self._is_ready.get().done or any(replica.is_opened_elsewhere for replica in self._replicas):
            await self._openings.join("open", self._open)
        await self._heartbeats.beat()
        for replica in self._replicas:
            if replica.marked and not replica.is_resting:
                for key, thread_id in list(replica.marked.items()):
                    if self._scoped(thread_id) == key:  # else it waits for who may see it
                        self._suspect(thread_id, key)
            if replica.far.given_up:
                self._look_late()

    async def _is_in_use(self, replica: Replica) -> bool:
        return await self._heartbeats.shows(replica)

    async def _open(self) -> None:
        failed: dict[Replica, JournalError] = {}
        for replica in self._replicas:
            try:
                await replica.open(make=False)
            except JournalError as error:
                failed[replica] = error
        if len(failed) == len(self._replicas):
            raise next(iter(failed.values()))
        for replica in failed:  # the others are enough to go on; what it has missed is not known
            if not replica.is_unread:
                logger.error("%s: not believed, its hints cannot be opened: %s", replica.name, failed[replica])
            replica.is_unread = True
        self._is_ready.get().done = True

    @property
    def _is_open(self) -> bool:
        """Whether the stack was used in this event loop since it was closed there last."""
        return self._is_ready.get().done

    async def _forget_loop(self) -> None:
        self._is_ready.drop()
        self._heartbeats.forget_loop()

    # -- who is asked --------------------------------------------------------------------------------

    def _order(self, key: str | None = None) -> list[Replica]:
        """The replicas that are believed (about a thread): those that work first, the fastest first."""
        alive = [each for each in self._replicas if (each.is_believed if key is None else not each.is_doubtful(key))]
        if key is not None and RESERVED in key and len(alive) < self._noes:
            # What a tombstone says is true wherever it is found, and a replica that was away has lost none.
            alive += [each for each in self._replicas if each.is_merely_away]
            if len(alive) < self._noes:
                alive += [each for each in self._replicas if each.checked and each.lost]
        return sorted(alive, key=lambda replica: (replica.is_resting, replica.latency.usual))

    async def _ask(
        self,
        op: Operation[Any],
        key: str,
        ask: Callable[[Replica], Any],
        good: Callable[[Replica, T], bool],
        *,
        order: Sequence[Replica] | None = None,
        at_once: int = 1,
        by_lists: bool = False,
    ) -> Answers[T]:
        """Ask until one answer is good, or a quorum of them is there.

        ``by_lists``: what a quorum says follows from its lists. Those that lose nothing are waited for then, as many as
        a quorum needs, unless they fail.
        """
        order = self._order(key) if order is None else order
        sure = [each for each in order if not (each.is_resting or loses_index_rows(each.layer))] if by_lists else []

        def enough(answers: Answers[T]) -> bool:
            able = [replica for replica in sure if replica not in answers.errors]
            heard = sum(replica in answers.others for replica in able)
            return len(answers.others) >= self._noes and heard >= min(len(able), self._noes)

        doubted = [replica for replica in self._replicas if key in replica.marked]

        async def trusted(replica: Replica) -> T:
            answer: T = await ask(replica)
            if key in replica.marked and replica not in doubted:  # its hints, which the answer needs, may be gone
                raise BackendError(
                    f"{replica.name} missed more of the thread meanwhile than is kept; its answer to {op.name} is not "
                    "believed until it was compared",
                    member=replica.name,
                    operation=op.name,
                    temporary=True,
                )
            return answer

        hedged = self.read == "hedged" and at_once == 1
        if hedged:
            self._hedge.earn()
        answers: Answers[T] = await ask_until(
            order,
            trusted,
            good,
            operation=op.name,
            at_once=at_once,
            hedge=self._hedge if hedged else None,
            enough=enough,
        )
        if op.threads and any(isinstance(each, CorruptCheckpoint) for each in answers.errors.values()):
            self._suspect(op.threads[0], key)
        return answers

    def _what_to_do(self) -> str:
        if any((replica.fenced and replica.checked) or replica.has_holes for replica in self._replicas):
            return "Some are new, were away for too long, or have lost hints: run scrub(), which compares them"
        return "Try again when more replicas are back"

    def _unknown(self, op: Operation[Any], answers: Answers[Any], no: str) -> QuorumError:
        """Too few replicas answered to say no."""
        key = self._key(op.threads[0]) if op.threads else ""
        known = {
            replica.name: doubt_of(replica, key)
            if op.flag is None or replica.layer.explain()[op.flag]
            else f"has no {op.flag}"
            for replica in self._replicas
        }
        known |= answers.known("has it", no)
        corrupt = [each for each in answers.errors.values() if isinstance(each, CorruptCheckpoint)]
        error = QuorumError(
            f"{self.name}: {op.name} of {thread_of(op)} needs {self._noes} replicas that say no, or one that has it "
            f"({described(known)}). Nothing was changed. {self._what_to_do()}",
            known=known,
            member=self.name,
            operation=op.name,
        )
        error.__cause__ = corrupt[0] if corrupt else next(iter(answers.errors.values()), None)
        return error

    # -- what this process was told of ---------------------------------------------------------------

    def _tell(self, key: str, entries: Sequence[Entry]) -> None:
        """This process is told of these checkpoints, newest first: from now on it is not told less."""
        if entries:
            self._floors.raise_to(key, entries[0])
        self._told.tell(key, entries)

    def _has_gone(self, key: str, entry: Entry) -> None:
        """A checkpoint that it was told of is not there any more, or not in that version."""
        self._floors.lower(key, entry)
        if self._told.of(key, entry.id) <= (entry.stamp or ""):
            self._told.forget(key, entry.id)
        self._settle_floor(key)

    def _forget(self, key: str, checkpoint_id: str | None) -> None:
        """This process has deleted a checkpoint (``None``: all of a thread)."""
        self._told.forget(key, checkpoint_id)
        self._floors.drop(key, checkpoint_id)
        self._settle_floor(key)

    def _settle_floor(self, key: str) -> None:
        """Where the floor has gone, it is what this process was told of before."""
        if self._floors.of(key) is None and (before := self._told.newest(key)) is not None:
            self._floors.raise_to(key, before)

    # -- what was deleted -----------------------------------------------------------------------------

    async def _look_around(self, thread_id: str, key: str) -> str:
        """The greatest stamp that was acknowledged in the thread by anybody, as far as that can be told; or empty."""
        answers: Answers[Entry | None] = await self._ask(
            Head(thread_id), key, lambda replica: replica.ask(Head(thread_id)), lambda *_: False, at_once=self._noes
        )
        heads = [head.stamp for head in answers.others.values() if head is not None and head.stamp is not None]
        for stamp in heads:
            self._stamps.observe(key, stamp)
        return max(heads, default="")

    async def _mind_graves(self, thread_id: str, key: str, checkpoint_id: str | None = None) -> str | None:
        """What was there is gone: what this process saves next must be above the delete, whatever clocks say.

        Answers the stamp of that delete, empty if there was none, or ``None`` when tombstones cannot be asked for.
        Without it, only a clock that is behind is a danger.
        """
        if thread_id.startswith(RESERVED):
            return ""
        asked = dict.fromkeys([(thread_id, None), (thread_id, checkpoint_id)])
        with suppress(LocusTieredError, OSError):
            stamps = (await self.tombstones.among(asked)).values()
            for stamp in stamps:
                self._stamps.observe(key, stamp)
            return max(stamps, default="")
        return None

    # -- mending what was read -----------------------------------------------------------------------

    async def _is_buried(self, thread_id: str, entry: Entry) -> bool:
        if thread_id.startswith(RESERVED):
            return False
        return buries(await self.tombstones.among(graves_of(thread_id, [entry])), thread_id, entry)

    async def _mend(self, thread_id: str, key: str, found: Checkpoint, others: dict[Replica, Any]) -> None:
        """Have the replicas that were asked hold what is about to be answered.

        What has no stamp has its place by the order of arrival alone: a comparison copies it in order.
        """
        for replica, answer in others.items() if found.stamp is not None else ():
            if answer is not None and answer.stamp is not None and answer.stamp >= found.stamp:
                continue
            if self._graves.hold(key, found.entry):
                return  # deleted by this process meanwhile
            try:
                await replica.mend(key, found)
                emit("replica.mended", self.name, thread_id, tier=replica.name)
            except (LocusTieredError, OSError) as error:
                logger.warning("%s: %s could not be mended: %s", self.name, replica.name, type(error).__name__)
        if not thread_id.startswith(RESERVED):
            self._look_at_latest(thread_id, key)
        self._suspect(thread_id, key)

    @abstractmethod
    def _look_at_latest(self, thread_id: str, key: str, *, compare: bool = False) -> None:
        """Something older was written: see to what readers without this library see, a moment later."""

    @abstractmethod
    def _suspect(self, thread_id: str, key: str) -> None:
        """The replicas differ about a thread: compare them soon."""

    @abstractmethod
    def _look_late(self) -> None:
        """A write was given up on, and may be carried out late: see to it once the replica is back."""

    @abstractmethod
    def _in_background(self, work: Any) -> Any:
        """Do something that nobody waits for, in this event loop."""
